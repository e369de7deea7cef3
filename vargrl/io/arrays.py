"""Arrays of .npz files: what a header says is compared with the file before an array is read."""

from collections.abc import Sequence
import io
import math
import os
from typing import NamedTuple
import zipfile

import numpy as np
from numpy.lib import format as npy

from vargrl.io import text

HEADER_BYTES = 2**17  # at most of a header, of which numpy reads 10,000


class Array(NamedTuple):
  """What is known of an array. begin: the byte of its file at which the numbers begin."""

  shape: tuple
  dtype: np.dtype
  fortran: bool
  begin: int

  @property
  def size(self) -> int:
    """Bytes of the numbers."""
    return math.prod(self.shape) * self.dtype.itemsize


def headers(path: str | os.PathLike, names: Sequence[str] | None = None) -> dict[str, Array]:
  """{name: Array} of an .npz, of which nothing else is read; names: of these alone.

  Raises ValueError for what is none, and for an array that is not as long as its header says; of
  arrays of objects, whose length nobody knows, the header alone is checked."""
  with open_archive(path) as file:
    found = [name.removesuffix('.npy') for name in file.namelist() if name.endswith('.npy')]
    return {name: header(file, f'{name}.npy') for name in found if names is None or name in names}


class open_archive(zipfile.ZipFile):
  """The zip file of an .npz, to be closed; a ValueError is all that it, and what reads it, raises.

  (Of a damaged file zipfile and numpy raise what they like: BadZipFile, zlib.error, EOFError,
  NotImplementedError, RuntimeError, RecursionError.)"""

  def __init__(self, path):
    self.path = path
    try:
      super().__init__(path)
    except OSError:
      raise
    except Exception as e:
      raise ValueError(f'{type(e).__name__}: {e}') from e

  def __exit__(self, kind, error, trace):
    super().__exit__(kind, error, trace)
    if isinstance(error, Exception) and not isinstance(error, (ValueError, OSError)):
      raise ValueError(f'{kind.__name__}: {error}') from error


def header(file: zipfile.ZipFile, name: str) -> Array:
  """The Array of a member of an .npz."""
  with file.open(name) as member:
    head = io.BytesIO(member.read(HEADER_BYTES))
  read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
  version = npy.read_magic(head)
  if version not in read:
    raise ValueError(f'{name}: array of version {version} found, 1.0 or 2.0 expected')
  shape, fortran, dtype = read[version](head)
  found = Array(shape, dtype, fortran, head.tell())
  length = file.getinfo(name).file_size - found.begin
  if not dtype.hasobject and (min(shape, default=0) < 0 or found.size != length):
    raise ValueError(
      f'{name}: {length} bytes of numbers found, {found.size} of {dtype} {list(shape)} expected'
    )
  return found


def check_cost(found: int, path: str | os.PathLike) -> None:
  """Raises ValueError where so many bytes of arrays are many times the file's size."""
  most = text.TIMES * os.stat(path).st_size + text.BYTES
  if found > most:
    raise ValueError(
      f'arrays of {found / 2**20:.0f} MiB found, at most {most / 2**20:.0f} expected of a file of '
      'this size'
    )


def read(file: zipfile.ZipFile, name: str, array: Array) -> np.ndarray:
  """The numbers of an array; ValueError for objects, which are programs."""
  check_cost(array.size, file.path)
  if array.dtype.hasobject:
    raise ValueError(f'{name}: objects found, numbers or texts expected')
  with file.open(f'{name}.npy') as member:
    return npy.read_array(member, allow_pickle=False)


def read_beginnings(
  file: zipfile.ZipFile, name: str, array: Array, lengths: np.ndarray
) -> list[np.ndarray]:
  """[the first lengths[i] entries of array[i]]: what follows them, padding, takes no memory."""
  if array.fortran:
    return [row[:n].copy() for row, n in zip(read(file, name, array), lengths, strict=True)]
  entry = math.prod(array.shape[2:]) * array.dtype.itemsize
  check_cost(entry * (int(lengths.sum()) + array.shape[1]), file.path)
  rows = []
  with file.open(f'{name}.npy') as member:
    member.read(array.begin)
    for n in lengths:
      data = member.read(entry * array.shape[1])[: entry * n]
      rows.append(np.frombuffer(data, array.dtype).reshape(n, *array.shape[2:]))
  return rows
