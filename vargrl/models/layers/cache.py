"""The key/value cache: an argument and a result.

Shared segments are read only: what all rollouts of a prompt have in common, the prompt or the first
scale, and what all continuations of a rollout have in common, its tokens up to where it branched.
They are computed once and left unbatched by the vmap over those who share them. `own` is a row's
own: it grows scale by scale, or has `room` for tokens to come, as a loop wants it. Attention takes
the list of segments with their masks; shared ones are never concatenated, or each row would have a
copy."""

from typing import Any

import flax
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Cache:
  """shared: pairs (k, v), oldest first; own: a pair, or None as long as it is empty; each [X, B, K,
  S, H]. given: whatever else the prompt decides once. count: None, or of an `own` with room how
  many tokens it has, int32. seen: {number of a shared segment: [B, S] bool, where its tokens are};
  the others are full."""

  shared: tuple
  own: Any
  given: Any
  count: Any = None
  seen: dict = flax.struct.field(default_factory=dict)

  @property
  def length(self):
    """Places in all segments."""
    return sum(k.shape[3] for k, _ in self.pairs)

  @property
  def pairs(self):
    """Of all segments, oldest first."""
    return self.shared if self.own is None else (*self.shared, self.own)

  @property
  def masks(self):
    """Of all segments, as attention.attend wants them: [B or 1, 1, S] bool, or None."""
    masks = [self.seen[i][:, None] if i in self.seen else None for i in range(len(self.shared))]
    if self.own is None:
      return tuple(masks)
    return *masks, None if self.count is None else (jnp.arange(self.own[0].shape[3]) < self.count)[
      None, None
    ]


def begun(new, seen_BS=None, cache=None):
  """A cache whose last segment is the pair `new` [X, B, K, S, H], read only; before it, what
  `cache` had.
  """
  cache = Cache((), None, None) if cache is None else fork(cache)
  seen = {} if seen_BS is None else {len(cache.shared): seen_BS}
  return cache.replace(shared=(*cache.shared, new), seen=cache.seen | seen)


def extended(cache, new):
  """The cache, its `own` segment longer by the pair `new` [X, B, K, L, H].

  Without room it is concatenated: a buffer for all scales would be copied in full, layer by layer,
  at each of them. With room, which must suffice, it is written in place."""
  if cache.count is not None:
    own = tuple(
      jax.lax.dynamic_update_slice_in_dim(a, b, cache.count, 3) for a, b in zip(cache.own, new)
    )
    return cache.replace(own=own, count=cache.count + new[0].shape[3])
  own = (
    new if cache.own is None else tuple(jnp.concatenate(pair, 3) for pair in zip(cache.own, new))
  )
  return cache.replace(own=own)


def room(cache, length):
  """The cache with a fresh `own` that has room for so many tokens."""
  cache = fork(cache)
  k, v = cache.shared[0]
  empty = lambda x: jnp.zeros((*x.shape[:3], length, x.shape[4]), x.dtype)
  return cache.replace(own=(empty(k), empty(v)), count=jnp.int32(0))


def fork(cache, seen_BS=None):
  """The cache with its `own` segment read only, and a fresh one: what is written from here on is
  not seen by others who go on from the same cache. seen_BS: where an `own` with room has tokens;
  None: up to its count."""
  if cache.own is None:
    return cache
  seen = cache.seen
  if cache.count is not None:
    seen = seen | {len(cache.shared): cache.masks[-1][:, 0] if seen_BS is None else seen_BS}
  return cache.replace(shared=cache.pairs, own=None, count=None, seen=seen)
