"""Paths that a user types: each is expanded here, so that all of the program means one place."""

import os
import pathlib


def path(text: str | os.PathLike) -> pathlib.Path:
  """The path with `~` and `~user` as the home folder; '' is the present folder.

  Raises ValueError for a path with a NUL, and for the home of a user who has none."""
  text = os.fspath(text)
  if '\0' in text:
    raise ValueError(f'path: {text!r} found, one without a NUL character expected')
  try:
    return pathlib.Path(text).expanduser()
  except RuntimeError as e:
    raise ValueError(f'path: {text!r} found, which is the home of nobody') from e


def local(text: str | os.PathLike) -> str:
  """`path` as a text, of a folder that may lie in a bucket: 'gs://...' stays what it is."""
  return str(text) if '://' in str(text) else str(path(text))


def known_ending(text: str | os.PathLike, endings: tuple[str, ...]) -> str:
  """The ending of a path if it is one of `endings`, such as '.pth', else '': then it is a folder.

  A name such as VARGPT-v1.1 has no ending."""
  found = path(text).suffix.lower()
  return found if found in endings else ''
