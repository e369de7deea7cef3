"""The resampling matrices against torch's F.interpolate, written out pixel by pixel."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.tokenizers import resize

SIZES = [
  (16, 13),
  (16, 10),
  (16, 1),
  (4, 4),
  (32, 24),
  (1, 16),
  (2, 16),
  (13, 16),
  (24, 32),
  (3, 2),
]


@pytest.mark.parametrize('n,m', SIZES)
def test_area_is_the_mean_of_the_window(n, m):
  x = np.random.default_rng(0).standard_normal(n)
  expected = [
    np.mean([x[k] for k in range(math.floor(i * n / m), math.ceil((i + 1) * n / m))])
    for i in range(m)
  ]
  np.testing.assert_allclose(resize.area(n, m) @ x, expected, atol=1e-6)


def keys(s, a=-0.75):
  """Keys' cubic kernel."""
  s = abs(s)
  if s <= 1:
    return (a + 2) * s**3 - (a + 3) * s**2 + 1
  return a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a if s < 2 else 0.0


@pytest.mark.parametrize('n,m', SIZES)
def test_bicubic_is_keys_kernel_over_an_image_continued_by_its_border(n, m):
  x = np.random.default_rng(0).standard_normal(n)
  out = []
  for i in range(m):
    at = (i + 0.5) * n / m - 0.5
    out.append(sum(keys(at - k) * x[min(max(k, 0), n - 1)] for k in range(-4, n + 4)))
  np.testing.assert_allclose(resize.bicubic(n, m) @ x, out, atol=1e-5)


@pytest.mark.parametrize('n,m', SIZES)
def test_bilinear_is_a_line_between_neighbours_over_an_image_continued_by_its_border(n, m):
  x = np.random.default_rng(0).standard_normal(n)
  at = (np.arange(m) + 0.5) * n / m - 0.5  # no antialias: the same two neighbours where it shrinks
  np.testing.assert_allclose(resize.bilinear(n, m) @ x, np.interp(at, np.arange(n), x), atol=1e-6)


def test_rows_and_columns_are_resized_apart_in_one_product_or_in_two(monkeypatch):
  x = np.random.default_rng(0).standard_normal((2, 4, 6, 3)).astype(np.float32)
  rows, columns = resize.area(4, 3), resize.bilinear(6, 8)
  expected = np.einsum('yh,xw,Bhwc->Byxc', rows, columns, x)
  np.testing.assert_allclose(resize.resize(jnp.asarray(x), rows, columns), expected, atol=1e-5)
  monkeypatch.setattr(resize, 'LARGEST', 0)
  np.testing.assert_allclose(resize.resize(jnp.asarray(x), rows, columns), expected, atol=1e-5)


@pytest.mark.parametrize('matrix', [resize.area, resize.bicubic, resize.bilinear])
@pytest.mark.parametrize('n,m', SIZES)
def test_a_constant_stays_constant(matrix, n, m):
  np.testing.assert_allclose(matrix(n, m).sum(1), 1, atol=1e-6)


def test_resize_is_the_matrix_on_both_axes():
  x = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)
  ours = resize.resize(jnp.array(x), resize.bicubic(4, 7))
  expected = np.einsum('ih,jw,bhwc->bijc', resize.bicubic(4, 7), resize.bicubic(4, 7), x)
  np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_same_size_is_identity():
  np.testing.assert_allclose(resize.area(5, 5), np.eye(5), atol=1e-7)
  np.testing.assert_allclose(resize.bicubic(5, 5), np.eye(5), atol=1e-7)
