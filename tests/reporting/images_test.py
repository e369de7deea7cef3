import io

import numpy as np
from PIL import Image
import pytest

from vargrl.io import text
from vargrl.reporting import images as pictures

G = pictures.GAP


def noise(*shape):
  return np.random.default_rng(0).integers(0, 255, shape, np.uint8)


def test_each_pixel_of_a_grid_is_where_a_hand_puts_it():
  images = noise(3, 2, 2, 3)
  out = pictures.grid(images, columns=2, cell=8)  # factor 4: two rows and two columns of 8 pixels
  assert out.dtype == np.uint8 and out.shape == (G + 2 * (8 + G), G + 2 * (8 + G), 3)
  for i, (top, left) in enumerate([(G, G), (G, G + 8 + G), (G + 8 + G, G)]):
    for y in range(2):
      for x in range(2):
        block = out[top + 4 * y : top + 4 * y + 4, left + 4 * x : left + 4 * x + 4]
        assert (block == images[i, y, x]).all()
  assert (out[: G - 1] == 255).all() and (out[:, : G - 1] == 255).all()
  assert (out[G + 8 + G :, G + 8 + G :] == 255).all()  # the fourth place is empty
  assert (out[G - 1, G : G + 8] == pictures.FRAME).all()


@pytest.mark.parametrize(
  'size, cell, pixels', [(16, 96, 96), (28, 96, 84), (64, 96, 128), (96, 96, 96), (256, 96, 256)]
)
def test_small_images_grow_by_an_integer_and_large_ones_stay(size, cell, pixels):
  out = pictures.grid(noise(1, size, size, 3), columns=4, cell=cell)
  assert out.shape == (pixels + 2 * G, pixels + 2 * G, 3)


def test_captions_are_dark_text_below_their_image_and_change_no_image():
  images = noise(2, 16, 16, 3)
  plain = pictures.grid(images, columns=2)
  out = pictures.grid(images, ['', 'a cube'], columns=2)
  # Above the last row of white and the lower frame, both are the same picture.
  np.testing.assert_array_equal(out[: G + 96], plain[: G + 96])
  strip = out[G + 97 :]
  assert len(strip) > G and strip[:, : G + 96].min() == 255
  assert strip[:, G + 96 + G :].min() < 80


def test_a_long_caption_takes_two_lines_and_stays_in_its_column():
  one = pictures.grid(noise(2, 16, 16, 3), ['short', ''], columns=2)
  two = pictures.grid(noise(2, 16, 16, 3), ['many words ' * 50, ''], columns=2)
  word = pictures.grid(noise(2, 16, 16, 3), ['W' * 500 + '\nreward 0.9', ''], columns=2)
  assert two.shape == word.shape
  line = len(two) - len(one)
  assert 10 < line < 24
  for out in (two, word):
    assert out[G + 97 :, G + 96 + G - 1 :].min() == 255
    assert out[-G - line :, G : G + 96].min() < 80  # the second line is there


def test_letters_the_font_does_not_have_are_never_boxes():
  images = noise(1, 16, 16, 3)
  accents = pictures.grid(images, ['Größe été …'], columns=1)
  np.testing.assert_array_equal(accents, pictures.grid(images, ['Grosse ete ...'], columns=1))
  np.testing.assert_array_equal(
    pictures.grid(images, ['猫'], columns=1), pictures.grid(images, ['?'], columns=1)
  )


def test_what_is_wrong_with_the_arguments_is_said():
  with pytest.raises(ValueError, match=r'images: float64 \[1, 2, 2, 3\] found'):
    pictures.grid(np.zeros((1, 2, 2, 3)), columns=1)
  with pytest.raises(ValueError, match=r'images: uint8 \[0, 2, 2, 3\] found'):
    pictures.grid(noise(0, 2, 2, 3), columns=1)
  with pytest.raises(ValueError, match='captions: 1 found, one for each of 2'):
    pictures.grid(noise(2, 2, 2, 3), ['a'], columns=1)
  with pytest.raises(ValueError, match='columns: 0 found'):
    pictures.grid(noise(2, 2, 2, 3), columns=0)
  with pytest.raises(ValueError, match=r'uint8 \[2, 2\] found, uint8 \[y, x, 3\] expected'):
    pictures.save_png('never.png', noise(2, 2))


def test_a_saved_png_reads_back_and_leaves_nothing_beside_it(tmp_path):
  path, image = tmp_path / 'new' / 'a.png', noise(5, 7, 3)
  for array in (255 - image, image):
    pictures.save_png(path, array)
  np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
  assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path):
  path = tmp_path / 'a.bin'
  text.write_bytes(path, b'old')
  with pytest.raises(TypeError):
    text.write_bytes(path, 'not bytes')
  assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('data', [b'', b'%!PS\n', b'\x89PNG\r\n\x1a\n' + b'\0' * 30, b'BM' * 9])
def test_what_is_no_picture_is_told_by_its_name(tmp_path, data):
  (tmp_path / 'a.png').write_bytes(data)
  with pytest.raises(OSError, match='a.png: no picture'):
    pictures.embeddable(tmp_path / 'a.png', 0)


def test_an_embedded_picture_is_the_file_itself_or_fits_the_budget(tmp_path):
  path = tmp_path / 'a.png'
  pictures.save_png(path, noise(300, 400, 3))
  assert pictures.embeddable(path, 1e6) == ('png', path.read_bytes(), (400, 300))
  kind, data, size = pictures.embeddable(path, 30_000)
  assert (kind, size) == ('jpeg', (400, 300)) and len(data) <= 30_000
  x, y = Image.open(io.BytesIO(data)).size
  assert x / y == pytest.approx(4 / 3, rel=0.02)
