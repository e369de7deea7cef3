"""Dialogues that ask for the sum of two numbers: a task whose answers can be verified, without a
download."""

import functools
import zlib

import numpy as np

from vargrl.data.dialogue.encode import Dialogue

SPLITS = ('train', 'test')
HELD_OUT = 8  # one pair of numbers in so many is of the split 'test'
SEED = 0


def open_source(dataset: str, split: str):
  """read(index) -> Dialogue of 'sums/LARGEST', for any index; of 'sums/LARGEST/pairs' two of them,
  (chosen, rejected), of which the second says another number.

  A dialogue asks '17+25=' of two numbers from 0 to LARGEST and answers '42'; its metadata is
  {'answer': '42'}. No pair of numbers is in both splits. Raises ValueError for an unknown data set
  or split."""
  parts = dataset.split('/')
  if len(parts) not in (2, 3) or not parts[1].isdigit() or parts[2:] not in ([], ['pairs']):
    raise ValueError(
      f"dataset: {dataset!r} found, 'sums/LARGEST' or 'sums/LARGEST/pairs' with a number LARGEST "
      'expected'
    )
  if split not in SPLITS:
    raise ValueError(f'split: {split!r} found, one of {SPLITS} expected')
  largest = int(parts[1])
  if largest < 4:
    raise ValueError(f'dataset: {dataset!r} found, a LARGEST of at least 4 expected')
  return functools.partial(read, largest, split, len(parts) == 3)


def read(largest: int, split: str, pairs: bool, index: int):
  """The Dialogue, or (chosen, rejected), of an index."""
  rng = np.random.default_rng([SEED, SPLITS.index(split), index])
  while True:
    a, b = (int(x) for x in rng.integers(0, largest + 1, 2))
    if is_held_out(a, b) == (split == 'test'):
      break
  chosen = to_dialogue(a, b, a + b)
  if not pairs:
    return chosen
  off = int(rng.choice([-10, -2, -1, 1, 2, 10]))
  return chosen, to_dialogue(a, b, a + b + (off if a + b + off >= 0 else -off))


def is_held_out(a: int, b: int) -> bool:
  """Whether the question of a pair of numbers is of the split 'test'."""
  return zlib.crc32(f'{a}+{b}'.encode()) % HELD_OUT == 0


def to_dialogue(a: int, b: int, answer: int) -> Dialogue:
  """The Dialogue in which this is the answer; its metadata is the right one."""
  messages = (('user', f'{a}+{b}='), ('assistant', str(answer)))
  return Dialogue(messages, (), {'answer': str(a + b)})
