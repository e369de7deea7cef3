"""The few pieces that every model is made of. Letters: see vargrl/types.py."""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vargrl.parallel.rules import gather, shard
from vargrl.types import sizes


def letters(init, axes):
  """An initializer whose parameter knows its letters, hence its sharding."""
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
    w = self.param('w', letters(init, w_axes), self.shape)
    # Cast, then gather D, keep N on tensor. Without it, XLA may rematerialise.
    w = gather(w.astype(x.dtype), w_axes, w_axes)
    y = jnp.einsum(self.eqn, x, w, preferred_element_type=self.out)
    if self.bias:
      size = dict(zip(w_axes, self.shape))
      b = self.param('b', letters(nn.initializers.zeros, self.bias), [size[a] for a in self.bias])
      y += broadcast(b.astype(y.dtype), self.bias, y_axes)
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
      w = self.param(name, letters(init, places), tuple(size[i] for i in axes))
      return gather(w.astype(x.dtype), axes, places)

    a, b = weight('lora_a', uniform, f'{ins}r'), weight('lora_b', nn.initializers.zeros, f'r{outs}')
    low_axes = ''.join(i for i in x_axes if i not in ins) + 'r'
    low = jnp.einsum(f'{x_axes},{ins}r->{low_axes}', x, a) * (self.alpha / self.rank)
    return jnp.einsum(f'{low_axes},r{outs}->{y_axes}', low, b, preferred_element_type=self.out)


USED = ('w', 'lora_a', 'lora_b')


def used(params, dtype, names=USED):
  """The weights of Einsum and Conv, or those of `names`, in the dtype that they are cast to where
  they are used, the others as they are."""

  def one(path, x):
    return x.astype(dtype) if path[-1].key in names else x

  return jax.tree_util.tree_map_with_path(one, params)


def broadcast(b, axes, y_axes):
  """A bias with letters `axes`, shaped to be added to an array with letters `y_axes`."""
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
    w = self.param('w', letters(init, 'yxcD'), shape)
    b = self.param('b', letters(nn.initializers.zeros, 'D'), (self.features,))
    w = gather(w.astype(x_Byxc.dtype), 'yxcd', 'yxcD')
    y = jax.lax.conv_general_dilated(
      x_Byxc, w, (self.stride,) * 2, [self.pad] * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    # Gathered too: a channel axis in parts would spread to the activations, and these travel
    # between all devices.
    return y + broadcast(gather(b.astype(x_Byxc.dtype), 'd', 'D'), 'D', 'ByxD')


class GroupNorm(nn.Module):
  """Over 32 groups of channels, in float32, eps 1e-6, variance in two passes as torch does."""

  groups: int = 32

  @nn.compact
  def __call__(self, x_Byxc):
    B, *_, c = x_Byxc.shape
    if c % self.groups:
      raise ValueError(f'{self.name}: {c} channels, expected a multiple of {self.groups}')

    # By channel first: the last axis stays whole, where a CPU takes 8 channels at a time and a TPU
    # 128.
    def mean(x_BLc):
      mean_B1g1 = x_BLc.mean(1).reshape(B, 1, self.groups, -1).mean(-1, keepdims=True)
      return jnp.broadcast_to(mean_B1g1, (B, 1, self.groups, c // self.groups)).reshape(B, 1, c)

    x = x_Byxc.astype(jnp.float32).reshape(B, -1, c)
    x -= mean(x)
    scale = self.param('scale', letters(nn.initializers.ones, 'D'), (c,))
    bias = self.param('bias', letters(nn.initializers.zeros, 'D'), (c,))
    scale, bias = (gather(w, 'd', 'D') for w in (scale, bias))
    x = x * (jax.lax.rsqrt(mean(x**2) + 1e-6) * scale[None, None]) + bias[None, None]
    return x.reshape(x_Byxc.shape).astype(x_Byxc.dtype)


class Norm(nn.Module):
  """Layer norm with scale and bias, float32 inside and out."""

  eps: float

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', letters(nn.initializers.ones, 'D'), x.shape[-1:])
    bias = self.param('bias', letters(nn.initializers.zeros, 'D'), x.shape[-1:])
    ones = (1,) * (x.ndim - 1)
    return layer_norm(x, self.eps) * scale.reshape(*ones, -1) + bias.reshape(*ones, -1)


class RMSNorm(nn.Module):
  """x / rms(x) with a scale (https://arxiv.org/abs/1910.07467); float32 inside, the dtype of x
  outside.
  """

  eps: float

  @nn.compact
  def __call__(self, x_BLD):
    scale = self.param('scale', letters(nn.initializers.ones, 'D'), x_BLD.shape[-1:])
    y_BLD = x_BLD.astype(jnp.float32)
    y_BLD *= jax.lax.rsqrt(jnp.mean(y_BLD**2, -1, keepdims=True) + self.eps)
    return (y_BLD * scale[None, None]).astype(x_BLD.dtype)


def layer_norm(x, eps=1e-6):
  """Without affine parameters: AdaLN brings its own. float32 inside and out."""
  x = x.astype(jnp.float32)
  x -= x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + eps)


def unit(x):
  """x / |x| over the last axis, float32; torch's F.normalize with its eps."""
  x = x.astype(jnp.float32)
  return x / jnp.maximum(jnp.sqrt(jnp.sum(x**2, -1, keepdims=True)), 1e-12)


def frequencies(pairs, theta):
  """Of RoPE (https://arxiv.org/abs/2104.09864), by pair of channels: theta ** (-i / pairs), float32
  numpy [h].
  """
  return 1 / np.float32(theta) ** (np.arange(pairs, dtype=np.float32) / np.float32(pairs))


def rotary(position_aBL, axis_h, frequency_h):
  """(cos, sin), each float32 [B, 1, L, h], of the angles by which `rotate` turns h pairs of
  channels: pair number i by position_aBL[axis_h[i]] * frequency_h[i]."""
  angle_hBL = position_aBL.astype(jnp.float32)[np.asarray(axis_h)] * frequency_h[:, None, None]
  angle_B1Lh = jnp.moveaxis(angle_hBL, 0, -1)[:, None]
  return jnp.cos(angle_B1Lh), jnp.sin(angle_B1Lh)


def rotate(x_BNLH, turn):
  """x_BNLH with channels i and i + h of each head turned by what `rotary` gave; in float32."""
  cos, sin = turn
  a, b = jnp.split(x_BNLH.astype(jnp.float32), 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BNLH.dtype)


class Packed(NamedTuple):
  """The mask of rows that hold several sequences: mask_LS within each of them, nothing between
  two.
  """

  mask_LS: np.ndarray
  segment_BL: jax.Array  # int32: the sequence that a token is of

  @property
  def mask_BLS(self):
    return jnp.asarray(self.mask_LS)[None] & (
      self.segment_BL[:, :, None] == self.segment_BL[:, None]
    )


def attend(q_BNLH, segments, *, scale, kernel='dense'):
  """One softmax over all segments (k_BKSH, v_BKSH, mask_LS or None), which are never concatenated.
  A mask may also be a row's own, mask_BLS, and 1 where it is the same all along an axis; or Packed.

  A prefix shared by many rows stays one copy under vmap; a concatenation would repeat it per row.
  Query heads are grouped over the K heads of the keys. Softmax in float32. Returns o_BNLH.

  kernel: one of KERNELS. 'splash' is for one segment with a mask_LS of numpy or Packed, as teacher
  forcing has. Decoding is dense with either: it has few queries, and the kernel would want its
  segments concatenated."""
  if kernel == 'splash' and len(segments) == 1 and isinstance(segments[0][2], (np.ndarray, Packed)):
    from vargrl.models import splash  # here: only those who choose it wait for the import of Pallas

    return splash.attend(q_BNLH, *segments[0], scale=scale)
  B, N, L, H = q_BNLH.shape
  K = segments[0][0].shape[1]
  q_BKGLH = q_BNLH.reshape(B, K, N // K, L, H) * scale
  logits = []
  for k_BKSH, _, mask_LS in segments:
    x_BKGLS = jnp.einsum('BKGLH,BKSH->BKGLS', q_BKGLH, k_BKSH, preferred_element_type=jnp.float32)
    if mask_LS is not None:
      if isinstance(mask_LS, Packed):
        mask_LS = mask_LS.mask_BLS
      mask_BLS = mask_LS[None] if mask_LS.ndim == 2 else mask_LS
      x_BKGLS = jnp.where(mask_BLS[:, None, None], x_BKGLS, -2e38)
    logits.append(x_BKGLS)
  top = functools.reduce(
    jnp.maximum, [jax.lax.stop_gradient(x).max(-1, keepdims=True) for x in logits]
  )
  weights = [jnp.exp(x - top) for x in logits]
  total = sum(w.sum(-1, keepdims=True) for w in weights)
  # Divided last: L x H numbers instead of L x S, and one array of L x S less is kept for the
  # gradient.
  o_BKGLH = (
    sum(
      jnp.einsum('BKGLS,BKSH->BKGLH', w.astype(v.dtype), v, preferred_element_type=jnp.float32)
      for w, (_, v, _) in zip(weights, segments)
    )
    / total
  )
  return o_BKGLH.astype(q_BNLH.dtype).reshape(B, N, L, H)


def causal_by_scale(scales):
  """mask_LS [L, L] bool: a token sees its own scale and all coarser ones."""
  level_L = level(scales)
  return level_L[:, None] >= level_L[None, :]


def level(scales):
  """The number of the scale that each of the L tokens belongs to, int32 numpy [L]."""
  return np.repeat(np.arange(len(scales), dtype=np.int32), sizes(scales))


def whole(w, axes, dtype):
  """A weight that several calls use, each of which would gather it: once here, in the dtype that
  they use. float32 again, as the calls' gradients are summed in it."""
  return gather(w.astype(dtype), axes, axes).astype(jnp.float32)


def check_knobs(c):
  """ValueError unless the knobs that many models share, and this one has, mean something."""
  for name, known in (('dtype', DTYPES), ('attention', KERNELS), ('remat', tuple(sorted(REMAT)))):
    if hasattr(c, name) and getattr(c, name) not in known:
      raise ValueError(f'policy.{name}: {getattr(c, name)!r}, expected one of {known}')
  if not hasattr(c, 'lora_rank'):
    return
  if c.lora_rank < 0:
    raise ValueError(f'policy.lora_rank: {c.lora_rank}, expected at least 0')
  if c.lora_rank and not 0 < c.lora_alpha < math.inf:
    raise ValueError(
      f'policy.lora_alpha: {c.lora_alpha} with rank {c.lora_rank}, expected a positive number'
    )


def scanned(block, c, length, in_axes, static=(), name=None):
  """A scan of block(c) over `length` layers, letter X of its weights. in_axes: of the arguments
  after the carry. static: numbers of arguments, from 1, that are Python values."""
  if c.remat != 'none':
    block = nn.remat(block, prevent_cse=False, static_argnums=static, policy=REMAT[c.remat])
  return nn.scan(
    block,
    variable_axes={'params': 0},
    split_rngs={'params': True},
    length=length,
    in_axes=in_axes,
    out_axes=0,
    metadata_params={nn.PARTITION_NAME: 'X'},
  )(c, name=name)


def torch_dense(ours, theirs, pattern):
  """Rows of a types.Layout table, of an Einsum with bias, which has the first axis of the weight's
  pattern.
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


def torch_norm(ours, theirs):
  return {
    f'{ours}/scale': (f'{theirs}.weight', 'D -> D'),
    f'{ours}/bias': (f'{theirs}.bias', 'D -> D'),
  }


def normal(std):
  """Normal initializer; torch's trunc_normal_ cuts at +-2 absolute, which these stds never
  reach.
  """
  return nn.initializers.normal(std)


LN_100 = math.log(100.0)
KERNELS = ('dense', 'splash')  # what `attend` computes with
DTYPES = ('float32', 'bfloat16', 'float16')
# What is kept for the backward pass: everything, nothing, or the products with weights. Not those
# of queries with keys and their softmax, which are L x L.
REMAT = {
  'none': None,
  'blocks': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
