"""The names of classes, for prompts."""

import pathlib

DIGITS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
# In the order of sorted WordNet ids, which is that of VAR's labels and of TFDS: 0 is n01440764, the
# tench. The cleaned list of CLIP's authors, as in open_clip's IMAGENET_CLASSNAMES (MIT); two names
# occur twice.
# https://github.com/mlfoundations/open_clip/blob/main/src/open_clip/zero_shot_metadata.py
IMAGENET = pathlib.Path(__file__).parent / 'imagenet_classes.txt'
LISTS = ('imagenet', 'digits')


def names(which) -> tuple[str, ...]:
  """The names of 'imagenet' (1000) or 'digits' (10), by label; the lines of a .txt; any other
  sequence of names is itself.

  FileNotFoundError if there is no such .txt.
  """
  if which == 'imagenet':
    return tuple(IMAGENET.read_text(encoding='utf-8').splitlines())
  if which == 'digits':
    return DIGITS
  if isinstance(which, str) and which.endswith('.txt'):
    return tuple(pathlib.Path(which).expanduser().read_text(encoding='utf-8').splitlines())
  if isinstance(which, str) or not which or not all(isinstance(name, str) for name in which):
    raise ValueError(
      f"names: {which!r} found, 'imagenet', 'digits', a .txt or a sequence of names expected"
    )
  return tuple(which)


def known(classes):
  """The names of a model with so many classes, if there is a list of that length; () otherwise."""
  return next((names(which) for which in LISTS if len(names(which)) == classes), ())
