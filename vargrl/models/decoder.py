"""What next-scale decoders share: their layers (AdaLN, attention by scales), the scan over them,
and passes over several groups of rows."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vargrl.models.layers import attention, lora, masks, norms, stack
from vargrl.models.layers.einsum import Einsum, normal, with_axes
from vargrl.parallel.rules import shard


def check(c):
  """Raises ValueError for a Config that no decoder can be made of."""
  if c.width % c.heads:
    raise ValueError(f'policy: width {c.width}, expected a multiple of {c.heads} heads')
  stack.check_options(c)


class AdaLN(nn.Module):
  """cond_BD -> modulations [B, parts, d], in the order of FoundationVision/VAR."""

  parts: int
  width: int
  factors: tuple[float, ...]  # of the standard deviation at init, one for each part
  std: float

  @nn.compact
  def __call__(self, cond_BD):
    def init(key, shape, dtype=jnp.float32):
      return (
        self.std * jax.random.normal(key, shape, dtype) * jnp.array(self.factors)[None, :, None]
      )

    shape = (cond_BD.shape[-1], self.parts, self.width)
    return Einsum('BD,Dcd->Bcd', shape, bias='cd', init=init, name='lin')(jax.nn.silu(cond_BD))


class Block(nn.Module):
  """A layer: self-attention by scales and MLP, each with AdaLN's gate, scale and shift."""

  c: object  # a Config of var or infinity

  def setup(self):
    c, std = self.c, 1 / math.sqrt(3 * self.c.width)
    F, shape, last = c.mlp, (c.width, c.heads, c.head_dim), std / math.sqrt(2 * c.depth)
    einsum = lambda eqn, shape, std, bias='': Einsum(
      eqn, shape, bias=bias, init=normal(std), **c.lora
    )
    factors = (c.gamma,) * 2 + (c.ada_std,) * 4

    def init(key, shape, dtype=jnp.float32):
      return jax.random.normal(key, shape, dtype) / math.sqrt(c.width) * jnp.array(factors)[:, None]

    self.ada = (
      self.param('ada', with_axes(init, 'cD'), (6, c.width))
      if c.shared_adaln
      else AdaLN(6, c.width, factors, std)
    )
    # Keys have no bias: softmax would not see it without l2-norm.
    self.q, self.v = (einsum('BLD,DNH->BNLH', shape, std, 'NH') for _ in 'qv')
    self.k = einsum('BLD,DNH->BNLH', shape, std)
    if c.l2_norm:
      four = nn.initializers.constant(math.log(4.0))
      self.temperature = self.param('temperature', with_axes(four, 'N'), (c.heads,))
    self.o = einsum('BNLH,NHD->BLD', (c.heads, c.head_dim, c.width), last, 'D')
    self.fc1, self.fc2 = (
      einsum('BLD,DF->BLF', (c.width, F), std, 'F'),
      einsum('BLF,FD->BLD', (F, c.width), last, 'D'),
    )

  def __call__(self, x, cond, prefix, drop_path, causal, return_kv):
    return apply_streams(self.layer, x, cond, prefix, drop_path, causal, return_kv)

  def layer(self, x_BLD, cond, prefix, drop_path_B2, causal, return_kv):
    """(x_BLD, the layer's own {'k', 'v'}, with 'ada' if no prefix has it, or None).

    cond: the class embedding [B, D], or the shared modulation [B, 6, D]; None where `prefix` has
    the layer's own. prefix: None, or {'segments': pairs of keys and values of the tokens before,
    'ada' [B, 6, D]}. causal: a token sees its own scale and coarser ones alone; else it sees all.
    """
    ada_B6D = prefix['ada'] if prefix is not None else self.modulation(cond)
    parts = jnp.split(ada_B6D, 6, 1)
    x_BLD, (k, v) = self.attention(
      x_BLD, parts[::2], () if prefix is None else prefix['segments'], drop_path_B2, causal
    )
    x_BLD = self.mlp(x_BLD, parts[1::2], drop_path_B2)
    new_kv = {'k': k, 'v': v} if return_kv else None
    if return_kv and prefix is None:
      new_kv['ada'] = ada_B6D
    return x_BLD, new_kv

  def attention(self, x_BLD, ada, prefix_kv, drop_path_B2, causal, apply_rope=None):
    """(x_BLD with the first branch added, its own (k, v)). ada: gate, scale and shift, each [B, 1,
    D]. prefix_kv: pairs of keys and values. apply_rope: of float32 queries and keys."""
    gate, scale, shift = ada
    y_BLD = (norms.layer_norm(x_BLD) * (1 + scale) + shift).astype(x_BLD.dtype)
    q_BNLH, k_BNSH, v_BNSH, scale = self.heads(y_BLD, apply_rope)
    segments = [(k, v, None) for k, v in prefix_kv]
    L = x_BLD.shape[1]
    segments.append(
      (k_BNSH, v_BNSH, masks.causal_by_scale(self.c.scales)[:L, :L] if causal else None)
    )
    o_BNLH = attention.attend(q_BNLH, segments, scale=scale, kernel=self.c.attention)
    return x_BLD + self.branch(self.o(o_BNLH), gate, drop_path_B2, 0), (k_BNSH, v_BNSH)

  def mlp(self, x_BLD, ada, drop_path_B2):
    """x_BLD with the second branch added."""
    gate, scale, shift = ada
    y_BLD = (norms.layer_norm(x_BLD) * (1 + scale) + shift).astype(x_BLD.dtype)
    y_BLD = self.fc2(jax.nn.gelu(self.fc1(y_BLD), approximate=True))
    return x_BLD + self.branch(y_BLD, gate, drop_path_B2, 1)

  def modulation(self, cond):
    """ada_B6D: gates, scales and shifts of both branches."""
    return self.ada.astype(cond.dtype)[None] + cond if self.c.shared_adaln else self.ada(cond)

  def heads(self, y_BLD, apply_rope=None):
    """(q_BNLH, k_BNLH, v_BNLH, the scale of the logits)."""
    q, k, v = self.q(y_BLD), self.k(y_BLD), self.v(y_BLD)
    if not self.c.l2_norm:
      return q, k, v, 0.25 / math.sqrt(self.c.head_dim)
    temperature_1N11 = jnp.exp(jnp.minimum(self.temperature, attention.LN_100))[None, :, None, None]
    q, k = norms.l2_normalize(q) * temperature_1N11, norms.l2_normalize(k)
    if apply_rope:
      q, k = apply_rope(q), apply_rope(k)
    return q.astype(y_BLD.dtype), k.astype(y_BLD.dtype), v, 1.0

  def branch(self, y_BLD, gate_B1D, drop_path_B2, which):
    """y_BLD as it is added: gated, and dropped by the factors of branch 0 or 1."""
    y_BLD = y_BLD * gate_B1D.astype(y_BLD.dtype)
    return (
      y_BLD
      if drop_path_B2 is None
      else y_BLD * drop_path_B2[:, which, None, None].astype(y_BLD.dtype)
    )


def apply_streams(layer, x, cond, prefix, drop_path, causal, return_kv):
  """Applies one layer to several groups of rows after a single FSDP gather; only the first group
  has a gradient. x, cond, drop_path: tuples, one for each group. Returns (x of each group, what
  `layer` returns besides for the first)."""
  first, new_kv = layer(x[0], cond[0], prefix, drop_path[0], causal, return_kv)
  rest = [
    layer(x_BLD, c, None, drop, causal, False)[0]
    for x_BLD, c, drop in zip(x[1:], cond[1:], drop_path[1:])
  ]
  return (first, *jax.lax.stop_gradient(rest)), new_kv


def scan_blocks(block, c):
  """c.depth layers of `block`, whose call has the arguments of apply_streams after `layer`."""
  return stack.scan_layers(
    block, c, c.depth, (nn.broadcast, 0, 0, nn.broadcast, nn.broadcast), static=(5, 6)
  )


def apply_layers(blocks, x, cond, prefix, drop_path, causal, return_kv):
  """(x_BLD after all layers, keys and values by layer or None) of one group of rows."""
  (x_BLD,), new_kv = blocks((shard(x, 'BLD'),), (cond,), prefix, (drop_path,), causal, return_kv)
  return x_BLD, new_kv


def teacher_forced(blocks, x_BLD, cond, head_B2D, drop_path_BX2, n_detached):
  """(x_BLD after all layers, head_B2D) of teacher forcing, where the last `n_detached` rows have no
  gradient. cond: a pytree that leads with B. head_B2D: scale and shift of the last normalisation.
  """
  drop_path_XB2 = None if drop_path_BX2 is None else jnp.swapaxes(drop_path_BX2, 0, 1)
  if not n_detached:
    return apply_layers(blocks, x_BLD, cond, None, drop_path_XB2, True, False)[0], head_B2D
  stop, n = jax.lax.stop_gradient, len(x_BLD) - n_detached
  cut = lambda x, axis: (None, None) if x is None else jnp.split(x, [n], axis)
  (x, x_detached), (head, head_detached), drop_path = (
    cut(*part) for part in ((x_BLD, 0), (head_B2D, 0), (drop_path_XB2, 1))
  )
  parts = jax.tree.map(lambda x: cut(x, 0), cond)
  cond, cond_detached = (jax.tree.map(lambda _, part, i=i: part[i], cond, parts) for i in (0, 1))
  rows = shard(x, 'BLD'), shard(stop(x_detached), 'BLD')
  x, _ = blocks(rows, (cond, stop(cond_detached)), None, tuple(drop_path), True, False)
  return jnp.concatenate(x), jnp.concatenate([head, stop(head_detached)])


def init_params(model, key, prompt_B, inputs_BLC):
  """Boxed parameters of a model that is called with a prompt and inputs of these shapes."""
  return lora.init_params(
    lambda c, key: type(model)(c).init(key, prompt_B, inputs_BLC)['params'], model.c, key
  )


def before_head(x_BLD, head_B2D, dtype):
  """The last normalisation of x_BLD, by the scale and shift head_B2D: what the head reads, in
  `dtype`."""
  scale, shift = jnp.split(head_B2D, 2, 1)
  return (norms.layer_norm(x_BLD) * (1 + scale) + shift).astype(dtype)


def torch_block(ours, theirs, attention):
  """The table of a types.TorchLayout for attention and MLP of a Block with l2_norm. Their keys
  begin with `theirs`, those of the attention with `theirs`.`attention`."""
  sa, ffn = f'{theirs}.{attention}', f'{theirs}.ffn'
  return {
    f'{ours}/{{q,k,v}}/w': (f'{sa}.mat_qkv.weight', '(g N H) D -> g D N H'),
    f'{ours}/q/b': (f'{sa}.q_bias', '(N H) -> N H'),
    f'{ours}/v/b': (f'{sa}.v_bias', '(N H) -> N H'),
    f'{ours}/o/w': (f'{sa}.proj.weight', 'D (N H) -> N H D'),
    f'{ours}/o/b': (f'{sa}.proj.bias', 'D -> D'),
    f'{ours}/fc1/w': (f'{ffn}.fc1.weight', 'F D -> D F'),
    f'{ours}/fc1/b': (f'{ffn}.fc1.bias', 'F -> F'),
    f'{ours}/fc2/w': (f'{ffn}.fc2.weight', 'D F -> F D'),
    f'{ours}/fc2/b': (f'{ffn}.fc2.bias', 'D -> D'),
  }


# The same of what all decoders have around their layers, and of AdaLN that the layers share.
TORCH = {
  'levels': ('lvl_embed.weight', 's D -> s D'),
  'start': ('pos_start', '1 1 D -> D'),
  'words/w': ('word_embed.weight', 'D C -> C D'),
  'words/b': ('word_embed.bias', 'D -> D'),
  'head/w': ('head.weight', 'V D -> D V'),
  'head/b': ('head.bias', 'V -> V'),
  'head_ada/lin/w': ('head_nm.ada_lin.1.weight', '(c d) D -> D c d'),
  'head_ada/lin/b': ('head_nm.ada_lin.1.bias', '(c d) -> c d'),
}
SHARED_ADALN = {
  'shared/lin/w': ('shared_ada_lin.1.weight', '(c d) D -> D c d'),
  'shared/lin/b': ('shared_ada_lin.1.bias', '(c d) -> c d'),
}
