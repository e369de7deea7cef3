"""Packed = unpacked: in a row, each dialogue is what it is alone; what does not fit is left out or
encoded.
"""

import re

import numpy as np
import pytest

from vargrl.data.dialogue import encode, pack

TALK = [('user', '<image>hello'), ('assistant', 'a cat')]
DRAW = [('user', 'hello'), ('assistant', 'the dog.<image_gen>')]
EDIT = [('user', 'make <image> and <image> a cat'), ('assistant', 'it is: <image_gen>')]
TWO = [
  ('user', 'hello'),
  ('assistant', 'a<image_gen>'),
  ('user', 'a dog'),
  ('assistant', 'the<image_gen> world'),
]


@pytest.fixture(scope='module')
def some(encode_talk):
  return [
    encode_talk(TALK, ['0.png']),
    encode_talk(EDIT, ['2.png', '0.png', '1.png']),
    encode_talk(TWO, ['0.png', '1.png']),
    encode_talk(DRAW, ['1.png']),
  ]


def alone(row, segment, format):
  """What a model gets of one of a row's sequences, and of its pictures."""
  at = np.flatnonzero(row['segment'] == segment)
  first, size = at[0], format.merge**2
  assert at.tolist() == [*range(first, first + len(at))]
  used = row['image_index'][at]
  patch = (used[used >= 0][:, None] * size + np.arange(size)).reshape(-1)
  drawn = [g for g, slot in enumerate(row['image_start']) if slot in at]
  memory = [[row['tokens'][i] for i in row['context'][g] if i >= 0] for g in drawn]
  pictures = row['patch_segment'][patch]
  return {
    'tokens': row['tokens'][at],
    'position': row['position'][:, at],
    'loss_mask': row['loss_mask'][at],
    'embedded': used >= 0,
    'patches': row['patches'][patch],
    'where': row['patch_position'][:, patch],
    'pictures': pictures - pictures.min(initial=99),
    'image': row['image'][drawn],
    'image_start': row['image_start'][drawn] - first,
    'context': np.array(sum(memory, [])),
  }


def test_packed_is_unpacked(talks, some):
  format, budget = (
    talks.format(),
    pack.RowBudget(length=220, max_patches=64, max_images=4, max_context=64),
  )
  row, left = pack.pack(some, format, budget)
  assert left == 0 and row['segment'].max() == 4
  assert row['patch_segment'].tolist() == np.repeat([1, 2, 3, 0], [8, 16, 16, 24]).tolist()
  for i, encoded in enumerate(some):
    single, _ = pack.pack([encoded], format, budget)
    for (name, x), y in zip(
      alone(row, i + 1, format).items(), alone(single, 1, format).values(), strict=True
    ):
      np.testing.assert_array_equal(x, y, err_msg=name)
  assert row['image_start'].min() > 0 and (row['context'].max(1) < row['image_start'] - 1).all()


def test_padding_is_no_sequence_and_counts_for_nothing(talks, some):
  row, _ = pack.pack(
    some[:2],
    talks.format(),
    pack.RowBudget(length=150, max_patches=64, max_images=3, max_context=64),
  )
  used = len(some[0].tokens) + len(some[1].tokens)
  assert (
    not row['segment'][used:].any()
    and not row['loss_mask'][used:].any()
    and (row['image_index'][used:] == -1).all()
  )
  assert (
    row['image_start'].tolist()[1:] == [-1, -1]
    and not row['image'][1:].any()
    and (row['context'][1:] == -1).all()
  )
  assert not row['patch_segment'][40:].any() and not row['patches'][40:].any()


@pytest.mark.parametrize(
  'short, fits',
  [
    (dict(), [1, 2, 3, 4]),
    (dict(length=100), [1, 2]),
    (dict(max_patches=32), [1, 3, 4]),
    (dict(max_images=1), [1, 2]),
    (dict(max_images=0), [1]),
  ],
)
def test_what_no_longer_fits_is_left_out_and_what_comes_after_may_fit(talks, some, short, fits):
  budget = pack.RowBudget(**dict(length=220, max_patches=64, max_images=4, max_context=64) | short)
  row, left = pack.pack(some, talks.format(), budget)
  assert left == 4 - len(fits) and row['segment'].max() == len(fits)
  found = [row['tokens'][row['segment'] == i + 1].tolist() for i in range(len(fits))]
  assert found == [some[i - 1].tokens.tolist() for i in fits]


@pytest.mark.parametrize(
  'short, which, error, message',
  [
    (dict(length=20), 0, encode.DoesNotFit, r'\d+ tokens found, at most 20 expected'),
    (
      dict(max_patches=16),
      1,
      encode.DoesNotFit,
      '32 patches of shown images found, at most 16 expected',
    ),
    (dict(max_images=1), 2, encode.DoesNotFit, '2 generated images found, at most 1 expected'),
    (
      dict(max_context=9),
      3,
      encode.DoesNotFit,
      r'\d+ tokens before a generated image found, at most 9, max_context, expected',
    ),
  ],
)
def test_what_could_never_fit_is_told(some, short, which, error, message):
  budget = pack.RowBudget(**dict(length=220, max_patches=64, max_images=4, max_context=64) | short)
  with pytest.raises(ValueError, match=message) as found:
    pack.check_fits(some[which], budget)
  assert found.type is error


@pytest.mark.parametrize(
  'change, message',
  [
    (
      dict(max_patches=30),
      'data.max_patches: 30 found, a multiple of 4, the patches of an embedding, expected',
    ),
    (
      dict(length=1),
      'length 1, max_patches 16, max_images 1, max_context 8 found, at least 2, 0, 0, 1 expected',
    ),
  ],
)
def test_rows_that_could_hold_nothing_are_refused(talks, change, message):
  budget = pack.RowBudget(**dict(length=20, max_patches=16, max_images=1, max_context=8) | change)
  with pytest.raises(ValueError, match=re.escape(message)):
    pack.check_budget(budget, talks.format())


def test_the_prompt_that_says_nothing_is_what_a_dropped_prompt_leaves(talks, encode_talk):
  nothing = encode.encode_prompt(
    talks.format(), encode.Dialogue(encode.EMPTY_DIALOGUE, ()), prefill_image=True
  )
  null = pack.prompt_row(nothing, talks.format(), length=64, max_patches=0)
  encoded = encode_talk(DRAW, ['1.png'], prompt_drop=1.0)
  assert null['length'] == encoded.image_start[0] and set(null) == set(pack.PROMPT_FEATURES)
  np.testing.assert_array_equal(null['tokens'][: null['length']], encoded.tokens[: null['length']])
  np.testing.assert_array_equal(
    null['position'][:, : null['length']], encoded.position[:, : null['length']]
  )
