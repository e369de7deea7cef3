"""The key/value cache: an argument and a result.

Shared segments are read only: what all rollouts of a prompt have in common (the prompt, or the
first scale), and what all continuations of a rollout have in common (its tokens up to where it
branched). They are computed once and left unbatched by the vmap over those who share them. The
private segment is a row's own: it grows scale by scale, or is allocated for tokens to come, as a
loop needs it. Attention takes the list of segments with their masks; shared ones are never
concatenated, or each row would have a copy.
"""

from typing import Any

import flax
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Cache:
  """Keys and values of all layers.

  shared: pairs (k, v), oldest first, each [X, B, K, S, H]. private: a pair, or None while it is
  empty. prompt_state: whatever else the prompt decides once, a pytree. count: int32, how many
  tokens an allocated private segment has; None where it is always full. valid: {index of a shared
  segment: [B, S] bool}, where its tokens are; segments that are not in it are full.
  """

  shared: tuple
  private: Any
  prompt_state: Any
  count: Any = None
  valid: dict = flax.struct.field(default_factory=dict)

  @property
  def length(self):
    """Places in all segments."""
    return sum(k.shape[3] for k, _ in self.pairs)

  @property
  def pairs(self):
    """(k, v) of all segments, oldest first."""
    return self.shared if self.private is None else (*self.shared, self.private)

  @property
  def masks(self):
    """One per segment, as attention.attend takes them: [B or 1, 1, S] bool, or None."""
    masks = [self.valid[i][:, None] if i in self.valid else None for i in range(len(self.shared))]
    if self.private is None:
      return tuple(masks)
    if self.count is None:
      return *masks, None
    return *masks, (jnp.arange(self.private[0].shape[3]) < self.count)[None, None]


def append_prefix(new, valid_BS=None, cache=None):
  """A cache whose last segment is the read-only pair `new` [X, B, K, S, H], after what `cache` had.
  valid_BS: where `new` has tokens; None means everywhere."""
  cache = Cache((), None, None) if cache is None else freeze(cache)
  valid = {} if valid_BS is None else {len(cache.shared): valid_BS}
  return cache.replace(shared=(*cache.shared, new), valid=cache.valid | valid)


def append(cache, new):
  """The cache with its private segment longer by the pair `new` [X, B, K, L, H].

  An allocated segment, whose room must suffice, is written in place. Any other is concatenated: a
  buffer for all scales would be copied in full, layer by layer, at each of them.
  """
  if cache.count is not None:
    private = tuple(
      jax.lax.dynamic_update_slice_in_dim(a, b, cache.count, 3) for a, b in zip(cache.private, new)
    )
    return cache.replace(private=private, count=cache.count + new[0].shape[3])
  if cache.private is None:
    return cache.replace(private=new)
  return cache.replace(private=tuple(jnp.concatenate(pair, 3) for pair in zip(cache.private, new)))


def allocate(cache, length):
  """The cache with a fresh private segment that has room for `length` tokens."""
  cache = freeze(cache)
  k, v = cache.shared[0]
  empty = lambda x: jnp.zeros((*x.shape[:3], length, x.shape[4]), x.dtype)
  return cache.replace(private=(empty(k), empty(v)), count=jnp.int32(0))


def freeze(cache, valid_BS=None):
  """The cache with its private segment made read-only, so that branches that go on from it do not
  share writes. valid_BS: where an allocated private segment has tokens; None: up to its count."""
  if cache.private is None:
    return cache
  valid = cache.valid
  if cache.count is not None:
    valid = valid | {len(cache.shared): cache.masks[-1][:, 0] if valid_BS is None else valid_BS}
  return cache.replace(shared=cache.pairs, private=None, count=None, valid=valid)
