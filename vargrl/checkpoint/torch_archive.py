"""Files of torch.save (.pth, .pt, .bin), read without torch.

Such a file is a zip archive of a pickle, data.pkl, and of the uncompressed memory of its tensors,
data/0, data/1 ..., which is mapped and not copied.
"""

from functools import partial
import io
import os
import struct
import zipfile

import numpy as np

from vargrl.checkpoint import torch_pickle, torch_values
from vargrl.io import paths

# How files of torch before 1.6 begin: the pickle of a number.
LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'
DIRECTORY_BYTES = 2**23  # of the names of the tensors of an archive, and a quarter of the file


class HugeDirectory(ValueError):
  """The directory of a zip archive is too large for its file."""


class Directory(io.FileIO):
  """A file of which zipfile reads the directory; that costs ten to twenty times the directory."""

  def read(self, size=-1):
    if size > (most := DIRECTORY_BYTES + os.fstat(self.fileno()).st_size // 4):
      raise HugeDirectory(
        f'a zip archive with a directory of {size} bytes, at most {most} expected; download it '
        'again'
      )
    return super().read(size)


def load(path):
  """The value that torch.save was given, with tensors as read-only numpy arrays.

  The arrays are views of the mapped file. Raises ValueError for a file that torch.save did not
  write, that is damaged, or that contains anything but tensors and plain containers.
  """
  path = paths.path(path)
  with open(path, 'rb') as file:
    head = file.read(512)
  if not head:
    raise ValueError(f'{path}: an empty file, expected one of torch.save; download it again')
  data = np.memmap(path, np.uint8, 'r').view(np.ndarray)
  try:
    members = archive_members(path, data, head)
    code = members['data.pkl'].tobytes()
    return torch_pickle.run(code, partial(load_storage, members), len(data))
  except ValueError as e:
    raise ValueError(f'{path}: {e}') from e
  except Exception as e:  # of a damaged pickle or zip: underflows, bad operands, overflows...
    raise ValueError(
      f'{path}: damaged, download it again ({type(e).__name__}: {torch_values.shown(str(e), 80)})'
    ) from e


def archive_members(path, data, head):
  """{name below the archive's folder: its bytes, uint8 [n]}.

  data: the whole file, uint8. head: its first bytes, for the error of a file that is no archive.
  """
  try:
    with Directory(path) as file, zipfile.ZipFile(file) as archive:
      infos = archive.infolist()
  except HugeDirectory:
    raise
  except Exception as e:  # zipfile raises half a dozen kinds for a damaged directory
    raise ValueError(not_an_archive(head)) from e
  names = [info.filename for info in infos]
  if any(name.endswith('/constants.pkl') for name in names):
    raise ValueError(
      'a TorchScript archive; with torch, save its weights alone: '
      'torch.save(torch.jit.load(FILE).state_dict(), OTHER)'
    )
  roots = [name.removesuffix('data.pkl') for name in names if name.endswith('/data.pkl')]
  if len(roots) != 1:
    raise ValueError(f'a zip archive with {len(roots)} data.pkl, expected 1, of torch.save')
  out = {
    info.filename.removeprefix(roots[0]): member_bytes(info, data)
    for info in infos
    if info.filename.startswith(roots[0]) and not info.is_dir()
  }
  order = out['byteorder'].tobytes() if 'byteorder' in out else b'little'
  if order != b'little':
    raise ValueError(
      f'byteorder {order[:8]!r} found, little expected; save it on a little-endian machine'
    )
  return out


def not_an_archive(head):
  """A message that says what a file that is no whole zip archive probably is."""
  if head.startswith(b'PK'):
    return (
      'truncated or damaged, the directory at the end of the archive cannot be read; '
      'download '
      'it again'
    )
  if head.startswith(LEGACY) or head[257:262] == b'ustar':
    return (
      'written in the format of torch before 1.6; with a present torch, load and save it: '
      'torch.save(torch.load(FILE, weights_only=True), FILE)'
    )
  if head.startswith(b'version https://git-lfs'):
    return 'a pointer of Git LFS, not the file that it stands for; fetch that with git lfs pull'
  return f'not a file of torch.save, it begins with {head[:8]!r}; download it again'


def member_bytes(info, data):
  """The bytes of one member of the archive; torch.save compresses none, so they can be mapped."""
  name = torch_values.shown(info.filename, 80)
  if (
    info.compress_type != zipfile.ZIP_STORED
    or info.file_size != info.compress_size
    or info.flag_bits & 1
  ):
    raise ValueError(
      f'{name} is compressed or encrypted, which torch.save never does; {torch_values.SAVE_AGAIN}'
    )
  start = info.header_offset
  header = data[start : start + 30].tobytes() if start >= 0 else b''
  if len(header) < 30 or header[:4] != b'PK\3\4':
    raise ValueError(f'damaged, {name} is not where the archive says; download it again')
  start += 30 + sum(struct.unpack('<HH', header[26:]))
  if start + info.file_size > len(data):
    raise ValueError(
      f'truncated, {name} ends at byte {start + info.file_size} of {len(data)}; download it again'
    )
  return data[start : start + info.file_size]


def load_storage(members, persistent_id):
  """The Storage of a persistent id, ('storage', kind, key, device, number of elements)."""
  if (
    type(persistent_id) is not tuple
    or len(persistent_id) != 5
    or type(persistent_id[0]) is not str
    or persistent_id[0] != 'storage'
    or type(persistent_id[1]) is not torch_values.Global
    or persistent_id[1].name not in torch_values.STORAGES
    or type(persistent_id[2]) is not str
    or len(persistent_id[2]) > 100
  ):
    raise ValueError('damaged, a persistent id that is no storage; download it again')
  _, kind, key, _, count = persistent_id
  if f'data/{key}' not in members:
    raise ValueError(f'damaged, no entry data/{torch_values.shown(key, 20)}; download it again')
  dtype, data = torch_values.STORAGES[kind.name], members[f'data/{key}']
  if len(data) < torch_values.natural(count) * dtype.itemsize:
    raise ValueError(
      f'data/{torch_values.shown(key, 20)} has {len(data)} bytes, {count} elements of {dtype} '
      'expected; download it again'
    )
  return torch_values.Storage(dtype, data[: count * dtype.itemsize])
