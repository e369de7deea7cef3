"""Reference checkpoint files as mappings of arrays that are read when they are used, and the writing of them.

A file is .safetensors (https://huggingface.co/docs/safetensors) or of torch.save; a folder is one of Hugging
Face's, in which the weights lie under one of FOLDER's names, maybe in several files with an index.
"""
from collections.abc import Mapping
import contextlib
import importlib.util
import json
import os
import pathlib
import struct

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from vargrl.checkpoint import pickled

PICKLED = ('.pth', '.pt', '.bin')
ENDINGS = (*PICKLED, '.safetensors')
FOLDER = ('model.safetensors', 'model.safetensors.index.json', 'open_clip_model.safetensors',
          'open_clip_pytorch_model.bin', 'pytorch_model.bin', 'pytorch_model.bin.index.json')
DTYPES = {'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': ml_dtypes.bfloat16, 'I64': 'int64',
          'I32': 'int32', 'I16': 'int16', 'I8': 'int8', 'U64': 'uint64', 'U32': 'uint32', 'U16': 'uint16',
          'U8': 'uint8', 'BOOL': 'bool'}
DTYPES = {name: np.dtype(dtype) for name, dtype in DTYPES.items()}


class Safetensor:
  """A handle on a tensor of a .safetensors file: np.asarray reads it."""

  def __init__(self, file, path, key):
    self._file, self._path, self._key = file, path, key
    about = file.get_slice(key)
    self.shape, dtype = tuple(about.get_shape()), about.get_dtype()
    if dtype not in DTYPES:
      raise ValueError(f'{path}: {key} has dtype {dtype}, expected one of {sorted(DTYPES)}')
    self.dtype = DTYPES[dtype]

  def __array__(self, dtype=None, copy=None):
    try:
      value = self._file.get_tensor(self._key)
    except SafetensorError as e:
      raise ValueError(f'{self._path}: {self._key} cannot be read ({e}); download it again') from e
    return value if dtype is None else value.astype(dtype)


def known(path):
  """True if `path` names a reference checkpoint: by its ending, or as a folder that holds one."""
  path = pathlib.Path(path).expanduser()
  return path.suffix in ENDINGS or any((path / name).is_file() for name in FOLDER)


def open(path):  # as in files.open(path)
  """{key: array with .shape and .dtype, read by np.asarray} of a file or folder; values of .pth files may be
  anything plain. FileNotFoundError says what was looked for, ValueError what is wrong with a file."""
  path = pathlib.Path(path).expanduser()
  if path.is_dir():
    found = [path / name for name in FOLDER if (path / name).is_file()]
    if not found: raise FileNotFoundError(f'{path}: none of {", ".join(FOLDER)} in this folder')
    path = found[0]
  if not path.is_file(): raise FileNotFoundError(f'{path}: no such file')
  if path.name.endswith('.index.json'): return together(path)
  if path.suffix == '.safetensors': return safetensors(path)
  if path.suffix not in PICKLED:
    raise ValueError(f'{path}: ending {path.suffix!r}, expected one of {", ".join(ENDINGS)}')
  value = pickled.load(path)
  if not isinstance(value, Mapping):
    raise ValueError(f'{path}: holds a {type(value).__name__}, expected a dictionary of tensors')
  return value


def safetensors(path):
  if not path.stat().st_size: raise ValueError(f'{path}: an empty file; download it again')
  try:
    file = safe_open(path, 'numpy')
  except SafetensorError as e:
    raise ValueError(f'{path}: not a whole .safetensors file ({e}); download it again') from e
  return {key: Safetensor(file, path, key) for key in file.keys()}


def together(index):
  """The tensors of all files that an index names; each of them must be in the file that it says."""
  try:
    where = dict(json.loads(index.read_text())['weight_map'])
    names = sorted({pathlib.PurePath(name) for name in where.values()})
  except (ValueError, KeyError, TypeError) as e:
    raise ValueError(f'{index}: no index with a weight_map ({type(e).__name__}: {e}); '
                     'download it again') from e
  if odd := [name for name in names if len(name.parts) != 1 or name.suffix not in ENDINGS]:
    raise ValueError(f'{index}: names {str(odd[0])!r}, expected a checkpoint file of the same folder')
  parts = {str(name): open(index.parent / name) for name in names}
  if lost := [key for key, name in where.items() if key not in parts[name]]:
    raise ValueError(f'{index}: {lost[0]} is not in {where[lost[0]]}; download both again')
  return {key: parts[name][key] for key, name in where.items()}


def check_ending(path):
  """ValueError unless `path` can be written: the ending is known, and torch there if it is needed."""
  ending = pathlib.Path(path).suffix
  if ending not in ('.safetensors', '.pth'):
    raise ValueError(f'{path}: ending {ending!r}, expected .safetensors or .pth')
  if ending == '.pth' and not importlib.util.find_spec('torch'):
    raise ValueError(f'{path}: .pth files are written by torch, which is not installed; '
                     "pip install 'vargrl[torch]', or write .safetensors")


def write(path, shapes, arrays):
  """Writes a whole file or none.

  shapes: {key: (shape, dtype)}. arrays: (key, numpy array) of each, in the order of `shapes`; a
  .safetensors file is written as they come, none is kept.
  """
  check_ending(path)
  path = pathlib.Path(path).expanduser()
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'.{path.name}.{os.getpid()}.part')
  try:
    if path.suffix == '.safetensors': write_safetensors(part, shapes, arrays)
    else:
      import torch
      torch.save({key: torch.from_numpy(np.array(x, order='C')) for key, x in arrays}, part)
    os.replace(part, path)
  finally:
    with contextlib.suppress(FileNotFoundError): part.unlink()


def write_safetensors(path, shapes, arrays):
  codes, header, end = {dtype: code for code, dtype in DTYPES.items()}, {'__metadata__': {'format': 'pt'}}, 0
  for key, (shape, dtype) in shapes.items():
    start, end = end, end + int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    header[key] = {'dtype': codes[np.dtype(dtype)], 'shape': [*shape], 'data_offsets': [start, end]}
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # the data is aligned
  with path.open('wb') as file:
    file.write(struct.pack('<Q', len(text)) + text)
    for (key, (shape, dtype)), (name, x) in zip(shapes.items(), arrays, strict=True):
      assert (name, x.shape, x.dtype) == (key, tuple(shape), dtype), (name, x.shape, x.dtype, key)
      file.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8))
    file.flush()
    os.fsync(file.fileno())
