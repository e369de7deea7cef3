"""State dicts in the reference layout <-> our parameters, by one table per model.

A row is ours: (theirs, einops pattern theirs -> ours). `{X}` in their key stacks the layers,
`{q,k,v}` in our name splits the leading axis. A pattern is its own inverse, so `read` and `write`
walk the same table, and every tensor must be matched exactly once, each way.
"""
import re

import einops
from flax import traverse_util
import numpy as np


def rows(table, shapes):
  """(our names, layer or None, their key, pattern) of every tensor of the model.

  shapes: {our name: anything with a shape}.
  """
  for ours, (theirs, pattern) in table.items():
    group = re.search(r'\{(.+?)\}', ours)
    names = [ours.replace(group[0], part) for part in group[1].split(',')] if group else [ours]
    absent = [name for name in names if name not in shapes]
    if absent: raise ValueError(f'table: {absent} are no parameters of the model')
    for layer in range(shapes[names[0]].shape[0]) if '{X}' in theirs else [None]:
      yield names, layer, theirs.replace('{X}', str(layer)), pattern


def read(table, state, shapes, constants=()):
  """{their key: array} -> our parameters, nested numpy arrays.

  shapes: our abstract parameters. constants: their keys that hold nothing learned.
  Raises ValueError that lists what is missing (-), unexpected (+) or of another shape (~).
  """
  shapes = traverse_util.flatten_dict(shapes, sep='/')
  parts, used, wrong = {name: [] for name in shapes}, set(constants), []
  stacked = set()
  for names, layer, key, pattern in rows(table, shapes):
    used.add(key)
    if layer is not None: stacked.update(names)
    if key not in state:
      wrong.append(f'- {key}')
      for name in names: parts[name].append(None)
      continue
    shape = shapes[names[0]].shape[layer is not None:]
    axes = pattern.split('->')[1].split()
    known = dict(zip(axes, shape if len(names) == 1 else (len(names), *shape)))
    try:
      value = einops.rearrange(np.asarray(state[key]), pattern, **known)
    except einops.EinopsError:
      wrong.append(f'~ {key} {tuple(np.shape(state[key]))} in file, {pattern} with {known} in model')
      continue
    for name, part in zip(names, value if len(names) > 1 else [value]):
      parts[name].append(part)
  wrong += [f'+ {key}' for key in state if key not in used]
  wrong += [f'- {name} (in no row of the table)' for name, p in parts.items() if not p]
  if wrong: raise ValueError('state dict does not match the model:\n  ' + '\n  '.join(wrong))
  return traverse_util.unflatten_dict(
      {name: np.stack(p) if name in stacked else p[0] for name, p in parts.items()}, sep='/')


def write(table, params, constants):
  """Our parameters -> {their key: numpy array}; constants are added as they are."""
  params, out = traverse_util.flatten_dict(params, sep='/'), dict(constants)
  for names, layer, key, pattern in rows(table, params):
    parts = [np.asarray(params[name] if layer is None else params[name][layer]) for name in names]
    left, right = (side.strip() for side in pattern.split('->'))
    out[key] = einops.rearrange(np.stack(parts) if len(names) > 1 else parts[0],
                                f'{right} -> {left}')
  return out

