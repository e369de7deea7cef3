"""Weights in the format of a reference checkpoint <-> our parameters, by one table per model.

A row of the table is {our name: (their key, einops pattern theirs -> ours)}. `{X}` in a key stacks
the layers, `{X/4}` and `{X%4}` do so where the layers lie in chunks of four; `{q,k,v}` in our name
splits the leading axis. A pattern is its own inverse, so that reading and writing use the same
table, and every tensor must be matched exactly once, each way. See types.TorchLayout.
"""

import itertools
import math
import re

import einops
from flax import traverse_util
import jax.numpy as jnp
import numpy as np

from vargrl.checkpoint import device_pieces, files, state_dicts
from vargrl.io import paths
from vargrl.types import TorchLayout

ADAPTER = '/lora_'  # part of the names of our parameters that no reference checkpoint has


def load(path, layouts, abstract, subtree=''):
  """Our parameters, from a file or folder, with the shardings of `abstract`.

  layouts: the TorchLayouts of the model; the best match is used. abstract: the whole model's
  ShapeDtypeStructs. subtree: 'image' returns params['image'] alone; the rest is matched and not
  read. Each tensor is read once, and host memory holds at most the parameters of this host's
  devices and one leaf more. Raises like `check`, and ValueError if a constant has another value or
  a weight is not finite.
  """
  layout, state = match_layout(path, layouts, abstract)
  for key, value in layout.constants.items():
    if key in state and not np.array_equal(np.asarray(state[key]), value):
      raise ValueError(
        f'{path}: {key} is not what the config gives, as for another schedule of scales'
      )
  read = load_leaves(layout.table, state, leaves(abstract), subtree, path=path)
  return get_subtree(read, subtree)


def check(path, layouts, abstract):
  """Raises ValueError, with a list, unless the file holds exactly this model; reads no array.

  The list says what is missing (-), unexpected (+) or of another shape (~).
  """
  match_layout(path, layouts, abstract)


def save(path, layout, params, *, dtype=None, max_file_bytes=5e9):
  """Writes parameters in the reference format, constants included.

  path: ends in .safetensors, or in .pth, which needs torch; without an ending it becomes a folder
  of files of at most `max_file_bytes` and a config.json. dtype: of the weights; None keeps theirs.
  Raises ValueError for parameters that contain adapters.
  """
  shapes = traverse_util.flatten_dict(params, sep='/')
  if adapters := [name for name in shapes if ADAPTER in name]:
    raise ValueError(
      f'{path}: {adapters[0]} has no place in the reference layout, expected merged weights'
    )
  dtypes = {
    key: dtype or shapes[names[0]].dtype for names, _, key, _ in entries(layout.table, shapes)
  }
  headers = {
    key: (shape, np.dtype(dtypes[key]))
    for key, shape in expected_shapes(layout.table, shapes).items()
  }
  padded = layout.last_row_of
  headers |= {key: ((size, *headers[key][0][1:]), headers[key][1]) for key, size in padded.items()}
  headers |= {key: (value.shape, value.dtype) for key, value in layout.constants.items()}
  arrays = ((key, x.astype(dtypes[key], copy=False)) for key, x in tensors(layout.table, shapes))
  arrays = ((key, pad_before(x, padded[key]) if key in padded else x) for key, x in arrays)
  arrays = itertools.chain(arrays, layout.constants.items())
  if paths.known_ending(path, files.SUFFIXES):
    files.write(path, headers, arrays)
  else:
    files.write_folder(path, headers, arrays, max_file_bytes=max_file_bytes, config=layout.config)


def from_state_dict(table, state, shapes, constants=()):
  """Our parameters from {their key: array}, with the shardings of `shapes`.

  constants: keys of `state` that hold nothing learned and are ignored. Raises like `check`.
  """
  state = {k: v for k, v in state.items() if k not in constants}
  check_state_dict('state dict', TorchLayout(table), state, leaves(shapes))
  return get_subtree(load_leaves(table, state, leaves(shapes), ''), '')


def to_state_dict(table, params, constants):
  """{their key: numpy array} of our parameters; constants are added as they are."""
  return dict(tensors(table, traverse_util.flatten_dict(params, sep='/'))) | dict(constants)


def entries(table, shapes):
  """Yields (our names, layer or None, their key, pattern) of every tensor of the model.

  shapes: {our name: anything with a shape}.
  """
  for ours, (theirs, pattern) in table.items():
    group = re.search(r'\{(.+?)\}', ours)
    names = [ours.replace(group[0], part) for part in group[1].split(',')] if group else [ours]
    absent = [name for name in names if name not in shapes]
    if absent:
      raise ValueError(f'table: {absent} are no parameters of the model')
    for layer in range(shapes[names[0]].shape[0]) if '{X' in theirs else [None]:
      yield names, layer, layer_key(theirs, layer), pattern


def layer_key(theirs, layer):
  """The key of one layer: 'a.{X}.b' -> 'a.5.b', 'a.{X/4}.{X%4}.b' -> 'a.1.1.b'."""
  parts = {'': lambda n: layer, '/': lambda n: layer // n, '%': lambda n: layer % n}
  return re.sub(
    r'\{X([/%]?)(\d*)\}', lambda found: str(parts[found[1]](int(found[2] or 1))), theirs
  )


def leaves(abstract):
  """{our name: leaf} of all parameters that reference checkpoints contain, so without adapters."""
  flat = traverse_util.flatten_dict(abstract, sep='/')
  return {name: x for name, x in flat.items() if ADAPTER not in name}


def get_subtree(flat, path):
  """The subtree at 'a/b' of {our name: leaf}; '' is the whole tree."""
  tree = traverse_util.unflatten_dict(flat, sep='/')
  for part in filter(None, path.split('/')):
    tree = tree[part]
  return tree


def pattern_sizes(names, layer, pattern, shapes):
  """{letter: size} of a pattern."""
  shape = shapes[names[0]].shape[layer is not None :]
  shape = shape if len(names) == 1 else (len(names), *shape)
  return dict(zip(pattern.split('->')[1].split(), shape, strict=True))


def expected_shapes(table, shapes):
  """{their key: shape}. Raises ValueError unless the table matches its own model exactly once."""
  out, used = {}, set()
  for names, layer, key, pattern in entries(table, shapes):
    size = pattern_sizes(names, layer, pattern, shapes) | {'1': 1}
    axes = re.findall(r'\(([^)]*)\)|(\S+)', pattern.split('->')[0])
    if key in out:
      raise ValueError(f'table: {key} is in two rows')
    out[key] = tuple(math.prod(size[a] for a in (many or one).split()) for many, one in axes)
    used.update(names)
  if lost := [name for name in shapes if name not in used]:
    raise ValueError(f'table: no row for {lost}')
  return out


def match_layout(path, layouts, abstract):
  """Returns (layout, {their key: lazy array}) of a file that holds exactly the model.

  Raises ValueError for any other file.
  """
  files.check_config(path, layouts[0].config)
  layout, state = choose_layout(path, layouts, leaves(abstract))
  shapes = expected_shapes(layout.table, leaves(abstract))
  for key, size in (dict.fromkeys(layout.resized) | layout.last_row_of).items():
    if not hasattr(state.get(key), 'shape') or state[key].shape[1:] != shapes[key][1:]:
      continue
    if size is None:
      state[key] = resize_first_axis(np.asarray(state[key]), shapes[key][0])
    elif state[key].shape[0] == size:
      state[key] = np.asarray(state[key])[-1:]
    else:
      raise ValueError(f'{path}: {key} has {state[key].shape[0]} rows, {size} expected')
  check_state_dict(path, layout, state, leaves(abstract))
  return layout, state


def choose_layout(path, layouts, shapes):
  """Returns (layout, state dict) that share the most keys, and of these the most shapes.

  It is chosen among all layouts and all places in the file. ValueError if none shares a key.
  """
  file, best = files.open_tensors(path), ((0, 0), None, None)
  for layout in layouts:
    expected = expected_shapes(layout.table, shapes)
    for place in (*layout.nested_at, ''):
      state = state_dicts.strip(path, state_dicts.nested(file, place))
      state = {key: x for key, x in state.items() if not is_ignored(key, layout)}
      found = [
        (getattr(state[key], 'shape', None), shape)
        for key, shape in expected.items()
        if key in state
      ]
      count = len(found), sum(a == b for a, b in found)
      if count > best[0]:
        best = count, layout, state
  if not best[1]:
    wanted = expected_shapes(layouts[0].table, shapes)
    raise ValueError(
      f'{path}: no weights of this model, its first keys are {[*file][:3]}, expected such as '
      f'{[*wanted][:3]}{state_dicts.describe_places(path, file, wanted)}'
    )
  return best[1:]


def resize_first_axis(x, size):
  """The first `size` rows of x, padded with rows of zeros if it has fewer."""
  return np.pad(x[:size], [(0, max(size - len(x), 0))] + [(0, 0)] * (x.ndim - 1))


def pad_before(x, size):
  """An array of `size` rows whose last row is x [1, ...]; the others are zeros."""
  return np.pad(x, [(size - 1, 0)] + [(0, 0)] * (x.ndim - 1))


def is_ignored(key, layout):
  """True if a key matches one of the patterns that the layout ignores."""
  return any(re.fullmatch(pattern, key) for pattern in layout.ignored)


def check_state_dict(path, layout, state, shapes):
  """Raises ValueError with the differences between a state dict and what the layout expects."""
  expected, lines = expected_shapes(layout.table, shapes), []
  constants = {
    key: value.shape for key, value in layout.constants.items() if not is_ignored(key, layout)
  }
  for key, shape in (expected | constants).items():
    x = state.get(key)
    if key not in state:
      lines.append(f'- {key} {shape}')
    elif not hasattr(x, 'shape'):
      lines.append(f'~ {key} {type(x).__name__} in file, an array expected')
    elif tuple(x.shape) != tuple(shape):
      lines.append(f'~ {key} {tuple(x.shape)} in file, {shape} in model')
    elif key in expected and not jnp.issubdtype(x.dtype, jnp.floating):
      lines.append(f'~ {key} {x.dtype} in file, floating point expected')
  lines += [
    f'+ {key} {tuple(getattr(x, "shape", ()))}'
    for key, x in state.items()
    if key not in expected and key not in constants
  ]
  if not lines:
    return
  more = [f'... and {len(lines) - 10} more'] if len(lines) > 10 else []
  raise ValueError(
    f'{path}: not the weights of this model, {len(lines)} tensors differ '
    '(- missing in the file, + only there, ~ in both)'
    + ''.join(f'\n  {line}' for line in lines[:10] + more)
  )


def tensors(table, flat):
  """Yields (their key, numpy array) of every tensor; flat: {our name: array}."""
  for names, group in itertools.groupby(entries(table, flat), key=lambda entry: entry[0]):
    parts = [np.asarray(flat[name]) for name in names]
    for _, layer, key, pattern in group:
      left, right = (side.strip() for side in pattern.split('->'))
      now = parts if layer is None else [part[layer, ...] for part in parts]
      yield key, einops.rearrange(np.stack(now) if len(names) > 1 else now[0], f'{right} -> {left}')


def load_leaves(table, state, shapes, subtree, *, path='state dict'):
  """{our name: array with its sharding} of the leaves below `subtree`.

  Leaf by leaf, the largest first; each is assembled from the pieces that its devices hold. path: of
  the file, which the error of a value that is not finite names.
  """
  subtree = f'{subtree.rstrip("/")}/' if subtree else ''
  groups = itertools.groupby(entries(table, shapes), key=lambda entry: entry[0])
  groups = [(names, [*group]) for names, group in groups if f'{names[0]}/'.startswith(subtree)]
  groups.sort(key=lambda item: -sum(math.prod(shapes[name].shape) for name in item[0]))
  out = {}
  for names, group in groups:
    pieces = {name: device_pieces.empty(shapes[name]) for name in names}
    for _, layer, key, pattern in group:
      sizes = {a: n for a, n in pattern_sizes(names, layer, pattern, shapes).items() if a != '1'}
      value = state_dicts.check_finite(path, key, np.asarray(state[key]))
      value = einops.rearrange(value, pattern, **sizes)
      for name, part in zip(names, value if len(names) > 1 else [value]):
        device_pieces.fill(pieces[name], layer, part)
      del value, part
    for name in names:
      out[name] = device_pieces.to_array(shapes[name], pieces.pop(name))
  return {name: out[name] for name in shapes if name in out}
