"""The key/value cache: an argument and a result.

Shared segments are read only: what all rollouts of a prompt have in common, the first scale, and what
all continuations of a rollout have in common, its tokens up to where it branched. They are computed
once and left unbatched by the vmap over those who share them. `own` is a row's own, and grows scale by
scale. Attention takes the list of segments; shared ones are never concatenated, or each row would have a copy.
"""
from typing import Any

import flax
import jax.numpy as jnp


@flax.struct.dataclass
class Cache:
  """shared: pairs (k, v), oldest first; own: a pair, or None as long as it is empty; each [X, B, K, S, H].
  given: whatever else the prompt decides once."""
  shared: tuple
  own: Any
  given: Any

  @property
  def length(self):
    """Tokens in all segments."""
    pairs = self.shared if self.own is None else (*self.shared, self.own)
    return sum(k.shape[3] for k, _ in pairs)


def extended(cache, new):
  """The cache, its `own` segment longer by the pair `new` [X, B, K, L, H]. A buffer with room for all tokens would be
  copied in full, layer by layer, at each scale."""
  own = new if cache.own is None else tuple(jnp.concatenate(pair, 3) for pair in zip(cache.own, new))
  return cache.replace(own=own)


def fork(cache):
  """The cache with its `own` segment read only, and a fresh one: what is written from here on is not seen by others
  who go on from the same cache."""
  return cache if cache.own is None else cache.replace(shared=(*cache.shared, cache.own), own=None)
