"""The key/value cache: an argument and a result.

Shared segments are read only: what all rollouts of a prompt have in common, the first scale, and what
all continuations of a rollout have in common, its tokens up to where it branched. They are computed
once and left unbatched by the vmap over those who share them. `own` is a row's own: written scale by
scale, read up to `start`. Attention takes the list of segments; they are never concatenated.
"""
from typing import Any

import flax
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Cache:
  """shared: pairs (k, v), oldest first; own: a pair; each [X, B, K, S, H]. given: whatever else the
  prompt decides once."""
  shared: tuple
  own: tuple
  given: Any

  @property
  def length(self):
    """Tokens in the shared segments: where `own` begins."""
    return sum(k.shape[3] for k, _ in self.shared)


def empty(layers, batch, heads, length, head_dim, dtype):
  """An `own` pair with room for `length` tokens."""
  shape = (layers, batch, heads, length, head_dim)
  return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)


def write(own, new, start):
  """`own` with the pair `new` [X, B, K, L, H] at S = start, a Python int. The one cache write."""
  return tuple(jax.lax.dynamic_update_slice_in_dim(o, n.astype(o.dtype), start, 3)
               for o, n in zip(own, new))


def fork(cache, room):
  """The cache with its `own` segment, which must be full, read only, and a fresh one with room for `room`
  tokens: what is written from here on is not seen by others who go on from the same cache."""
  layers, batch, heads, _, head_dim = cache.own[0].shape
  own = empty(layers, batch, heads, room, head_dim, cache.own[0].dtype)
  return cache.replace(shared=(*cache.shared, cache.own), own=own)
