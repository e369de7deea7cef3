"""A small decoder of two experts, 'text' and 'image', as a net of models/nets/block.py: what the
kinds of toy_kinds/ are tested on. It knows no kind.

Each expert has weights of its own, attention takes the keys of both. A prompt is {'tokens': int32
[S], padded at the end; 'length': so many count} and maybe 'codes': tokens int32 [L] of a picture
that it shows, or soft ones [L, V], and what is given of a plan, by the names of its segments.
"""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np

from vargrl.models.nets.block import Block
from vargrl.parallel.rules import shard

NET, PROMPT = 'toy_model', ('tokens', 'length')


@dataclasses.dataclass(frozen=True)
class Config:
  """words, codes: sizes of the two vocabularies; code number `codes` is the mask. channels: of a
  latent. places: positions that there are embeddings of."""

  width: int = 16
  heads: int = 2
  mlp: int = 32
  depth: int = 2
  words: int = 12
  codes: int = 8
  channels: int = 3
  places: int = 64
  dtype: str = 'float32'


@dataclasses.dataclass(frozen=True)
class Model:
  c: Config


def init(model, key):
  """Random weights, as large as they are at a start; letters in the names are their axes."""
  c, keys = model.c, iter(jax.random.split(key, 32))
  X, D, N, F, C = c.depth, c.width, c.heads, c.mlp, c.channels
  w = lambda fan, *shape: jax.random.normal(next(keys), shape) / np.sqrt(fan)

  def expert():
    qkv = {name: w(D, X, D, N, D // N) for name in 'qkv'}
    return qkv | {'o': w(D, X, N, D // N, D), 'up': w(D, X, D, F), 'down': w(F, X, F, D)}

  return {
    'experts': {'text': expert(), 'image': expert()},
    'words_VD': w(1, c.words, D),
    'codes_VD': w(1, c.codes + 1, D),
    'shown_VD': w(1, c.codes, D),
    'begin_D': w(1, D),
    'latent_CD': w(C, C, D),
    'time_tD': w(3, 3, D),
    'places_SD': w(4, c.places, D),
    'word_head_DV': w(4 * D, D, c.words),
    'code_head_DV': w(4 * D, D, c.codes),
    'velocity_head_DC': w(4 * D, D, C),
  }


@flax.struct.dataclass
class Part:
  """Keys and values [X, S, N, H] of consecutive places, and which of them exist."""

  k: jax.Array
  v: jax.Array
  valid_S: jax.Array


@flax.struct.dataclass
class Context:
  """parts: of what a row has so far. position: int32, of the next place. group_key: of what the
  rows of a prompt share at random; None where rows are scored."""

  parts: tuple
  position: jax.Array
  group_key: object


def norm(x):
  return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


def attend(q_BLNH, before, own, seen_LS):
  """before: (k_SNH, v_SNH) of parts that all B copies see; own: (k_BLNH, v_BLNH)."""
  logits = [jnp.einsum('BLNH,SNH->BNLS', q_BLNH, k) for k, _ in before]
  logits.append(jnp.einsum('BLNH,BSNH->BNLS', q_BLNH, own[0]))
  logits = jnp.concatenate(logits, -1) / np.sqrt(q_BLNH.shape[-1])
  weights = jax.nn.softmax(jnp.where(seen_LS[None, None], logits, -1e30), -1)
  *rest, last = jnp.split(weights, np.cumsum([len(k) for k, _ in before]), -1)
  out = jnp.einsum('BNLS,BSNH->BLNH', last, own[1])
  return out + sum(jnp.einsum('BNLS,SNH->BLNH', w, v) for w, (_, v) in zip(rest, before))


def seen_from(block, valid):
  """bool [L, S]: what its places see of parts before, valid_S each, and of the block itself."""
  own_LL = (block.level_L[:, None] >= block.level_L[None]) & block.valid_L[None]
  before_S = jnp.concatenate([*valid, jnp.zeros(0, bool)])
  before_LS = jnp.broadcast_to(before_S, (len(block.level_L), len(before_S)))
  return jnp.concatenate([before_LS, own_LL], 1)


def causal(x_LD, position, valid_L, expert):
  """The Block of one place after the other."""
  L = len(x_LD)
  return Block(x_LD[None], position + jnp.arange(L), valid_L, level_L=np.arange(L), expert=expert)


def canvases(x_BLD, position, kept=False):
  """The Block of B copies of places of a picture that all see each other."""
  L = x_BLD.shape[1]
  places = dict(level_L=np.zeros(L), expert='image', kept=kept)
  return Block(x_BLD, position + jnp.arange(L), jnp.ones(L, bool), **places)


@dataclasses.dataclass(frozen=True)
class Net:
  """model bound to weights. tokenizer, vq_params, settings: unused."""

  model: Model
  tokenizer: object
  params: dict
  vq_params: object = None
  settings: object = None

  CAST = ()

  @staticmethod
  def gather_head(model, params):
    return params

  def embed(self, table, t):
    """Vectors of tokens int32 [..], or of distributions [.., V] over them."""
    table_VD = self.params[table]
    if jnp.issubdtype(t.dtype, jnp.integer):
      return table_VD[t]
    return jnp.einsum('LV,VD->LD', t, table_VD[: t.shape[-1]])

  def prefill(self, prompt, group_key=None):
    context = Context((), jnp.int32(0), group_key)
    if 'codes' in prompt:
      x_LD = self.embed('shown_VD', prompt['codes'])
      block = canvases(x_LD[None], 0, kept=True).replace(expert='text')
      context = self.append(context, [block], len(x_LD))
    valid_S = jnp.arange(len(prompt['tokens'])) < prompt['length']
    x_SD = self.embed('words_VD', prompt['tokens'])
    block = causal(x_SD, context.position, valid_S, 'text')
    return self.append(context, [block], context.position + prompt['length'])

  def forward(self, context, blocks):
    return self.run(context.parts, blocks)[0]

  def append(self, context, blocks, position):
    """The context with the blocks that are kept."""
    parts = self.run(context.parts, [b for b in blocks if b.kept])[1]
    return context.replace(parts=(*context.parts, *parts), position=jnp.int32(position))

  def run(self, parts, blocks):
    """([h_BLD of each block], [Part of each that is kept]): a block sees the parts, the kept ones
    before it, and itself by its levels."""
    valid = [p.valid_S for p in parts]
    seen = []
    for b in blocks:
      seen.append(seen_from(b, valid))
      valid += [b.valid_L] if b.kept else []

    def layer(xs, weights):
      experts, before = weights
      before, new, out = list(before), [], []
      for b, x_BLD, seen_LS in zip(blocks, xs, seen):
        w, y_BLD = experts[b.expert], norm(x_BLD)
        q, k, v = (jnp.einsum('BLD,DNH->BLNH', y_BLD, w[name]) for name in 'qkv')
        x_BLD += jnp.einsum('BLNH,NHD->BLD', attend(q, before, (k, v), seen_LS), w['o'])
        inner_BLF = jax.nn.silu(jnp.einsum('BLD,DF->BLF', norm(x_BLD), w['up']))
        out.append(x_BLD + jnp.einsum('BLF,FD->BLD', inner_BLF, w['down']))
        if b.kept:
          new.append((k[0], v[0]))
          before.append(new[-1])
      return tuple(out), tuple(new)

    place = lambda b: self.params['places_SD'][b.position_L][None]
    xs = tuple(shard(b.x + place(b), 'BLD') for b in blocks)
    experts = {name: self.params['experts'][name] for name in {b.expert for b in blocks}}
    xs, new = jax.lax.scan(layer, xs, (experts, tuple((p.k, p.v) for p in parts)))
    kept = [b for b in blocks if b.kept]
    return [norm(x) for x in xs], [Part(*kv, b.valid_L) for kv, b in zip(new, kept)]

  def room(self, length):
    """A Part of places that do not exist yet."""
    c = self.model.c
    k = jnp.zeros((c.depth, length, c.heads, c.width // c.heads))
    return Part(k, k, jnp.zeros(length, bool))


def write(room, part, i):
  """`room` with the one place of `part` at i."""
  put = lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, i, 1)
  return Part(put(room.k, part.k), put(room.v, part.v), room.valid_S.at[i].set(True))


def straight_through(logits_LV, t_L):
  """One-hot tokens with the gradient of softmax(logits)."""
  p_LV = jax.nn.softmax(logits_LV)
  return jax.nn.one_hot(t_L, p_LV.shape[-1]) + p_LV - jax.lax.stop_gradient(p_LV)
