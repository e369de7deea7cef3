import pytest

from vargrl import types


def test_offsets_are_where_scales_start_and_the_length():
  assert types.offsets((1, 2, 4)) == [0, 1, 5, 21]
  assert types.bounds((1, 2, 4)) == [(0, 1), (1, 5), (5, 21)]
  assert types.sizes((1, (2, 3))) == [1, 6] and types.offsets((1, (2, 3))) == [0, 1, 7]


def test_leading_scales_are_whole_ones():
  assert types.leading((1, (2, 3), 4), 7) == (1, (2, 3))
  assert types.leading((1, 2), 5) == (1, 2)
  with pytest.raises(ValueError) as e:
    types.leading((1, 2, 4), 6)
  sentence = 'tokens: 6 of the scales (1, 2, 4) found, whole scales expected: one of [1, 5, 21]'
  assert str(e.value) == sentence
