"""The state dict of a file: where it lies, its keys without those of wrappers, finite numbers."""

from collections.abc import Mapping

import numpy as np

from vargrl.checkpoint import files

# Modules that hold another one: of torch.compile, FSDP, DeepSpeed and activation checkpointing.
WRAPPERS = {
  '_orig_mod',
  '_fsdp_wrapped_module',
  '_forward_module',
  '_checkpoint_wrapped_module',
}
PREFIX = 'module'  # of DDP, which models also use as the name of a part
# Nested dictionaries that are searched for weights, and how deep.
MAX_PLACES, MAX_DEPTH = 1000, 4


def nested(file, path):
  """The dictionary at 'a/b' of a file; an empty one if there is none."""
  for part in filter(None, path.split('/')):
    file = file.get(part) if isinstance(file, Mapping) else None
  return file if isinstance(file, Mapping) else {}


def strip(path, state):
  """A state dict with the keys of the model itself.

  WRAPPERS are dropped wherever they stand, PREFIX where all keys begin with it, until none is left.
  Raises ValueError for keys that are no short texts, and where two become the same.
  """
  parts = {
    key: [part for part in key.split('.') if part not in WRAPPERS]
    for key in files.check_keys(path, state)
  }
  shared = min(map(count_prefixes, parts.values()), default=0)
  out, origin = {}, {}
  for key, value in state.items():
    name = '.'.join(parts[key][shared:])
    if name in out:
      raise ValueError(
        f'{path}: {origin[name]} and {key} are both {name} without what wrappers add, one expected'
      )
    out[name], origin[name] = value, key
  return out


def count_prefixes(parts):
  """How many of the parts of a key come first and are PREFIX; one is left."""
  return next((i for i, part in enumerate(parts[:-1]) if part != PREFIX), max(len(parts) - 1, 0))


def describe_places(path, file, wanted):
  """A clause that names the dictionaries of a file that hold keys of `wanted`; '' for none."""
  found, seen, level = [], {id(file)}, [('', file)]
  for _ in range(MAX_DEPTH):
    inner = []
    for place, parent in level:
      for key, value in parent.items():
        if not isinstance(value, Mapping) or id(value) in seen or len(seen) > MAX_PLACES:
          continue
        if type(key) is not str or len(key) > files.MAX_KEY:
          continue
        seen.add(id(value))
        inner.append((f'{place}[{key!r}]', value))
        if all(type(k) is str for k in value) and holds(path, value, wanted):
          found.append(inner[-1][0])
    level = inner
  if not found:
    return ''
  return (
    f'; some lie in {" and in ".join(found[:3])}, save them alone: '
    f'torch.save(torch.load(FILE, weights_only=True){found[0]}, OTHER)'
  )


def holds(path, state, wanted):
  """True if a dictionary has one of the keys."""
  try:
    return not wanted.keys().isdisjoint(strip(path, state))
  except ValueError:
    return False


def check_finite(path, key, x):
  """Returns an array; ValueError, which names the file, if a number in it is not finite."""
  if x.dtype.name == 'bfloat16':  # as numbers of 16 bits, since ml_dtypes is ten times slower
    finite = not x.size or int((x.view(np.uint16) & 0x7FFF).max()) < 0x7F80
  else:
    finite = np.isfinite(x).all()
  if not finite:
    raise ValueError(f'{path}: {key} has numbers that are not finite')
  return x
