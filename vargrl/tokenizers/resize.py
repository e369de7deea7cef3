"""Resampling as fixed matrices, equal to torch's F.interpolate (jax.image.resize is not: it uses
a = -0.5 and renormalises borders for cubic, and has no adaptive-average `area`)."""
import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.lru_cache(None)
def area(n, m):
  """[m, n] float32: row i averages sources floor(i n / m) .. ceil((i + 1) n / m) - 1."""
  out = np.zeros((m, n))
  for i in range(m):
    low, high = i * n // m, -((-(i + 1) * n) // m)
    out[i, low:high] = 1 / (high - low)
  return out.astype(np.float32)


@functools.lru_cache(None)
def bicubic(n, m, a=-0.75):
  """[m, n] float32: align_corners=False, no antialias, taps beyond the border clamped onto it."""
  out = np.zeros((m, n))
  for i in range(m):
    x = (i + .5) * n / m - .5
    base = int(np.floor(x))
    for tap in range(base - 1, base + 3):
      s = abs(x - tap)
      weight = ((a + 2) * s - (a + 3)) * s * s + 1 if s <= 1 else ((a * s - 5 * a) * s + 8 * a) * s - 4 * a
      out[i, min(max(tap, 0), n - 1)] += weight
  return out.astype(np.float32)


def resize(x_BhwC, matrix):
  """Both spatial axes by the same [m, n] matrix, float32 products in full precision."""
  x_BhwC = x_BhwC.astype(jnp.float32)
  full = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
  return full('BhwC,iw->BhiC', full('BhwC,ih->BiwC', x_BhwC, matrix), matrix)
