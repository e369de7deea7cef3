"""A folder of results that a command fills: what is there is kept, if it was made with the same
settings."""

import json
import logging

from vargrl.io import text

SETTINGS = '.samples.json'  # the file, in the folder, of what its files were made from


def check_folder(folder, settings, *, flag):
  """Writes down the settings that the files of a folder depend on. Raises ValueError, which begins
  with `flag`, for a folder of other settings, and for one that another program has filled.

  Where a crash has left the settings empty or cut, these are written in their place, with a
  warning."""
  path = folder / SETTINGS
  if folder.exists() and not folder.is_dir():
    raise ValueError(f'{flag}: {folder} found, a folder expected')
  found = [x.name for x in folder.iterdir()] if folder.exists() else []
  names = [x for x in found if not (x.startswith('.') and x.endswith('.part'))]  # cut by a kill
  if names and SETTINGS not in names:
    raise ValueError(
      f'{flag}: {folder} holds files that this command has not written, expected a new folder'
    )
  old = text.read_own_json(path)
  if old is None or names == [SETTINGS]:
    if names not in ([], [SETTINGS]):
      logging.warning(
        '%s: empty or cut, the settings of the files beside it expected; they are kept as if made '
        'with those of now',
        path,
      )
    text.write_json(path, settings)
    return
  check_equal(
    old, text.parse_json(json.dumps(settings), 'settings'), f'{flag}: {folder} was started with'
  )


def check_equal(old, new, what):
  """Raises ValueError for the first value that is not the same, in dictionaries the innermost."""
  for key, value in new.items():
    was = old.get(key)
    if isinstance(was, dict) and isinstance(value, dict):
      check_equal(was, value, f'{what} {key}')
    elif was != value:
      raise ValueError(f'{what} {key} {was}, {value} found; choose another folder')
