import itertools

import numpy as np

from vargrl.scenes import font


def test_every_capital_is_five_cells_tall_and_touches_all_its_edges():
  assert ''.join(font.ROWS) == 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'
  for name in font.ROWS:
    cells = font.letter(name)
    assert len(cells) == font.HEIGHT and 1 <= cells.shape[1] <= 5
    assert cells[0].any() and cells[-1].any() and cells[:, 0].any() and cells[:, -1].any()


def test_letters_of_one_width_differ_in_two_cells_or_more():
  for a, b in itertools.combinations(font.ROWS, 2):
    if font.letter(a).shape == font.letter(b).shape:
      assert (font.letter(a) != font.letter(b)).sum() >= 2, (a, b)


def test_a_word_is_its_letters_with_an_empty_column_between():
  cells = font.word('TIE')
  assert cells.shape == (5, 3 + 1 + 1 + 1 + 3)
  np.testing.assert_array_equal(cells[:, :3], font.letter('T'))
  np.testing.assert_array_equal(cells[:, 6:], font.letter('E'))
  assert not cells[:, 3].any() and cells[:, 4].all() and not cells[:, 5].any()
