"""A folder of results that a command fills: what is there is kept, if it was made with the same
settings."""

import json

from vargrl.reporting import images

SETTINGS = '.samples.json'  # the file, in the folder, of what its files were made from


def check_folder(folder, settings, *, flag):
  """Writes down the settings that the files of a folder depend on. Raises ValueError, which begins
  with `flag`, for a folder of other settings, and for one that another program has filled."""
  path = folder / SETTINGS
  if folder.exists() and not folder.is_dir():
    raise ValueError(f'{flag}: {folder} found, a folder expected')
  names = [x.name for x in folder.iterdir()] if folder.exists() else []
  if names and SETTINGS not in names:
    raise ValueError(
      f'{flag}: {folder} holds files that this command has not written, expected a new folder'
    )
  if set(names) <= {SETTINGS}:
    images.save_bytes(path, json.dumps(settings, indent=2).encode())  # no file is there yet
  check_equal(
    json.loads(path.read_text()),
    json.loads(json.dumps(settings)),
    f'{flag}: {folder} was started with',
  )


def check_equal(old, new, what):
  """Raises ValueError for the first value that is not the same, in dictionaries the innermost."""
  for key, value in new.items():
    was = old.get(key)
    if isinstance(was, dict) and isinstance(value, dict):
      check_equal(was, value, f'{what} {key}')
    elif was != value:
      raise ValueError(f'{what} {key} {was}, {value} found; choose another folder')
