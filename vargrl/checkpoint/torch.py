"""State dicts in the reference layout <-> our parameters, by one table per model.

A row is ours: (theirs, einops pattern theirs -> ours). `{X}` in their key stacks the layers,
`{X/4}` and `{X%4}` do where these lie in chunks of four, `{q,k,v}` in our name splits the leading
axis. A pattern is its own inverse, so reading and writing walk the same table, and every tensor
must be matched exactly once, each way. See types.Layout."""

from collections.abc import Mapping
import itertools
import math
import pathlib
import re

import einops
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vargrl.checkpoint import files
from vargrl.checkpoint.files import open  # as in torch.open(path)
from vargrl.types import Layout

ADDED = '/lora_'  # part of our names that no reference checkpoint has


def load(path, layouts, abstract, only=''):
  """Our parameters, from a file or folder, on the shardings of `abstract`.

  layouts: of the model, see `chosen`. abstract: the whole model's ShapeDtypeStructs. only: 'image'
  gives the subtree params['image'] alone; the rest is matched and not read. Each tensor is read
  once; in host memory are at most the parameters and one leaf more (of a mesh of this host's
  devices). Raises like `check`."""
  layout, state = matched(path, layouts, abstract)
  for key, value in layout.constants.items():
    if key in state and not np.array_equal(np.asarray(state[key]), value):
      raise ValueError(
        f'{path}: {key} is not what the config gives, as for another schedule of scales'
      )
  return subtree(place(layout.table, state, named(abstract), only), only)


def check(path, layouts, abstract):
  """ValueError, with a list, unless the file holds exactly this model; no array is read.

  The list: what is missing (-), unexpected (+) or of another shape (~).
  """
  matched(path, layouts, abstract)


def save(path, layout, params, *, dtype=None, limit=5e9):
  """Writes .safetensors, or .pth with torch's help, in the reference layout, constants included; a
  path without an ending becomes a folder with files of at most `limit` bytes and a config.json.
  dtype: of the weights, None: theirs."""
  shapes = traverse_util.flatten_dict(params, sep='/')
  if added := [name for name in shapes if ADDED in name]:
    raise ValueError(
      f'{path}: {added[0]} has no place in the reference layout, expected merged weights'
    )
  dtypes = {key: dtype or shapes[names[0]].dtype for names, _, key, _ in rows(layout.table, shapes)}
  headers = {
    key: (shape, np.dtype(dtypes[key])) for key, shape in expected(layout.table, shapes).items()
  }
  headers |= {
    key: ((size, *headers[key][0][1:]), headers[key][1]) for key, size in layout.last.items()
  }
  headers |= {key: (value.shape, value.dtype) for key, value in layout.constants.items()}
  arrays = ((key, x.astype(dtypes[key], copy=False)) for key, x in tensors(layout.table, shapes))
  arrays = ((key, trailing(x, layout.last[key]) if key in layout.last else x) for key, x in arrays)
  arrays = itertools.chain(arrays, layout.constants.items())
  if pathlib.Path(path).suffix:
    files.write(path, headers, arrays)
  else:
    files.write_folder(path, headers, arrays, limit=limit, config=layout.config)


def read(table, state, shapes, constants=()):
  """{their key: array} -> our parameters, as `load` does; constants: their keys that hold nothing
  learned.
  """
  refuse(
    'state dict',
    Layout(table),
    {k: v for k, v in state.items() if k not in constants},
    named(shapes),
  )
  return subtree(place(table, state, named(shapes), ''), '')


def write(table, params, constants):
  """Our parameters -> {their key: numpy array}; constants are added as they are."""
  return dict(tensors(table, traverse_util.flatten_dict(params, sep='/'))) | dict(constants)


def rows(table, shapes):
  """(our names, layer or None, their key, pattern) of every tensor of the model.

  shapes: {our name: anything with a shape}.
  """
  for ours, (theirs, pattern) in table.items():
    group = re.search(r'\{(.+?)\}', ours)
    names = [ours.replace(group[0], part) for part in group[1].split(',')] if group else [ours]
    absent = [name for name in names if name not in shapes]
    if absent:
      raise ValueError(f'table: {absent} are no parameters of the model')
    for layer in range(shapes[names[0]].shape[0]) if '{X' in theirs else [None]:
      yield names, layer, numbered(theirs, layer), pattern


def numbered(theirs, layer):
  """'a.{X}.b' -> 'a.5.b', 'a.{X/4}.{X%4}.b' -> 'a.1.1.b'."""
  parts = {'': lambda n: layer, '/': lambda n: layer // n, '%': lambda n: layer % n}
  return re.sub(
    r'\{X([/%]?)(\d*)\}', lambda found: str(parts[found[1]](int(found[2] or 1))), theirs
  )


def named(abstract):
  """{our name: leaf} of all that reference checkpoints hold."""
  leaves = traverse_util.flatten_dict(abstract, sep='/')
  return {name: x for name, x in leaves.items() if ADDED not in name}


def subtree(leaves, only):
  tree = traverse_util.unflatten_dict(leaves, sep='/')
  for part in filter(None, only.split('/')):
    tree = tree[part]
  return tree


def sizes(names, layer, pattern, shapes):
  """{letter: size} of a pattern."""
  shape = shapes[names[0]].shape[layer is not None :]
  shape = shape if len(names) == 1 else (len(names), *shape)
  return dict(zip(pattern.split('->')[1].split(), shape, strict=True))


def expected(table, shapes):
  """{their key: shape}; a table that does not match its own model once is a ValueError."""
  out, used = {}, set()
  for names, layer, key, pattern in rows(table, shapes):
    size = sizes(names, layer, pattern, shapes) | {'1': 1}
    axes = re.findall(r'\(([^)]*)\)|(\S+)', pattern.split('->')[0])
    if key in out:
      raise ValueError(f'table: {key} is in two rows')
    out[key] = tuple(math.prod(size[a] for a in (many or one).split()) for many, one in axes)
    used.update(names)
  if lost := [name for name in shapes if name not in used]:
    raise ValueError(f'table: no row for {lost}')
  return out


def matched(path, layouts, abstract):
  """(layout, {their key: lazy array}) of a file that holds exactly the model."""
  files.refuse_config(path, layouts[0].config)
  layout, state = chosen(path, layouts, named(abstract))
  wanted = expected(layout.table, named(abstract))
  for key, size in (dict.fromkeys(layout.cut) | layout.last).items():
    if not hasattr(state.get(key), 'shape') or state[key].shape[1:] != wanted[key][1:]:
      continue
    if size is None:
      state[key] = leading(np.asarray(state[key]), wanted[key][0])
    elif state[key].shape[0] == size:
      state[key] = np.asarray(state[key])[-1:]
    else:
      raise ValueError(f'{path}: {key} has {state[key].shape[0]} rows, {size} expected')
  refuse(path, layout, state, named(abstract))
  return layout, state


def chosen(path, layouts, shapes):
  """(layout, state dict) that share the most keys, and of these the most shapes, of all layouts and
  of all places in the file."""
  file, best = open(path), ((0, 0), None, None)
  for layout in layouts:
    wanted = expected(layout.table, shapes)
    for nest in (*layout.nests, ''):
      state = stripped(inside(file, nest), layout)
      found = [
        (getattr(state[key], 'shape', None), shape) for key, shape in wanted.items() if key in state
      ]
      count = len(found), sum(a == b for a, b in found)
      if count > best[0]:
        best = count, layout, state
  if not best[1]:
    raise ValueError(
      f'{path}: no weights of this model, its first keys are {[*map(str, file)][:3]}, '
      f'expected such as {[*expected(layouts[0].table, shapes)][:3]}'
    )
  return best[1:]


def leading(x, size):
  """The first `size` rows, those that there are not are zeros."""
  return np.pad(x[:size], [(0, max(size - len(x), 0))] + [(0, 0)] * (x.ndim - 1))


def trailing(x, size):
  """The last row of an array of so many, which else are zeros."""
  return np.pad(x, [(size - 1, 0)] + [(0, 0)] * (x.ndim - 1))


def inside(file, nest):
  """The dictionary at 'a/b' of a file; an empty one if there is none."""
  for part in filter(None, nest.split('/')):
    file = file.get(part) if isinstance(file, Mapping) else None
  return file if isinstance(file, Mapping) else {}


def stripped(state, layout):
  """Without the prefixes that all keys share, and without what the layout ignores."""
  state = {str(key): value for key, value in state.items()}
  for prefix in layout.prefixes:
    if all(key.startswith(prefix) for key in state):
      state = {key.removeprefix(prefix): value for key, value in state.items()}
  return {key: value for key, value in state.items() if not ignored(key, layout)}


def ignored(key, layout):
  return any(re.fullmatch(pattern, key) for pattern in layout.ignored)


def refuse(path, layout, state, shapes):
  """ValueError with the differences between a state dict and what the layout expects."""
  wanted, lines = expected(layout.table, shapes), []
  constants = {
    key: value.shape for key, value in layout.constants.items() if not ignored(key, layout)
  }
  for key, shape in (wanted | constants).items():
    x = state.get(key)
    if key not in state:
      lines.append(f'- {key} {shape}')
    elif not hasattr(x, 'shape'):
      lines.append(f'~ {key} {type(x).__name__} in file, an array expected')
    elif tuple(x.shape) != tuple(shape):
      lines.append(f'~ {key} {tuple(x.shape)} in file, {shape} in model')
    elif key in wanted and not jnp.issubdtype(x.dtype, jnp.floating):
      lines.append(f'~ {key} {x.dtype} in file, floating point expected')
  lines += [
    f'+ {key} {tuple(getattr(x, "shape", ()))}'
    for key, x in state.items()
    if key not in wanted and key not in constants
  ]
  if not lines:
    return
  more = [f'... and {len(lines) - 10} more'] if len(lines) > 10 else []
  raise ValueError(
    f'{path}: not the weights of this model, {len(lines)} tensors differ '
    '(- missing in the file, + only there, ~ in both)'
    + ''.join(f'\n  {line}' for line in lines[:10] + more)
  )


def tensors(table, leaves):
  """(their key, numpy array) of every row, one after the other."""
  for names, group in itertools.groupby(rows(table, leaves), key=lambda row: row[0]):
    parts = [np.asarray(leaves[name]) for name in names]
    for _, layer, key, pattern in group:
      left, right = (side.strip() for side in pattern.split('->'))
      now = parts if layer is None else [part[layer, ...] for part in parts]
      yield key, einops.rearrange(np.stack(now) if len(names) > 1 else now[0], f'{right} -> {left}')


def place(table, state, shapes, only):
  """{our name: array on its sharding} of the names below `only`.

  Leaf by leaf, the largest first: each is put together in the pieces that its devices want.
  """
  only = f'{only.rstrip("/")}/' if only else ''
  groups = itertools.groupby(rows(table, shapes), key=lambda row: row[0])
  groups = [(names, [*group]) for names, group in groups if f'{names[0]}/'.startswith(only)]
  groups.sort(key=lambda item: -sum(math.prod(shapes[name].shape) for name in item[0]))
  out = {}
  for names, group in groups:
    pieces = {name: emptied(shapes[name]) for name in names}
    for _, layer, key, pattern in group:
      known = {a: n for a, n in sizes(names, layer, pattern, shapes).items() if a != '1'}
      value = einops.rearrange(np.asarray(state[key]), pattern, **known)
      for name, part in zip(names, value if len(names) > 1 else [value]):
        fill(pieces[name], layer, part)
      del value, part
    for name in names:
      out[name] = put(shapes[name], pieces.pop(name))
  return {name: out[name] for name in shapes if name in out}


def where(x):
  """(sharding, {((start, stop), ...): devices}) of an abstract array: its pieces on this host."""
  sharding = getattr(x, 'sharding', None) or jax.sharding.SingleDeviceSharding(
    jax.local_devices()[0]
  )
  out = {}
  for device, index in sharding.addressable_devices_indices_map(tuple(x.shape)).items():
    piece = tuple(s.indices(n)[:2] for s, n in zip(index, x.shape))
    out.setdefault(piece, []).append(device)
  return sharding, out


def emptied(x):
  """{piece: uninitialised numpy array} of an abstract array."""
  return {
    piece: np.empty([stop - start for start, stop in piece], x.dtype) for piece in where(x)[1]
  }


def fill(pieces, layer, value):
  """Writes an array, or one layer of it, to the pieces that hold some of it; this casts."""
  for piece, array in pieces.items():
    if layer is not None:
      (start, stop), *piece = piece
      if not start <= layer < stop:
        continue
      array = array[layer - start, ...]  # a view, of one number too
    array[...] = value[tuple(slice(*bounds) for bounds in piece)]


def put(x, pieces):
  """The array made of its pieces, each of which leaves the host's memory as soon as it is on its
  devices.
  """
  sharding, places = where(x)
  arrays = []
  for piece, devices in places.items():
    array = pieces.pop(piece)
    arrays += jax.block_until_ready([jax.device_put(array, device) for device in devices])
    del array
  return jax.make_array_from_single_device_arrays(tuple(x.shape), sharding, arrays)
