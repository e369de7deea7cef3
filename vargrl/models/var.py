"""VAR: next-scale prediction (https://arxiv.org/abs/2404.02905), as in FoundationVision/VAR.

The decoder sees continuous inputs: for scale i the tokenizer's reconstruction from scales < i,
resized to scale i. It does not know the tokenizer, the rewards, or who computes its loss.
"""
import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vargrl.models import cache as caches
from vargrl.models import layers, lora
from vargrl.models.layers import Einsum, letters
from vargrl.parallel.rules import gather, shard
from vargrl.types import Layout, bounds, offsets

SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


@dataclasses.dataclass(frozen=True)
class Config:
  depth: int
  width: int
  heads: int
  scales: tuple[int, ...] = SCALES_256
  vocab: int = 4096
  channels: int = 32
  classes: int = 1000         # class `classes` is the unconditional one
  mlp_ratio: int = 4
  shared_adaln: bool = False  # one AdaLN for all blocks plus an offset for each (d36-512)
  l2_norm: bool = True        # unit queries and keys with a learned temperature per head
  gamma: float = 1e-3         # scale of the residual gates at init
  dtype: str = 'float32'
  attention: str = 'dense'    # 'splash': teacher forcing without L x L numbers, on a TPU; see models/splash.py
  remat: str = 'none'         # 'blocks' or 'dots' keep less for the backward pass; see layers.REMAT
  lora_rank: int = 0          # > 0: adapters beside q k v o fc1 fc2 of every block; see layers.Einsum
  lora_alpha: float = 0.      # they count alpha / rank

  def __post_init__(self):
    if self.width % self.heads:
      raise ValueError(f'policy: width {self.width}, expected a multiple of {self.heads} heads')
    layers.check_knobs(self)

  @property
  def length(self): return sum(s * s for s in self.scales)
  @property
  def head_dim(self): return self.width // self.heads
  @property
  def offsets(self): return offsets(self.scales)
  @property
  def lora(self): return {'rank': self.lora_rank, 'alpha': self.lora_alpha}


def published(depth, gamma, **changes):
  return Config(depth=depth, width=64 * depth, heads=depth, gamma=gamma, **changes)


HUB = 'FoundationVision/var'  # where the published files are, on huggingface.co
WRAPPERS = ('module.', '_orig_mod.')  # what DDP and torch.compile put before every key

# https://github.com/FoundationVision/VAR
SIZES = {
    'd16': published(16, 1e-3),
    'd20': published(20, 1e-3),
    'd24': published(24, 1e-4),
    'd30': published(30, 1e-5),
    'd36-512': published(36, 5e-6, scales=SCALES_512, shared_adaln=True),
    # Small ones: same modules, for a laptop.
    'digits': Config(3, 96, 3, scales=(1, 2, 3, 4), vocab=128, channels=8, classes=10, gamma=0.1),
    'smoke': Config(2, 32, 2, scales=(1, 2, 4), vocab=32, channels=4, classes=10, gamma=0.1),
}


class AdaLN(nn.Module):
  """cond_BD -> `parts` modulations [B, 1, d] each, in the official order."""
  parts: int
  width: int
  factors: tuple[float, ...]  # of the init of each part
  std: float

  @nn.compact
  def __call__(self, cond_BD):
    def init(key, shape, dtype=jnp.float32):
      return self.std * jax.random.normal(key, shape, dtype) * jnp.array(self.factors)[None, :, None]
    shape = (cond_BD.shape[-1], self.parts, self.width)
    return Einsum('BD,Dcd->Bcd', shape, bias='cd', init=init, name='lin')(jax.nn.silu(cond_BD))


class Block(nn.Module):
  c: Config

  def setup(self):
    c, std = self.c, 1 / math.sqrt(3 * self.c.width)
    F, shape, last = c.mlp_ratio * c.width, (c.width, c.heads, c.head_dim), std / math.sqrt(2 * c.depth)
    einsum = lambda eqn, shape, std, bias='': Einsum(eqn, shape, bias=bias, init=layers.normal(std), **c.lora)
    factors = (c.gamma,) * 2 + (.5,) * 4
    def init(key, shape, dtype=jnp.float32):
      return jax.random.normal(key, shape, dtype) / math.sqrt(c.width) * jnp.array(factors)[:, None]
    self.ada = self.param('ada', letters(init, 'cD'), (6, c.width)) if c.shared_adaln else AdaLN(
        6, c.width, factors, std)
    # Keys have no bias: softmax would not see it without l2-norm.
    self.q, self.v = (einsum('BLD,DNH->BNLH', shape, std, 'NH') for _ in 'qv')
    self.k = einsum('BLD,DNH->BNLH', shape, std)
    if c.l2_norm:
      four = nn.initializers.constant(math.log(4.))
      self.temperature = self.param('temperature', letters(four, 'N'), (c.heads,))
    self.o = einsum('BNLH,NHD->BLD', (c.heads, c.head_dim, c.width), last, 'D')
    self.fc1, self.fc2 = einsum('BLD,DF->BLF', (c.width, F), std, 'F'), einsum('BLF,FD->BLD', (F, c.width), last, 'D')

  def __call__(self, x, cond, prefix, keep, masked, keep_cache):
    """One layer. x, cond, keep: one for each stream of rows, of which the first alone has a gradient; both see weights
    that are gathered once."""
    live, kept = self.layer(x[0], cond[0], prefix, keep[0], masked, keep_cache)
    rest = [self.layer(*stream, None, k, masked, False)[0] for *stream, k in zip(x[1:], cond[1:], keep[1:])]
    return (live, *jax.lax.stop_gradient(rest)), kept

  def layer(self, x_BLD, cond, prefix, keep_B2, masked, keep_cache):
    """With a cache: prefix {'segments': pairs of keys and values, 'ada'}.

    cond: the class embedding [B, D], or the shared modulation [B, 6, D]; None when prefix holds it. masked: a
    token sees its own scale and coarser ones alone, else all.
    """
    ada_B6D = prefix['ada'] if prefix is not None else self.modulation(cond)
    g1, g2, scale1, scale2, shift1, shift2 = jnp.split(ada_B6D, 6, 1)

    y_BLD = (layers.layer_norm(x_BLD) * (1 + scale1) + shift1).astype(x_BLD.dtype)
    q_BNLH, k_BNSH, v_BNSH, scale = self.heads(y_BLD)
    segments = [] if prefix is None else [(k, v, None) for k, v in prefix['segments']]
    L = x_BLD.shape[1]
    segments.append((k_BNSH, v_BNSH, layers.causal_by_scale(self.c.scales)[:L, :L] if masked else None))
    o_BNLH = layers.attend(q_BNLH, segments, scale=scale, kernel=self.c.attention)
    x_BLD += self.branch(self.o(o_BNLH), g1, keep_B2, 0)

    y_BLD = (layers.layer_norm(x_BLD) * (1 + scale2) + shift2).astype(x_BLD.dtype)
    y_BLD = self.fc2(jax.nn.gelu(self.fc1(y_BLD), approximate=True))
    x_BLD += self.branch(y_BLD, g2, keep_B2, 1)
    kept = {'k': k_BNSH, 'v': v_BNSH} if keep_cache else None
    if keep_cache and prefix is None: kept['ada'] = ada_B6D
    return x_BLD, kept

  def modulation(self, cond):
    return self.ada.astype(cond.dtype)[None] + cond if self.c.shared_adaln else self.ada(cond)

  def heads(self, y_BLD):
    """q, k, v and the softmax scale."""
    q, k, v = self.q(y_BLD), self.k(y_BLD), self.v(y_BLD)
    if not self.c.l2_norm: return q, k, v, 0.25 / math.sqrt(self.c.head_dim)
    temperature_1N11 = jnp.exp(jnp.minimum(self.temperature, layers.LN_100))[None, :, None, None]
    return (layers.unit(q) * temperature_1N11).astype(y_BLD.dtype), \
        layers.unit(k).astype(y_BLD.dtype), v, 1.

  def branch(self, y_BLD, gate_B1D, keep_B2, which):
    y_BLD = y_BLD * gate_B1D.astype(y_BLD.dtype)
    return y_BLD if keep_B2 is None else y_BLD * keep_B2[:, which, None, None].astype(y_BLD.dtype)


class Model(nn.Module):
  """forward: teacher forcing. prefill + extend: the same numbers, scale by scale, with a cache."""
  c: Config

  def setup(self):
    c = self.c
    init = layers.normal(1 / math.sqrt(3 * c.width))
    self.blocks = layers.scanned(Block, c, c.depth, (nn.broadcast, 0, 0, nn.broadcast, nn.broadcast), static=(5, 6))
    table = lambda name, *shape: self.param(name, letters(init, 'VD' if len(shape) > 1 else 'D'), shape)
    self.classes = table('classes', c.classes + 1, c.width)
    self.levels = self.param('levels', letters(init, 'sD'), (len(c.scales), c.width))
    self.positions = self.param('positions', letters(init, 'LD'), (c.length, c.width))
    self.start = table('start', c.width)
    self.words = Einsum('BLC,CD->BLD', (c.channels, c.width), bias='D', init=init)
    if c.shared_adaln: self.shared = AdaLN(6, c.width, (1.,) * 6, 1 / math.sqrt(3 * c.width))
    self.head_ada = AdaLN(2, c.width, (.5,) * 2, 1 / math.sqrt(3 * c.width))
    self.head = Einsum('BLD,DV->BLV', (c.width, c.vocab), bias='V',
                       init=layers.normal(0.02 / math.sqrt(3 * c.width)), out=jnp.float32)

  def __call__(self, label_B, inputs_BLC, keep_BX2=None):
    return self.logits(*self.forward(label_B, inputs_BLC, keep_BX2))

  def stack(self, x, cond, prefix, keep, masked, keep_cache):
    """All blocks on one stream of rows."""
    (x_BLD,), kept = self.blocks((shard(x, 'BLD'),), (cond,), prefix, (keep,), masked, keep_cache)
    return x_BLD, kept

  def condition(self, label_B):
    """Class embedding [B, D], what the blocks are conditioned on, and the head's modulation."""
    class_BD = gather(self.classes.astype(self.c.dtype), 'VD', 'VD')[label_B]
    return class_BD, self.shared(class_BD) if self.c.shared_adaln else class_BD, self.head_ada(class_BD)

  def embed(self, start, inputs_BLC):
    """Inputs of tokens start, start + 1, ... (start > 0) with their level and position added."""
    stop = start + inputs_BLC.shape[1]
    return self.words(inputs_BLC.astype(self.c.dtype)) + self.place(start, stop)

  def place(self, start, stop):
    level_L = layers.level(self.c.scales)[start:stop]
    return (self.levels[level_L] + self.positions[start:stop]).astype(self.c.dtype)[None]

  def forward(self, label_B, inputs_BLC, keep_BX2=None, still=0):
    """inputs_BLC: tokens 1 .. L-1 of the schedule, or fewer whole scales. -> (x_BLD, head_B2D).

    keep_BX2: drop-path factors of each row, layer and branch (0 or 1 / kept share); None: no drop. still: so many of
    the last rows have no gradient.
    """
    class_BD, cond, head_B2D = self.condition(label_B)
    x_B1D = (class_BD + self.start.astype(class_BD.dtype)[None])[:, None] + self.place(0, 1)
    x_BLD = jnp.concatenate([x_B1D, self.embed(1, inputs_BLC)], 1)
    keep_XB2 = None if keep_BX2 is None else jnp.swapaxes(keep_BX2, 0, 1)
    if not still: return self.stack(x_BLD, cond, None, keep_XB2, True, False)[0], head_B2D
    stop, n = jax.lax.stop_gradient, len(x_BLD) - still
    cut = lambda x, axis: (None, None) if x is None else jnp.split(x, [n], axis)
    (x, x_still), (cond, cond_still), (head, head_still), keep = (
        cut(*part) for part in ((x_BLD, 0), (cond, 0), (head_B2D, 0), (keep_XB2, 1)))
    streams = shard(x, 'BLD'), shard(stop(x_still), 'BLD')
    x, _ = self.blocks(streams, (cond, stop(cond_still)), None, tuple(keep), True, False)
    return jnp.concatenate(x), jnp.concatenate([head, stop(head_still)])

  def prefill(self, label_B):
    """The first scale, which only the label decides: logits_B1V of token 0 and the cache."""
    class_BD, cond, head_B2D = self.condition(label_B)
    x_B1D = (class_BD + self.start.astype(class_BD.dtype)[None])[:, None] + self.place(0, 1)
    x_B1D, kept = self.stack(x_B1D, cond, None, None, False, True)
    given = {'ada': kept['ada'], 'head': head_B2D}
    return self.logits(x_B1D, head_B2D), caches.Cache(((kept['k'], kept['v']),), None, given)

  def extend(self, inputs_BLC, cache, scale):
    """Logits of scale number `scale` > 0 from its inputs, and the cache extended by it."""
    begin, stop = self.c.offsets[scale:scale + 2]
    assert (cache.length, inputs_BLC.shape[1]) == (begin, stop - begin)
    prefix = {'segments': caches.fork(cache).shared, 'ada': cache.given['ada']}
    x_BLD, new = self.stack(self.embed(begin, inputs_BLC), None, prefix, None, False, True)
    return self.logits(x_BLD, cache.given['head']), caches.extended(cache, (new['k'], new['v']))

  def logits(self, x_BLD, head_B2D):
    """float32 logits_BLV; x_BLD may be any slice of positions."""
    scale, shift = jnp.split(head_B2D, 2, 1)
    y_BLD = layers.layer_norm(x_BLD) * (1 + scale) + shift
    return self.head(y_BLD.astype(self.c.dtype))


def init(model, key):
  """Boxed parameters (each knows its letters). With adapters, the others are those that the key gives without."""
  inputs_BLC = jnp.zeros((1, model.c.length - 1, model.c.channels))
  draw = lambda c, key: Model(c).init(key, jnp.zeros(1, jnp.int32), inputs_BLC)['params']
  return lora.drawn(draw, model.c, key)


def with_head(c, params):
  """params for several calls of `logits`."""
  head = params['head']
  return params | {'head': head | {'w': layers.whole(head['w'], 'DV', c.dtype)}}


def torch_layouts(c):
  """The official state dict, alone or in a checkpoint of the official trainer; see types.Layout."""
  return Layout(torch_table(c), torch_constants(c), nests=('trainer/var_wo_ddp',), prefixes=WRAPPERS),


def torch_table(c):
  table = {
      'classes': ('class_emb.weight', 'V D -> V D'),
      'levels': ('lvl_embed.weight', 's D -> s D'),
      'positions': ('pos_1LC', '1 L D -> L D'),
      'start': ('pos_start', '1 1 D -> D'),
      'words/w': ('word_embed.weight', 'D C -> C D'),
      'words/b': ('word_embed.bias', 'D -> D'),
      'head/w': ('head.weight', 'V D -> D V'),
      'head/b': ('head.bias', 'V -> V'),
      'head_ada/lin/w': ('head_nm.ada_lin.1.weight', '(c d) D -> D c d'),
      'head_ada/lin/b': ('head_nm.ada_lin.1.bias', '(c d) -> c d'),
      'blocks/{q,k,v}/w': ('blocks.{X}.attn.mat_qkv.weight', '(g N H) D -> g D N H'),
      'blocks/q/b': ('blocks.{X}.attn.q_bias', '(N H) -> N H'),
      'blocks/v/b': ('blocks.{X}.attn.v_bias', '(N H) -> N H'),
      'blocks/o/w': ('blocks.{X}.attn.proj.weight', 'D (N H) -> N H D'),
      'blocks/o/b': ('blocks.{X}.attn.proj.bias', 'D -> D'),
      'blocks/fc1/w': ('blocks.{X}.ffn.fc1.weight', 'F D -> D F'),
      'blocks/fc1/b': ('blocks.{X}.ffn.fc1.bias', 'F -> F'),
      'blocks/fc2/w': ('blocks.{X}.ffn.fc2.weight', 'D F -> F D'),
      'blocks/fc2/b': ('blocks.{X}.ffn.fc2.bias', 'D -> D'),
  }
  if c.l2_norm: table['blocks/temperature'] = ('blocks.{X}.attn.scale_mul_1H11', '1 N 1 1 -> N')
  if c.shared_adaln:
    return table | {
        'blocks/ada': ('blocks.{X}.ada_gss', '1 1 c D -> c D'),
        'shared/lin/w': ('shared_ada_lin.1.weight', '(c d) D -> D c d'),
        'shared/lin/b': ('shared_ada_lin.1.bias', '(c d) -> c d')}
  return table | {
      'blocks/ada/lin/w': ('blocks.{X}.ada_lin.1.weight', '(c d) D -> D c d'),
      'blocks/ada/lin/b': ('blocks.{X}.ada_lin.1.bias', '(c d) -> c d')}


def torch_constants(c):
  """Buffers of the official state dict, which only the config decides."""
  level_L = layers.level(c.scales)
  bias = np.where(layers.causal_by_scale(c.scales), 0., -np.inf).astype(np.float32)
  return {'lvl_1L': level_L[None].astype(np.int64), 'attn_bias_for_masking': bias[None, None]} | {
      f'blocks.{i}.attn.zero_k_bias': np.zeros(c.width, np.float32) for i in range(c.depth)}


def flops(c):
  """Multiply-adds x 2 of one forward pass of one row over all L tokens.

  Attention is counted block-causally: a token of scale i meets the keys of scales <= i alone.
  """
  dense = 2 * c.depth * (4 + 2 * c.mlp_ratio) * c.width ** 2 * c.length
  dense += 2 * c.depth * (10 + 2 * c.mlp_ratio) * c.lora_rank * c.width * c.length
  attention = c.depth * sum(4 * c.width * (b - a) * b for a, b in bounds(c.scales))
  ends = 2 * c.width * (c.vocab * c.length + c.channels * (c.length - 1))
  adaln = 2 * c.width ** 2 * (6 * (1 if c.shared_adaln else c.depth) + 2)
  return dense + attention + ends + adaln
