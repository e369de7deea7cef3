"""The key/value cache: an argument and a result.

Two parts. The prefix is what all rollouts of a prompt share: computed once, read only, and left
unbatched by the vmap over rollouts. `own` is a row's own: written scale by scale, read up to `start`.
"""
from typing import Any

import flax
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Cache:
  """k, v: [X, B, K, S, H]. prefix: read-only pair and whatever else the prompt decides once."""
  prefix: Any
  own: Any


def empty(layers, batch, heads, length, head_dim, dtype):
  """An `own` pair with room for `length` tokens."""
  shape = (layers, batch, heads, length, head_dim)
  return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)


def write(own, new, start):
  """`own` with the pair `new` [X, B, K, L, H] at S = start, a Python int. The one cache write."""
  return tuple(jax.lax.dynamic_update_slice_in_dim(o, n.astype(o.dtype), start, 3)
               for o, n in zip(own, new))
