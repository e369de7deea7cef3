"""Averages that merge exactly."""

from clu.metrics import Average
import jax
import jax.numpy as jnp


def average(x: jax.Array, weight: jax.Array | None = None) -> Average:
  """The weighted mean of x, undivided: totals and counts of batches, hosts and accumulation add up
  exactly, means do not."""
  x = jnp.asarray(x, jnp.float32)
  if weight is None:
    return Average(total=x.sum(), count=jnp.float32(x.size))
  weight = jnp.asarray(weight, jnp.float32)
  # Of equal rank, because a weight_B against x_BL would be read as a weight_L when B = L.
  if weight.ndim and (
    weight.ndim != x.ndim
    or any(w not in (1, s) for w, s in zip(weight.shape, x.shape, strict=True))
  ):
    raise ValueError(
      f'weight: shape {weight.shape} found, {x.shape} (or 1 in its place) or a scalar expected'
    )
  weight = jnp.broadcast_to(weight, x.shape)
  # What is masked may be anything: inf * 0 would be nan.
  return Average(total=jnp.where(weight == 0, 0, x * weight).sum(), count=weight.sum())
