"""Patches are those of transformers' processor (tests/golden/make_qwen2.py), and positions follow
from their grid.
"""

import pathlib

import numpy as np
from PIL import Image
import pytest
import qwen2_golden as rule

from vargrl.data import image as imaging
from vargrl.data import patches


def test_patches_are_those_of_transformers():
  arrays = np.load(pathlib.Path(__file__).parent.parent / 'golden' / 'qwen2.npz')
  for i, (size, options) in enumerate(rule.PICTURES.items()):
    ours, (h, w) = patches.to_patches(rule.picture(*size), **options)
    assert (
      [1, h, w] == arrays[f'grid_{i}'].tolist()
      and ours.shape == (h * w, 1176)
      and ours.dtype == np.float32
    )
    gap = abs(ours[::3, ::89] - arrays[f'patches_{i}'])
    assert gap.max() < (
      1e-6 if i < 2 else 1.01 / 255 / min(imaging.STD)
    )  # versions of Pillow: a grey level
    assert (gap < 1e-6).mean() > 0.8


def test_sizes_are_multiples_within_bounds():
  """Of the class's defaults: 56 x 56 to 28 x 28 x 1280 pixels."""
  default = dict(unit=28, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
  for size, wanted in (
    ((512, 512), (504, 504)),
    ((14, 14), (56, 56)),
    ((4000, 3000), (1148, 840)),
    ((20, 2000), (28, 1988)),
    ((1, 200), (28, 812)),
  ):
    assert patches.fit_size(*size, **default) == wanted, size
  rng = np.random.default_rng(0)
  for y, x in rng.integers(30, 3000, (200, 2)).tolist():
    a, b = patches.fit_size(y, x, **default)
    assert a % 28 == b % 28 == 0 and 56 * 56 <= a * b <= 28 * 28 * 1280
  with pytest.raises(
    ValueError, match='image: 1 x 201 pixels found, a ratio of sides of at most 200 expected'
  ):
    patches.fit_size(1, 201, **default)


def test_a_patch_is_where_its_grid_says_and_neighbours_are_four():
  image = rule.picture(60, 90)
  flat, (h, w) = patches.to_patches(image)
  pixels = flat.reshape(h * w, 3, 2, 14, 14)
  np.testing.assert_array_equal(pixels[:, :, 0], pixels[:, :, 1])  # one frame, twice
  row, column = patches.patch_positions(h, w)
  assert list(zip(row[:8], column[:8])) == [
    (0, 0),
    (0, 1),
    (1, 0),
    (1, 1),
    (0, 2),
    (0, 3),
    (1, 2),
    (1, 3),
  ]
  whole = np.zeros((3, h * 14, w * 14), np.float32)
  for patch, y, x in zip(pixels[:, :, 0], row, column):
    whole[:, y * 14 : y * 14 + 14, x * 14 : x * 14 + 14] = patch
  grey = 255 * (whole.transpose(1, 2, 0) * imaging.STD + imaging.MEAN)
  resized = imaging.resize(image, height=h * 14, width=w * 14, resample=Image.Resampling.BICUBIC)
  np.testing.assert_allclose(grey, resized, atol=1e-3)


def test_pictures_of_several_sizes_are_padded_and_those_too_large_refused():
  images = [rule.picture(60, 90), rule.picture(30, 100)]
  patch_ILp, position_aIL, seen_IL, sizes = patches.batch_images(images, length=40)
  assert (
    sizes == [(4, 6), (2, 8)]
    and seen_IL.sum(1).tolist() == [24, 16]
    and not patch_ILp[~seen_IL].any()
  )
  np.testing.assert_array_equal(position_aIL[:, 1, :16], patches.patch_positions(2, 8))
  with pytest.raises(ValueError, match='image 0: 4 x 6 patches found, at most 20 expected'):
    patches.batch_images(images, length=20)


def test_a_text_goes_on_after_the_longer_side_of_a_picture():
  tokens = np.array([1, 2, 9, 9, 9, 9, 9, 9, 3, 4, 9, 5])
  sizes = [(4, 6), (2, 2)]
  assert patches.mrope_positions(tokens, sizes, pad=9).tolist() == [
    [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7, 8],
    [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8],
    [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8],
  ]
  assert patches.image_index(tokens, sizes, pad=9, length=32).tolist() == [
    -1,
    -1,
    0,
    1,
    2,
    3,
    4,
    5,
    -1,
    -1,
    8,
    -1,
  ]
  np.testing.assert_array_equal(
    patches.mrope_positions(tokens[:2], [], pad=9), np.arange(2)[None].repeat(3, 0)
  )
  with pytest.raises(ValueError, match='7 tokens 9 in the text found, 6 expected of 1 images'):
    patches.mrope_positions(tokens, sizes[:1], pad=9)
  with pytest.raises(ValueError, match='the 4 tokens 9 of an image are not next to each other'):
    patches.mrope_positions(np.array([9, 9, 9, 1, 9]), [(4, 4)], pad=9)
