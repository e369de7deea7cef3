"""Resampling as fixed matrices, equal to torch's F.interpolate (jax.image.resize is not: it uses
a = -0.5 and renormalises borders for cubic, and has no adaptive-average `area`)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

LARGEST = 2**20  # numbers of one matrix for both axes


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
    x = (i + 0.5) * n / m - 0.5
    base = int(np.floor(x))
    for tap in range(base - 1, base + 3):
      s = abs(x - tap)
      weight = (
        ((a + 2) * s - (a + 3)) * s * s + 1 if s <= 1 else ((a * s - 5 * a) * s + 8 * a) * s - 4 * a
      )
      out[i, min(max(tap, 0), n - 1)] += weight
  return out.astype(np.float32)


@functools.lru_cache(None)
def bilinear(n, m):
  """[m, n] float32: align_corners=False, no antialias, also when it shrinks."""
  x = np.maximum((np.arange(m) + 0.5) * n / m - 0.5, 0)
  low = np.floor(x).astype(int)
  high, share = np.minimum(low + 1, n - 1), x - low
  out = np.zeros((m, n))
  np.add.at(out, (np.arange(m), low), 1 - share)
  np.add.at(out, (np.arange(m), high), share)
  return out.astype(np.float32)


def resize(x_BhwC, rows, columns=None):
  """h by the [m, h] matrix `rows`, w by the [n, w] matrix `columns`, which is `rows` if None;
  float32 products in full precision.

  One product over all places of the grid: two, each over one axis, take a TPU's compiler twice as
  long. Where its matrix would be large, two."""
  columns = rows if columns is None else columns
  (B, h, w, C), m, n = x_BhwC.shape, len(rows), len(columns)
  x_BhwC, exact = x_BhwC.astype(jnp.float32), jax.lax.Precision.HIGHEST
  if rows.size * columns.size > LARGEST:
    x_BhwC = jnp.einsum('Bhwc,yh->Bywc', x_BhwC, rows, precision=exact)
    return jnp.einsum('Bywc,xw->Byxc', x_BhwC, columns, precision=exact)
  both, x_BLC = np.kron(rows, columns), x_BhwC.reshape(B, h * w, C)
  y_BLC = jnp.einsum('BLC,SL->BSC', x_BLC, both, precision=exact)
  return y_BLC.reshape(B, m, n, C)
