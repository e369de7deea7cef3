import math

import numpy as np
import pytest

from vargrl.scenes import draw, font
from vargrl.scenes import world as worlds

AREAS = {
  'circle': math.pi / 4,
  'square': 1,
  'triangle': 0.5,
  'cross': 1 - 0.7**2,
  'diamond': 0.5,
  'ring': math.pi / 4 * 0.75,
}


def scene(*objects, text=None, light=(250, 250, 250, 0, 0)):
  return worlds.Scene(objects, text, light)


@pytest.mark.parametrize('shape', worlds.SHAPES)
def test_a_shape_fills_its_box_and_has_its_area(shape):
  o = worlds.Object(shape, 'blue', 128, 128, 96)
  image_yxc = draw.image(scene(o), 256)
  hit_yx = (image_yxc != 250).any(-1)
  y, x = np.nonzero(hit_yx)
  assert (x.min(), y.min(), x.max() + 1, y.max() + 1) == worlds.box(o)
  share = draw.coverage(draw.INSIDE[shape], 128, 96, 128, 256)[0].sum() / 128**2
  if shape in AREAS:
    assert abs(share - AREAS[shape]) < 0.01
  assert 0.3 < share <= 1
  np.testing.assert_array_equal(hit_yx, hit_yx[:, ::-1])  # all are symmetric


def test_colours_and_ground_are_what_the_scene_says():
  o = worlds.Object('square', 'red', 64, 64, 64, (3, -2, 10))
  image_yxc = draw.image(scene(o, light=(240, 244, 248, 6, -4)), 64)
  assert image_yxc.dtype == np.uint8 and image_yxc.shape == (64, 64, 3)
  assert (image_yxc[10:22, 10:22] == np.array(worlds.COLOURS['red']) + (3, -2, 10)).all()
  corners = image_yxc[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
  np.testing.assert_array_equal(
    corners, [[239, 243, 247], [245, 249, 253], [235, 239, 243], [241, 245, 249]]
  )


def test_a_word_is_its_cells_in_ink():
  text = worlds.Text('HI', 16, 32, 48)
  image_yxc = draw.image(scene(text=text), 256)
  cells = (
    (image_yxc == worlds.INK).all(-1)[48 : 48 + 5 * 16, 32 : 32 + 5 * 16].reshape(5, 16, 5, 16)
  )
  np.testing.assert_array_equal(cells.all((1, 3)), font.word('HI'))
  np.testing.assert_array_equal(cells.any((1, 3)), font.word('HI'))


def test_many_pixels_averaged_are_few_pixels(some):
  """But for the edges: 4 x 4 samples of a pixel against 16 x 16."""
  for r in some('small', 'train', 14):
    large = draw.image(r.scene, 128).reshape(32, 4, 32, 4, 3).mean((1, 3))
    off = abs(large - draw.image(r.scene, 32))
    assert off.max() < 64 and off.mean() < 1


def test_an_edge_is_antialiased():
  o = worlds.Object('square', 'blue', 36, 128, 128)
  levels = np.unique(draw.image(scene(o), 32)[..., 0])
  assert (
    len(levels) == 4 and levels.min() == worlds.COLOURS['blue'][0]
  )  # inside, edges and corners, ground
