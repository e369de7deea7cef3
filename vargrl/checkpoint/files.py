"""Reference checkpoint files as mappings of arrays that are read when they are used, and the
writing of them.

A file is .safetensors (https://huggingface.co/docs/safetensors) or of torch.save; a folder is one
of Hugging Face's, in which the weights lie under one of FOLDER's names, maybe in several files with
an index."""

from collections.abc import Mapping
import contextlib
import importlib.util
import itertools
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
FOLDER = (
  'model.safetensors',
  'model.safetensors.index.json',
  'open_clip_model.safetensors',
  'open_clip_pytorch_model.bin',
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
)
PARTS = ('text_config', 'rope_parameters', 'rope_scaling')  # of config.json
IDENTITY = (
  'architectures',
  'model_type',
  'type',
)  # of config.json: the same weights may be used by others
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
  """{key: array with .shape and .dtype, read by np.asarray} of a file or folder; values of .pth
  files may be anything plain. FileNotFoundError says what was looked for, ValueError what is wrong
  with a file."""
  path = pathlib.Path(path).expanduser()
  if path.is_dir():
    found = [path / name for name in FOLDER if (path / name).is_file()]
    if not found:
      raise FileNotFoundError(f'{path}: none of {", ".join(FOLDER)} in this folder')
    path = found[0]
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file')
  if path.name.endswith('.index.json'):
    return together(path)
  if path.suffix == '.safetensors':
    return safetensors(path)
  if path.suffix not in PICKLED:
    raise ValueError(f'{path}: ending {path.suffix!r}, expected one of {", ".join(ENDINGS)}')
  value = pickled.load(path)
  if not isinstance(value, Mapping):
    raise ValueError(f'{path}: holds a {type(value).__name__}, expected a dictionary of tensors')
  return value


def safetensors(path):
  if not path.stat().st_size:
    raise ValueError(f'{path}: an empty file; download it again')
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
    raise ValueError(
      f'{index}: no index with a weight_map ({type(e).__name__}: {e}); download it again'
    ) from e
  if odd := [name for name in names if len(name.parts) != 1 or name.suffix not in ENDINGS]:
    raise ValueError(
      f'{index}: names {str(odd[0])!r}, expected a checkpoint file of the same folder'
    )
  parts = {str(name): open(index.parent / name) for name in names}
  if lost := [key for key, name in where.items() if key not in parts[name]]:
    raise ValueError(f'{index}: {lost[0]} is not in {where[lost[0]]}; download both again')
  return {key: parts[name][key] for key, name in where.items()}


def refuse_config(path, wanted):
  """ValueError unless config.json of the checkpoint folder `path`, if there is one, says what
  `wanted` says.

  Keys may lie in parts of it, as of different versions of transformers; what it does not tell is
  not compared."""
  path = pathlib.Path(path).expanduser()
  path = (path if path.is_dir() else path.parent) / 'config.json'
  if not wanted or not path.is_file():
    return
  try:
    config = dict(**json.loads(path.read_text(encoding='utf-8')))
  except (ValueError, TypeError) as e:
    raise ValueError(f'{path}: no dictionary in JSON ({e}); download it again') from e
  if lines := list(differences(config, wanted)):
    raise ValueError(f'{path}: another model than that of the run: {"; ".join(lines)}')


def differences(config, wanted):
  """'key: found, expected' of all that differs."""
  for key, value in wanted.items():
    if key in IDENTITY:
      continue
    if key == 'vision_config':
      part = config.get(key)
      yield from (
        f'{key}.{line}' for line in differences(part if isinstance(part, dict) else {}, value)
      )
    elif isinstance(value, dict):
      yield from differences(config, value)
    else:
      yield from (
        f'{key} {found!r} found, {value!r} expected'
        for found in told(config, key)
        if found != value
      )


def told(config, key):
  """[what config.json says of a key, in it or in its parts], or []."""
  if key in config:
    return [config[key]]
  parts = [config[part] for part in PARTS if isinstance(config.get(part), dict)]
  return next((found for part in parts if (found := told(part, key))), [])


def check_ending(path):
  """ValueError unless `path` can be written: the ending is known, and torch there if it is
  needed.
  """
  ending = pathlib.Path(path).suffix
  if ending not in ('.safetensors', '.pth'):
    raise ValueError(f'{path}: ending {ending!r}, expected .safetensors or .pth')
  if ending == '.pth' and not importlib.util.find_spec('torch'):
    raise ValueError(
      f'{path}: .pth files are written by torch, which is not installed; '
      "pip install 'vargrl[torch]', or write .safetensors"
    )


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
    if path.suffix == '.safetensors':
      write_safetensors(part, shapes, arrays)
    else:
      import torch

      torch.save({key: torch.from_numpy(np.array(x, order='C')) for key, x in arrays}, part)
    os.replace(part, path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      part.unlink()


def write_folder(folder, shapes, arrays, *, limit, config):
  """Writes a folder of Hugging Face's: files of at most `limit` bytes, or of one tensor, an index
  if they are several, and config.json, which also says the weights' dtype. What is read first is
  written last. See `write`."""
  folder = pathlib.Path(folder).expanduser()
  if known(folder):
    raise ValueError(f'{folder}: a folder with weights found, one without them or none expected')
  size = lambda key: int(np.prod(shapes[key][0], dtype=object)) * np.dtype(shapes[key][1]).itemsize
  parts, used = [[]], 0
  for key in shapes:
    if parts[-1] and used + size(key) > limit:
      parts, used = [*parts, []], 0
    parts[-1].append(key)
    used += size(key)
  folder.mkdir(parents=True, exist_ok=True)
  if config:
    dtype = np.dtype(shapes[parts[0][0]][1]).name
    (folder / 'config.json').write_text(
      json.dumps(config | {'torch_dtype': dtype}, indent=2) + '\n'
    )
  arrays, count, where = iter(arrays), len(parts), {}
  for i, part in enumerate(parts, 1):
    name = 'model.safetensors' if count == 1 else f'model-{i:05d}-of-{count:05d}.safetensors'
    write(folder / name, {key: shapes[key] for key in part}, itertools.islice(arrays, len(part)))
    where |= dict.fromkeys(part, name)
  if count == 1:
    return
  index = {'metadata': {'total_size': sum(map(size, shapes))}, 'weight_map': where}
  (folder / '.index').write_text(json.dumps(index, indent=2) + '\n')
  os.replace(folder / '.index', folder / 'model.safetensors.index.json')


def write_safetensors(path, shapes, arrays):
  codes, header, end = (
    {dtype: code for code, dtype in DTYPES.items()},
    {'__metadata__': {'format': 'pt'}},
    0,
  )
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
