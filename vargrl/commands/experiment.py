"""An experiment file -> its config."""

import difflib
import importlib.util

from vargrl.io import paths


def load(text):
  """'experiments/NAME.py' or 'experiments/NAME.py:variant' -> what its get_config(variant)
  returns.
  """
  path, _, variant = str(text).partition(':')
  path = paths.path(path)
  if not path.is_file() or path.suffix != '.py':
    known = [str(p) for p in sorted(path.parent.glob('*.py'))] or [
      str(p) for p in sorted(paths.path('experiments').glob('*.py'))
    ]
    near = difflib.get_close_matches(str(path), known, 1, 0)
    raise ValueError(
      f'--config: there is no experiment {str(path)!r}'
      + (f', did you mean {near[0]!r}?' if near else '')
    )
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)
