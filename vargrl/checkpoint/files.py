"""Reads and writes the files of reference checkpoints; arrays are read when they are used.

A checkpoint is a .safetensors file (https://huggingface.co/docs/safetensors), a file of torch.save,
or a folder of Hugging Face's. A folder contains one of WEIGHT_FILES, maybe an index of several
files.
"""

from collections.abc import Mapping
import contextlib
import importlib.util
import itertools
import json
import os
import reprlib
import struct

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from vargrl.checkpoint import foreign, torch_archive
from vargrl.io import paths, text

TORCH_SUFFIXES = ('.pth', '.pt', '.bin')
SUFFIXES = (*TORCH_SUFFIXES, '.safetensors')
WEIGHT_FILES = (
  'model.safetensors',
  'model.safetensors.index.json',
  'open_clip_model.safetensors',
  'open_clip_pytorch_model.bin',
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
)
MAX_KEY = 1000  # characters of the name of a tensor
# Keys of config.json that contain other keys in some versions of transformers.
SUBCONFIGS = ('text_config', 'rope_parameters', 'rope_scaling')
# Keys of config.json that are not compared: the same weights may be used under another name.
IDENTITY_KEYS = ('architectures', 'model_type', 'type')
SHORT = reprlib.Repr()  # of values of any length and depth
SHORT.maxstring = SHORT.maxother = 200
SHORT.maxlist = SHORT.maxdict = 20
DTYPES = {
  'F64': 'float64',
  'F32': 'float32',
  'F16': 'float16',
  'BF16': ml_dtypes.bfloat16,
  'I64': 'int64',
  'I32': 'int32',
  'I16': 'int16',
  'I8': 'int8',
  'U64': 'uint64',
  'U32': 'uint32',
  'U16': 'uint16',
  'U8': 'uint8',
  'BOOL': 'bool',
}
DTYPES = {name: np.dtype(dtype) for name, dtype in DTYPES.items()}


class Safetensor:
  """A tensor of a .safetensors file that is read by np.asarray; has .shape and .dtype."""

  def __init__(self, file, path, key):
    self._file, self._path, self._key = file, path, key
    entry = file.get_slice(key)
    self.shape, dtype = tuple(entry.get_shape()), entry.get_dtype()
    if dtype not in DTYPES:
      raise ValueError(f'{path}: {key} has dtype {dtype}, expected one of {sorted(DTYPES)}')
    self.dtype = DTYPES[dtype]

  def __array__(self, dtype=None, copy=None):
    try:
      value = self._file.get_tensor(self._key)
    except SafetensorError as e:
      raise ValueError(f'{self._path}: {self._key} cannot be read ({e}); download it again') from e
    return value if dtype is None else value.astype(dtype)


def is_checkpoint(path):
  """True if `path` ends like a reference checkpoint, or is a folder that contains one.

  Also one of another kind, see `foreign`, which `open_tensors` refuses with what it is."""
  path = paths.path(path)
  return (
    path.suffix in SUFFIXES
    or any((path / name).is_file() for name in WEIGHT_FILES)
    or bool(foreign.describe(path))
  )


def open_tensors(path):
  """The tensors of a checkpoint file or folder: {key: array}, each read by np.asarray.

  The arrays have .shape and .dtype. A file of torch.save may also hold plain values, and
  dictionaries. Raises FileNotFoundError if there is no checkpoint, ValueError if it is damaged.
  """
  path = paths.path(path)
  if path.is_dir():
    found = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
    if not found:
      there = foreign.describe(path) or f'none of {", ".join(WEIGHT_FILES)} in this folder'
      raise FileNotFoundError(f'{path}: {there}')
    path = found[0]
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file')
  if path.name.endswith('.index.json'):
    return open_indexed(path)
  if path.suffix == '.safetensors':
    return open_safetensors(path)
  if path.suffix not in TORCH_SUFFIXES:
    raise ValueError(f'{path}: ending {path.suffix!r}, expected one of {", ".join(SUFFIXES)}')
  value = torch_archive.load(path)
  if not isinstance(value, Mapping):
    raise ValueError(f'{path}: holds a {type(value).__name__}, expected a dictionary of tensors')
  return check_keys(path, value)


def check_keys(path, state):
  """Returns a state dict; ValueError unless its keys are texts of at most MAX_KEY characters."""
  for key in state:
    if type(key) is not str or len(key) > MAX_KEY or not key.isprintable():
      text = type(key) is str
      found = f'{key[:20]!a} of {len(key)} characters' if text else f'a {type(key).__name__}'
      raise ValueError(
        f'{path}: {found} as the name of a tensor, a text of at most {MAX_KEY} printable '
        'characters expected'
      )
  return state


def open_safetensors(path):
  """{key: Safetensor} of a .safetensors file."""
  if not path.stat().st_size:
    raise ValueError(f'{path}: an empty file; download it again')
  try:
    file = safe_open(path, 'numpy')
  except SafetensorError as e:
    raise ValueError(
      f'{path}: not a whole .safetensors file ({str(e)[:200]}); download it again'
    ) from e
  return {key: Safetensor(file, path, key) for key in check_keys(path, file.keys())}


def open_indexed(index):
  """The tensors of all files that an index names.

  Raises ValueError unless each tensor is in the file that the index says.
  """
  where = text.read_json(index).get('weight_map')
  if type(where) is not dict or not all(type(name) is str for name in where.values()):
    raise ValueError(f'{index}: no index with a weight_map, a file for each tensor expected')
  names = sorted({*check_keys(index, where).values()})
  for name in names:
    plain = os.path.basename(name) == name and '\0' not in name and len(name) < 200
    if not plain or not name.endswith(SUFFIXES):
      raise ValueError(
        f'{index}: names {name[:200]!r}, expected a checkpoint file of the same folder'
      )
  parts = {name: open_tensors(index.parent / name) for name in names}
  if lost := [key for key, name in where.items() if key not in parts[name]]:
    raise ValueError(f'{index}: {lost[0]} is not in {where[lost[0]]}; download both again')
  return {key: parts[name][key] for key, name in where.items()}


def check_config(path, expected):
  """Raises ValueError if config.json of the checkpoint contradicts `expected`.

  path: a folder, or a file in one; nothing is checked if it has no config.json. expected: {key:
  value}. A key may be in one of SUBCONFIGS, as different versions of transformers write it; a key
  that config.json does not have is not compared.
  """
  path = paths.path(path)
  path = (path if path.is_dir() else path.parent) / 'config.json'
  if not expected or not path.is_file():
    return
  config = text.read_json(path)
  if lines := list(config_differences(config, expected)):
    raise ValueError(f'{path}: another model than that of the run: {"; ".join(lines)}')


def config_differences(config, expected):
  """Yields a line for each expected value that config.json contradicts."""
  for key, value in expected.items():
    if key in IDENTITY_KEYS:
      continue
    if key == 'vision_config':
      part = config.get(key)
      yield from (
        f'{key}.{line}'
        for line in config_differences(part if isinstance(part, dict) else {}, value)
      )
    elif isinstance(value, dict):
      yield from config_differences(config, value)
    else:
      yield from (
        f'{key} {SHORT.repr(found)} found, {value!r} expected'
        for found in config_values(config, key)
        if found != value
      )


def config_values(config, key):
  """The values of a key in a config, or in the first of its SUBCONFIGS that has it; or []."""
  if key in config:
    return [config[key]]
  parts = [config[part] for part in SUBCONFIGS if isinstance(config.get(part), dict)]
  return next((found for part in parts if (found := config_values(part, key))), [])


def check_suffix(path):
  """Raises ValueError unless `path` can be written; .pth files need torch."""
  ending = paths.path(path).suffix
  if ending not in ('.safetensors', '.pth'):
    raise ValueError(f'{path}: ending {ending!r}, expected .safetensors or .pth')
  if ending == '.pth' and not importlib.util.find_spec('torch'):
    raise ValueError(
      f'{path}: .pth files are written by torch, which is not installed; '
      'pip install torch, or write .safetensors'
    )


def write(path, shapes, arrays):
  """Writes a checkpoint file, completely or not at all.

  shapes: {key: (shape, dtype)}. arrays: yields (key, numpy array) of each, in the order of
  `shapes`. A .safetensors file is written while they come and none is kept.
  """
  check_suffix(path)
  path = paths.path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'.{path.name}.{os.getpid()}.part')
  try:
    if path.suffix == '.safetensors':
      write_safetensors(part, shapes, arrays)
    else:
      import torch

      torch.save({key: torch.from_numpy(np.array(x, order='C')) for key, x in arrays}, part)
      with part.open('rb') as file:
        os.fsync(file.fileno())
    os.replace(part, path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      part.unlink()


def write_folder(folder, shapes, arrays, *, max_file_bytes, config):
  """Writes a folder of Hugging Face's.

  Its files have at most `max_file_bytes` of tensors, or a single tensor; several get an index.
  config: of config.json, which also gets the dtype of the weights; {} writes none. The file that a
  reader opens first is written last. shapes, arrays: see `write`. Raises ValueError if the folder
  already contains a checkpoint.
  """
  folder = paths.path(folder)
  if is_checkpoint(folder):
    raise ValueError(f'{folder}: a folder with weights found, one without them or none expected')
  size = lambda key: int(np.prod(shapes[key][0], dtype=object)) * np.dtype(shapes[key][1]).itemsize
  parts, used = [[]], 0
  for key in shapes:
    if parts[-1] and used + size(key) > max_file_bytes:
      parts, used = [*parts, []], 0
    parts[-1].append(key)
    used += size(key)
  folder.mkdir(parents=True, exist_ok=True)
  if config:
    dtype = np.dtype(shapes[parts[0][0]][1]).name
    text.write_json(folder / 'config.json', config | {'torch_dtype': dtype})
  arrays, count, where = iter(arrays), len(parts), {}
  for i, part in enumerate(parts, 1):
    name = 'model.safetensors' if count == 1 else f'model-{i:05d}-of-{count:05d}.safetensors'
    write(folder / name, {key: shapes[key] for key in part}, itertools.islice(arrays, len(part)))
    where |= dict.fromkeys(part, name)
  if count == 1:
    return
  index = {'metadata': {'total_size': sum(map(size, shapes))}, 'weight_map': where}
  text.write_json(folder / 'model.safetensors.index.json', index)


def write_safetensors(path, shapes, arrays):
  """Writes a .safetensors file; see `write`."""
  codes, header, end = (
    {dtype: code for code, dtype in DTYPES.items()},
    {'__metadata__': {'format': 'pt'}},
    0,
  )
  for key, (shape, dtype) in shapes.items():
    start, end = end, end + int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    header[key] = {'dtype': codes[np.dtype(dtype)], 'shape': [*shape], 'data_offsets': [start, end]}
  head = json.dumps(header, separators=(',', ':')).encode()
  head += b' ' * (-len(head) % 8)  # the data is aligned
  with path.open('wb') as file:
    file.write(struct.pack('<Q', len(head)) + head)
    for (key, (shape, dtype)), (name, x) in zip(shapes.items(), arrays, strict=True):
      assert (name, x.shape, x.dtype) == (key, tuple(shape), dtype), (name, x.shape, x.dtype, key)
      file.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8))
    file.flush()
    os.fsync(file.fileno())
