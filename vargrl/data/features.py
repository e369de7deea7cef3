"""Text features that another model made, as prompts, with the picture of each if there is one.

They lie in an .npz: 'text' [n, S, d] float, 'length' [n] integer, and maybe 'image' [n, y, x, 3] uint8; or in a TFDS data
set with a float feature 'text' [S, d], of any length, and maybe a picture 'image'. 'random' is ten records of noise.
"""
import functools
import pathlib
from typing import Sequence
import zipfile

import grain
import numpy as np
import tensorflow_datasets as tfds

from vargrl.data import image, source


def make(*, dataset: str, split: str, dir: str, prompts: int, tokens: int, width: int,
         size: Sequence[int], shuffle: bool, seed: int, rows: Sequence[int]) -> source.Stream:
  """The Stream of {'label', 'text', 'length'}, and 'image' if `size` is one.

  dataset: an .npz or 'random' (split and dir are then ''), or a TFDS name, see source.make. prompts: of a global step, of which this
  host has the `rows`. Batches have label int32, the number of the record; text float32 [rows, tokens, width], what is
  missing zeros; length int32. size: (y, x) that pictures are cropped to, float32 in [-1, 1]; (): none is read.
  A text that is empty, too long or of another width is a ValueError.
  """
  source.check_rows(prompts, rows)
  read, count = opened(dataset, split, dir, tokens, width, size)
  if count < prompts:
    raise ValueError(f'{dataset}: {count} records found, at least {prompts}, one global batch, expected')
  order = grain.MapDataset.range(count).seed(seed)
  order = (order.shuffle() if shuffle else order).repeat()
  load = functools.partial(row, read=read, name=dataset, tokens=tokens, width=width, size=size)
  return source.Stream(
      source.Rows(order.map(load), prompts, rows), rows=len(rows), block=1,
      features=('label', 'text', 'length') + ('image',) * bool(size), classes=None, class_names=(), max_unreadable=0.,
      threads=4, workers=0, name=f'{dataset}{"/" * bool(split)}{split}, {count} records, prompts {prompts}, seed {seed}'
                                 f'{", shuffled" if shuffle else ""}')


def table(path: str, *, tokens: int, width: int, first: int) -> dict[str, np.ndarray]:
  """{'text', 'length'} of the first records of an .npz, or of 'random', as batches have them."""
  read, count = opened(path, '', '', tokens, width, ())
  if count < first: raise ValueError(f'{path}: {count} records found, at least {first} expected')
  parts = [row(i, read=read, name=path, tokens=tokens, width=width, size=())['rows'] for i in range(first)]
  return {k: np.concatenate([part[k] for part in parts]) for k in ('text', 'length')}


def opened(dataset: str, split: str, dir: str, tokens: int, width: int, size: Sequence[int]):
  """(record number -> {'text' of its own length, 'image'}, how many there are)."""
  if dataset.endswith('.npz') or dataset == 'random':
    if split or dir: raise ValueError(f"data: split {split!r}, dir {dir!r} with {dataset} found, '' expected for both")
    return from_npz(dataset, size) if dataset != 'random' else (functools.partial(noise, tokens, width, size), 10)
  records, spec = source._open(dataset, split, dir)
  text = dict(spec.items()).get('text')
  floats = isinstance(text, tfds.features.Tensor) and np.dtype(text.np_dtype).kind == 'f' and len(text.shape) == 2
  seen = not size or isinstance(dict(spec.items()).get('image'), tfds.features.Image)
  for name, ok in (('text', floats), ('image', seen)):
    if not ok:
      raise ValueError(f'{dataset}: features {sorted(spec)} found, {name!r} expected among them'
                       + ', of floating point and shape [S, d]' * (name == 'text'))
  return records.__getitem__, len(records)


def from_npz(path: str, size: Sequence[int]):
  """The same of an .npz, all of whose arrays are held in memory."""
  if not pathlib.Path(path).is_file(): raise ValueError(f'{path}: no such file, an .npz of text features expected')
  try:
    with np.load(path) as file: found = {k: file[k] for k in ('text', 'length', 'image') if k in file.files}
  except (ValueError, OSError, zipfile.BadZipFile) as e:
    raise ValueError(f'{path}: not a whole .npz ({e})') from e
  for name in ('text', 'length') + ('image',) * bool(size):
    if name not in found: raise ValueError(f'{path}: arrays {sorted(found)} found, {name!r} expected among them')
  text, length = found['text'], found['length']
  if text.ndim != 3 or length.shape != text.shape[:1] or text.dtype.kind != 'f' or length.dtype.kind not in 'iu':
    raise ValueError(f'{path}: text {text.dtype} {text.shape}, length {length.dtype} {length.shape} found, floats '
                     '[n, S, d] and integers [n] expected')
  if len(length) and length.max() > text.shape[1]:
    raise ValueError(f'{path}: length {length.max()} found, at most {text.shape[1]}, the rows of text, expected')

  def read(i):
    return {'text': text[i, :max(length[i], 0)]} | ({'image': found['image'][i]} if size else {})
  return read, len(text)


def noise(tokens: int, width: int, size: Sequence[int], index: int):
  """A record that is a function of its number."""
  rng = np.random.default_rng(index)
  pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
  return {'text': rng.standard_normal((1 + index % tokens, width))} | ({'image': pixels} if size else {})


def row(index, *, read, name, tokens, width, size):
  """One record as a row of a batch, {'rows': {feature: [1, ...]}, 'bad': -1}."""
  record = read(index)
  text = np.asarray(record['text'], np.float32)
  if not 0 < len(text) <= tokens or text.shape[1] != width:
    raise ValueError(f'{name}: record {index} has text {text.shape}, 1 to {tokens} features of {width} expected')
  rows = {'label': np.int32(index), 'length': np.int32(len(text)),
          'text': np.pad(text, ((0, tokens - len(text)), (0, 0)))}
  if size: rows['image'] = image.to_float(image.cover(image.decode(record['image']), height=size[0], width=size[1]))
  return {'rows': {k: np.asarray(x)[None] for k, x in rows.items()}, 'bad': np.int64(-1)}
