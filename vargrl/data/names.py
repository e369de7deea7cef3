"""The names of classes, which prompts are made of."""

import pathlib

from vargrl.io import text

DIGITS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
# In the order of sorted WordNet ids, which is that of VAR's labels and of TFDS: 0 is n01440764, the
# tench. The cleaned list of CLIP's authors, as in open_clip's IMAGENET_CLASSNAMES (MIT); two names
# occur twice.
# https://github.com/mlfoundations/open_clip/blob/main/src/open_clip/zero_shot_metadata.py
IMAGENET = pathlib.Path(__file__).parent / 'imagenet_classes.txt'
LISTS = ('imagenet', 'digits')


def load(which) -> tuple[str, ...]:
  """The names of classes, by label.

  which: 'imagenet' (1000 names), 'digits' (10), a .txt with a name in each line, or a sequence of
  names, which is returned. Empty lines at its end are no names. FileNotFoundError if there is no
  such .txt, ValueError for anything else."""
  if which == 'imagenet':
    return tuple(text.read_lines(IMAGENET))
  if which == 'digits':
    return DIGITS
  if isinstance(which, str) and which.endswith('.txt'):
    return tuple(text.split_lines(text.read_text(which).rstrip()))
  if isinstance(which, str) or not which or not all(isinstance(name, str) for name in which):
    raise ValueError(
      f"names: {which!r} found, 'imagenet', 'digits', a .txt or a sequence of names expected"
    )
  return tuple(which)


def for_count(classes: int) -> tuple[str, ...]:
  """The first of LISTS with so many names; () if none has."""
  return next((load(which) for which in LISTS if len(load(which)) == classes), ())
