"""What next-scale decoders share: their blocks (AdaLN, attention by scales), the scan over them,
and what is called on several streams of rows."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vargrl.models.layers import attention, lora, masks, norms, stack
from vargrl.models.layers.einsum import Einsum, letters, normal, whole
from vargrl.parallel.rules import shard


def check(c):
  """ValueError for a Config that no decoder can be made of."""
  if c.width % c.heads:
    raise ValueError(f'policy: width {c.width}, expected a multiple of {c.heads} heads')
  stack.check_knobs(c)


class AdaLN(nn.Module):
  """cond_BD -> `parts` modulations [B, 1, d] each, in the official order."""

  parts: int
  width: int
  factors: tuple[float, ...]  # of the init of each part
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
      self.param('ada', letters(init, 'cD'), (6, c.width))
      if c.shared_adaln
      else AdaLN(6, c.width, factors, std)
    )
    # Keys have no bias: softmax would not see it without l2-norm.
    self.q, self.v = (einsum('BLD,DNH->BNLH', shape, std, 'NH') for _ in 'qv')
    self.k = einsum('BLD,DNH->BNLH', shape, std)
    if c.l2_norm:
      four = nn.initializers.constant(math.log(4.0))
      self.temperature = self.param('temperature', letters(four, 'N'), (c.heads,))
    self.o = einsum('BNLH,NHD->BLD', (c.heads, c.head_dim, c.width), last, 'D')
    self.fc1, self.fc2 = (
      einsum('BLD,DF->BLF', (c.width, F), std, 'F'),
      einsum('BLF,FD->BLD', (F, c.width), last, 'D'),
    )

  def __call__(self, x, cond, prefix, keep, masked, keep_cache):
    return streams(self.layer, x, cond, prefix, keep, masked, keep_cache)

  def layer(self, x_BLD, cond, prefix, keep_B2, masked, keep_cache):
    """With a cache: prefix {'segments': pairs of keys and values, 'ada'}.

    cond: the class embedding [B, D], or the shared modulation [B, 6, D]; None when prefix holds it.
    masked: a token sees its own scale and coarser ones alone, else all."""
    ada_B6D = prefix['ada'] if prefix is not None else self.modulation(cond)
    parts = jnp.split(ada_B6D, 6, 1)
    x_BLD, (k, v) = self.attention(
      x_BLD, parts[::2], () if prefix is None else prefix['segments'], keep_B2, masked
    )
    x_BLD = self.mlp(x_BLD, parts[1::2], keep_B2)
    kept = {'k': k, 'v': v} if keep_cache else None
    if keep_cache and prefix is None:
      kept['ada'] = ada_B6D
    return x_BLD, kept

  def attention(self, x_BLD, ada, past, keep_B2, masked, turn=None):
    """The first branch added, and its own (k, v). ada: gate, scale and shift. past: pairs of keys
    and values. turn: what positions do to float32 queries and keys."""
    gate, scale, shift = ada
    y_BLD = (norms.layer_norm(x_BLD) * (1 + scale) + shift).astype(x_BLD.dtype)
    q_BNLH, k_BNSH, v_BNSH, scale = self.heads(y_BLD, turn)
    segments = [(k, v, None) for k, v in past]
    L = x_BLD.shape[1]
    segments.append(
      (k_BNSH, v_BNSH, masks.causal_by_scale(self.c.scales)[:L, :L] if masked else None)
    )
    o_BNLH = attention.attend(q_BNLH, segments, scale=scale, kernel=self.c.attention)
    return x_BLD + self.branch(self.o(o_BNLH), gate, keep_B2, 0), (k_BNSH, v_BNSH)

  def mlp(self, x_BLD, ada, keep_B2):
    """The second branch added."""
    gate, scale, shift = ada
    y_BLD = (norms.layer_norm(x_BLD) * (1 + scale) + shift).astype(x_BLD.dtype)
    y_BLD = self.fc2(jax.nn.gelu(self.fc1(y_BLD), approximate=True))
    return x_BLD + self.branch(y_BLD, gate, keep_B2, 1)

  def modulation(self, cond):
    return self.ada.astype(cond.dtype)[None] + cond if self.c.shared_adaln else self.ada(cond)

  def heads(self, y_BLD, turn=None):
    """q, k, v and the softmax scale."""
    q, k, v = self.q(y_BLD), self.k(y_BLD), self.v(y_BLD)
    if not self.c.l2_norm:
      return q, k, v, 0.25 / math.sqrt(self.c.head_dim)
    temperature_1N11 = jnp.exp(jnp.minimum(self.temperature, attention.LN_100))[None, :, None, None]
    q, k = norms.unit(q) * temperature_1N11, norms.unit(k)
    if turn:
      q, k = turn(q), turn(k)
    return q.astype(y_BLD.dtype), k.astype(y_BLD.dtype), v, 1.0

  def branch(self, y_BLD, gate_B1D, keep_B2, which):
    y_BLD = y_BLD * gate_B1D.astype(y_BLD.dtype)
    return y_BLD if keep_B2 is None else y_BLD * keep_B2[:, which, None, None].astype(y_BLD.dtype)


def streams(layer, x, cond, prefix, keep, masked, keep_cache):
  """layer(...) of each stream of rows. x, cond, keep: one for each, of which the first alone has a
  gradient; all see weights that are gathered once."""
  live, kept = layer(x[0], cond[0], prefix, keep[0], masked, keep_cache)
  rest = [
    layer(*stream, None, k, masked, False)[0] for *stream, k in zip(x[1:], cond[1:], keep[1:])
  ]
  return (live, *jax.lax.stop_gradient(rest)), kept


def scanned(block, c):
  """c.depth layers of `block`, whose call has the arguments of `streams`."""
  return stack.scanned(
    block, c, c.depth, (nn.broadcast, 0, 0, nn.broadcast, nn.broadcast), static=(5, 6)
  )


def alone(blocks, x, cond, prefix, keep, masked, keep_cache):
  """All layers on one stream of rows."""
  (x_BLD,), kept = blocks((shard(x, 'BLD'),), (cond,), prefix, (keep,), masked, keep_cache)
  return x_BLD, kept


def forced(blocks, x_BLD, cond, head_B2D, keep_BX2, still):
  """(x_BLD after all layers, head_B2D) of teacher forcing; the last `still` rows have no gradient.
  cond: a pytree that leads with B."""
  keep_XB2 = None if keep_BX2 is None else jnp.swapaxes(keep_BX2, 0, 1)
  if not still:
    return alone(blocks, x_BLD, cond, None, keep_XB2, True, False)[0], head_B2D
  stop, n = jax.lax.stop_gradient, len(x_BLD) - still
  cut = lambda x, axis: (None, None) if x is None else jnp.split(x, [n], axis)
  (x, x_still), (head, head_still), keep = (
    cut(*part) for part in ((x_BLD, 0), (head_B2D, 0), (keep_XB2, 1))
  )
  parts = jax.tree.map(lambda x: cut(x, 0), cond)
  cond, cond_still = (jax.tree.map(lambda _, part, i=i: part[i], cond, parts) for i in (0, 1))
  rows = shard(x, 'BLD'), shard(stop(x_still), 'BLD')
  x, _ = blocks(rows, (cond, stop(cond_still)), None, tuple(keep), True, False)
  return jnp.concatenate(x), jnp.concatenate([head, stop(head_still)])


def drawn(model, key, prompt_B, inputs_BLC):
  """`init` of a model that is called with these."""
  return lora.drawn(
    lambda c, key: type(model)(c).init(key, prompt_B, inputs_BLC)['params'], model.c, key
  )


def headed(head, x_BLD, head_B2D, dtype):
  """head(the last normalisation of x), head_B2D being its scale and shift."""
  scale, shift = jnp.split(head_B2D, 2, 1)
  y_BLD = norms.layer_norm(x_BLD) * (1 + scale) + shift
  return head(y_BLD.astype(dtype))


def with_head(c, params):
  """params for several calls of `logits`."""
  head = params['head']
  return params | {'head': head | {'w': whole(head['w'], 'DV', c.dtype)}}


def torch_block(ours, theirs, attention):
  """Rows of a TorchLayout's table for the attention and the mlp of a Block with l2_norm: their names
  begin with `theirs`, and those of the attention go on with `attention`."""
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


# The same of what all decoders have around their blocks, and of AdaLN that the blocks share.
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
