import numpy as np
import pytest
from scipy import ndimage

from vargrl.scenes import font, reading


def ink(word, cell, left, top, width):
  """[y, x] with the word at a place in pixels, whole or not: each pixel's share of ink from 8 x 8
  samples.
  """
  cells = np.pad(font.word(word), 1)
  at = (np.arange(width * 8) + 0.5) / 8
  row, column = (
    np.clip(np.floor((at - start) / cell).astype(int) + 1, 0, n - 1)
    for start, n in ((top, cells.shape[0]), (left, cells.shape[1]))
  )
  return cells[np.ix_(row, column)].reshape(width, 8, width, 8).mean((1, 3))


@pytest.mark.parametrize('word', ['ABCDE', 'FGHIJ', 'KLMNO', 'PQRST', 'UVWXY', 'ZIT', 'I', 'ILIAD'])
def test_every_letter_is_read_at_any_place_and_scale_and_blurred(word):
  for cell, left, top in ((2, 6, 10), (2.1, 5.5, 12.25), (1.9, 6.3, 9.6), (4, 9.75, 30.5)):
    ink_yx = ink(word, cell, left, top, 128 if cell == 4 else 64)
    assert reading.read_word(ink_yx, round(cell)) == word
    assert reading.read_word(ndimage.gaussian_filter(ink_yx, 0.3 * cell), round(cell)) == word


def test_no_ink_is_no_word_and_a_blot_is_no_letter():
  assert reading.read_word(np.zeros((64, 64)), 2) == ''
  blot_yx = np.zeros((64, 64))
  blot_yx[20:30, 20:40] = 1
  assert '?' in reading.read_word(blot_yx, 2)
  blot_yx[10:50] = 1
  assert reading.read_word(blot_yx, 2) == '?'


def test_one_wrong_cell_does_not_make_another_letter():
  ink_yx = ink('HAT', 2, 10, 20, 64)
  ink_yx[22:24, 12:14] = 1  # closes the gap between the stems of H
  assert reading.read_word(ink_yx, 2) in ('HAT', '?AT')
