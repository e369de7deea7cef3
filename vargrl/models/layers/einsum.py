"""Products with weights whose axes have names: Einsum with LoRA adapters, and Conv."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vargrl.parallel.rules import gather, shard


def with_axes(init, axes):
  """An initializer whose parameter knows its with_axes, hence its sharding."""
  return nn.with_logical_partitioning(init, tuple(axes))


class Einsum(nn.Module):
  """einsum(eqn, x, w). The equation names the weight's axes: its init and its sharding follow.

  rank r > 0: plus alpha / r (x lora_a) lora_b (https://arxiv.org/abs/2106.09685), whose axes the
  equation names too: those contracted and r, r and the others. Weights without adapters are the
  base model's and are applied as such."""

  eqn: str  # 'BLD,DNH->BNLH'
  shape: tuple[int, ...]
  bias: str = ''  # the axes of the bias, 'NH'
  init: object = None  # None: normal with variance 1 / fan-in
  out: object = None  # dtype of sums, bias and result; None: that of x
  rank: int = 0
  alpha: float = 0.0

  @nn.compact
  def __call__(self, x):
    x_axes, w_axes, y_axes = self.eqn.replace('->', ',').split(',')
    ins = tuple(i for i, a in enumerate(w_axes) if a not in y_axes)
    outs = tuple(i for i, a in enumerate(w_axes) if a in y_axes)
    init = self.init or nn.initializers.variance_scaling(1.0, 'fan_in', 'normal', ins, outs)
    w = self.param('w', with_axes(init, w_axes), self.shape)
    # Cast, then gather D, keep N on tensor. Without it, XLA may rematerialise.
    w = gather(w.astype(x.dtype), w_axes, w_axes)
    y = jnp.einsum(self.eqn, x, w, preferred_element_type=self.out)
    if self.bias:
      size = dict(zip(w_axes, self.shape))
      b = self.param('b', with_axes(nn.initializers.zeros, self.bias), [size[a] for a in self.bias])
      y += broadcast_to_axes(b.astype(y.dtype), self.bias, y_axes)
    if self.rank and (self.is_initializing() or self.has_variable('params', 'lora_a')):
      y += self.adapter(x, x_axes, w_axes, y_axes)
    return shard(y, y_axes)

  def adapter(self, x, x_axes, w_axes, y_axes):
    """alpha / r (x a) b, in x's dtype. At init b is 0, and a is PEFT's: uniform within 1 /
    sqrt(fan-in).
    """
    ins = ''.join(i for i in w_axes if i not in y_axes)
    outs = ''.join(i for i in w_axes if i in y_axes)
    assert w_axes == ins + outs, self.eqn  # lora.merge multiplies a by b
    size = dict(zip(w_axes, self.shape)) | {'r': self.rank}
    uniform = nn.initializers.variance_scaling(
      1 / 3, 'fan_in', 'uniform', tuple(range(len(ins))), len(ins)
    )

    def weight(name, init, axes):
      # On the mesh the rank stands in for D where there is none, or every device would hold all of
      # it.
      places = axes if 'D' in axes else axes.replace('r', 'D')
      w = self.param(name, with_axes(init, places), tuple(size[i] for i in axes))
      return gather(w.astype(x.dtype), axes, places)

    a, b = weight('lora_a', uniform, f'{ins}r'), weight('lora_b', nn.initializers.zeros, f'r{outs}')
    low_axes = ''.join(i for i in x_axes if i not in ins) + 'r'
    low = jnp.einsum(f'{x_axes},{ins}r->{low_axes}', x, a) * (self.alpha / self.rank)
    return jnp.einsum(f'{low_axes},r{outs}->{y_axes}', low, b, preferred_element_type=self.out)


WEIGHT_NAMES = ('w', 'lora_a', 'lora_b')


def cast_weights(params, dtype, names=WEIGHT_NAMES):
  """The weights of Einsum and Conv, or those of `names`, in the dtype that they are cast to where
  they are cast_weights, the others as they are."""

  def one(path, x):
    return x.astype(dtype) if path[-1].key in names else x

  return jax.tree_util.tree_map_with_path(one, params)


def broadcast_to_axes(b, axes, y_axes):
  """A bias with with_axes `axes`, shaped to be added to an array with with_axes `y_axes`."""
  return b.reshape([b.shape[axes.index(a)] if a in axes else 1 for a in y_axes])


class Conv(nn.Module):
  """2-D convolution, NHWC; `pad` is (low, high) on both sides."""

  features: int
  size: int = 3
  stride: int = 1
  pad: tuple[int, int] = (1, 1)

  @nn.compact
  def __call__(self, x_Byxc):
    init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal', (0, 1, 2), 3)
    shape = (self.size, self.size, x_Byxc.shape[-1], self.features)
    w = self.param('w', with_axes(init, 'yxcD'), shape)
    b = self.param('b', with_axes(nn.initializers.zeros, 'D'), (self.features,))
    w = gather(w.astype(x_Byxc.dtype), 'yxcd', 'yxcD')
    y = jax.lax.conv_general_dilated(
      x_Byxc, w, (self.stride,) * 2, [self.pad] * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    # Gathered too: a channel axis in parts would spread to the activations, and these travel
    # between all devices.
    return y + broadcast_to_axes(gather(b.astype(x_Byxc.dtype), 'd', 'D'), 'D', 'ByxD')


def gathered_once(w, axes, dtype):
  """A weight that several calls use, each of which would gather it: once here, in the dtype that
  they use. float32 again, as the calls' gradients are summed in it."""
  return gather(w.astype(dtype), axes, axes).astype(jnp.float32)


def torch_dense(ours, theirs, pattern):
  """Rows of a types.TorchLayout table, of an Einsum with bias, which has the first axis of the
  weight's pattern.
  """
  out = pattern[0]
  return {
    f'{ours}/w': (f'{theirs}.weight', pattern),
    f'{ours}/b': (f'{theirs}.bias', f'{out} -> {out}'),
  }


def torch_mlp(ours, first, second):
  return torch_dense(f'{ours}/fc1', first, 'F D -> D F') | torch_dense(
    f'{ours}/fc2', second, 'D F -> F D'
  )


def normal(std):
  """Normal initializer; torch's trunc_normal_ cuts at +-2 absolute, which these stds never
  reach.
  """
  return nn.initializers.normal(std)
