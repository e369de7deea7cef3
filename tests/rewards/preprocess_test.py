"""What reward networks see, against PIL itself."""

import functools

import fill
import jax
import numpy as np
from PIL import Image
import pytest

from vargrl.rewards import preprocess


def pictures(y, x):
  """uint8 [2, y, x, 3]: a smooth one, and black and white noise, where bicubic overshoots most."""
  smooth = fill.image(1, (y, x)).transpose(1, 2, 0)
  noise = np.random.default_rng(0).integers(0, 2, (y, x, 3)) * 2.0 - 1
  return np.round((np.stack([smooth, noise]) + 1) / 2 * 255).astype(np.uint8)


def by_pil(picture, size):
  """As CLIP's own preprocessing: shortest edge, bicubic; the centre; before it is normalised."""
  y, x = picture.shape[:2]
  wide, tall = (size, int(size * y / x)) if x <= y else (int(size * x / y), size)
  image = Image.fromarray(picture).resize((wide, tall), Image.Resampling.BICUBIC)
  left, top = round((wide - size) / 2), round((tall - size) / 2)
  return np.asarray(image.crop((left, top, left + size, top + size)))


@functools.partial(jax.jit, static_argnums=(1, 2))
def ours(image_Byxc, size, how):
  return preprocess.clip_input(image_Byxc, size, how=how)


def grey(x_Byxc):
  return (np.asarray(x_Byxc, np.float64) * preprocess.STD + preprocess.MEAN) * 255


@pytest.mark.parametrize('y,x', [(64, 64), (20, 20), (56, 56), (97, 60), (30, 41)])
def test_pictures_are_those_of_pil(y, x):
  picture = pictures(y, x)
  out = ours(picture / 127.5 - 1, 56, 'pil')
  assert out.shape == (2, 56, 56, 3) and out.dtype == np.float32
  theirs = np.stack([by_pil(p, 56) for p in picture]).astype(float)
  difference = abs(grey(out) - theirs)
  assert difference.max() < 1.001  # one grey level
  # And that next to nowhere: at a tie. Black and white noise has many at 64 -> 56, and which way
  # they fall is the compiler's choice: 1.3 to 2.3 % of the noise, 0.1 % of the smooth picture.
  assert ((difference > 0.01).mean((1, 2, 3)) < [5e-3, 3e-2]).all()


def test_values_between_grey_levels_are_rounded_before_anything_is_resized():
  picture = pictures(64, 64)[:1]
  between = picture / 127.5 - 1 + np.random.default_rng(1).uniform(-0.4, 0.4, picture.shape) / 127.5
  np.testing.assert_array_equal(ours(between, 56, 'pil'), ours(picture / 127.5 - 1, 56, 'pil'))


def test_without_rounding_a_resize_overshoots_as_a_float_resize_does():
  black_white = pictures(64, 64)[1:]
  rounded, smooth = (grey(ours(black_white / 127.5 - 1, 56, how)) for how in ('pil', 'float'))
  assert rounded.min() > -0.01 and rounded.max() < 255.01
  assert smooth.min() < -5 and smooth.max() > 260
  inner = (smooth > 0) & (smooth < 255)
  assert 0.1 < abs(smooth - rounded)[inner].mean() < 12
  with pytest.raises(ValueError, match="preprocessing: 'tf' found"):
    ours(black_white / 127.5 - 1, 56, 'tf')
