"""Text features that another model made, as prompts, with the pictures of each if there are any.

They lie in an .npz: 'text' [n, S, d] float, 'length' [n] integer, and maybe pictures [n, y, x, 3]
uint8 of any names; or in a TFDS data set with a float feature 'text' [S, d], of any length, and
maybe pictures. 'random' is ten records of noise."""

import functools
import pathlib
from typing import Sequence
import zipfile

import grain
import numpy as np
import tensorflow_datasets as tfds

from vargrl.data import image, source


def make(
  *,
  dataset: str,
  split: str,
  dir: str,
  prompts: int,
  tokens: int,
  width: int,
  images: Sequence[str],
  size: Sequence[int],
  shuffle: bool,
  seed: int,
  rows: Sequence[int],
) -> source.Stream:
  """The Stream of {'label', 'text', 'length'} and the pictures named in `images`.

  dataset: an .npz or 'random' (split and dir are then ''), or a TFDS name, see source.make.
  prompts: of a global step, of which this host has the `rows`. Batches have label int32, the number
  of the record; text float32 [rows, tokens, width], what is missing zeros; length int32. size: (y,
  x) that pictures are cropped to, float32 in [-1, 1]. A text that is empty, too long or of another
  width is a ValueError."""
  source.check_rows(prompts, rows)
  read, count = opened(dataset, split, dir, tokens, width, images)
  if count < prompts:
    raise ValueError(
      f'{dataset}: {count} records found, at least {prompts}, one global batch, expected'
    )
  order = grain.MapDataset.range(count).seed(seed)
  order = (order.shuffle() if shuffle else order).repeat()
  load = functools.partial(
    row, read=read, name=dataset, tokens=tokens, width=width, images=images, size=size
  )
  return source.Stream(
    source.Rows(order.map(load), prompts, rows),
    rows=len(rows),
    block=1,
    features=('label', 'text', 'length', *images),
    classes=None,
    class_names=(),
    record_count=count,
    max_unreadable=0.0,
    threads=4,
    workers=0,
    name=f'{dataset}{"/" * bool(split)}{split}, {count} records, prompts {prompts}, seed {seed}'
    f'{", shuffled" if shuffle else ""}',
  )


def table(path: str, *, tokens: int, width: int, first: int) -> dict[str, np.ndarray]:
  """{'text', 'length'} of the first records of an .npz, or of 'random', as batches have them."""
  read, count = opened(path, '', '', tokens, width, ())
  if count < first:
    raise ValueError(f'{path}: {count} records found, at least {first} expected')
  parts = [
    row(i, read=read, name=path, tokens=tokens, width=width, images=(), size=())['rows']
    for i in range(first)
  ]
  return {k: np.concatenate([part[k] for part in parts]) for k in ('text', 'length')}


def opened(dataset: str, split: str, dir: str, tokens: int, width: int, images: Sequence[str]):
  """(record number -> {'text' of its own length, picture: pixels or bytes}, how many there are)."""
  if dataset.endswith('.npz') or dataset == 'random':
    if split or dir:
      raise ValueError(
        f"data: split {split!r}, dir {dir!r} with {dataset} found, '' expected for both"
      )
    return (
      from_npz(dataset, images)
      if dataset != 'random'
      else (functools.partial(noise, tokens, width, images), 10)
    )
  records, spec = source._open(dataset, split, dir)
  kinds = dict(spec.items())
  text = kinds.get('text')
  if (
    not isinstance(text, tfds.features.Tensor)
    or np.dtype(text.np_dtype).kind != 'f'
    or len(text.shape) != 2
  ):
    raise ValueError(
      f"{dataset}: features {sorted(kinds)} found, 'text' expected among them, of floats [S, d]"
    )
  for name in images:
    if not isinstance(kinds.get(name), tfds.features.Image):
      raise ValueError(
        f'{dataset}: features {sorted(kinds)} found, a picture {name!r} expected among them'
      )
  return records.__getitem__, len(records)


def from_npz(path: str, images: Sequence[str]):
  """The same of an .npz, all of whose arrays are held in memory."""
  if not pathlib.Path(path).is_file():
    raise ValueError(f'{path}: no such file, an .npz of text features expected')
  try:
    with np.load(path) as file:
      found = {k: file[k] for k in ('text', 'length', *images) if k in file.files}
  except (ValueError, OSError, zipfile.BadZipFile) as e:
    raise ValueError(f'{path}: not a whole .npz ({e})') from e
  for name in ('text', 'length', *images):
    if name not in found:
      raise ValueError(f'{path}: arrays {sorted(found)} found, {name!r} expected among them')
  text, length = found['text'], found['length']
  if (
    text.ndim != 3
    or length.shape != text.shape[:1]
    or text.dtype.kind != 'f'
    or length.dtype.kind not in 'iu'
  ):
    raise ValueError(
      f'{path}: text {text.dtype} {text.shape}, length {length.dtype} {length.shape} found, floats '
      '[n, S, d] and integers [n] expected'
    )
  if len(length) and length.max() > text.shape[1]:
    raise ValueError(
      f'{path}: length {length.max()} found, at most {text.shape[1]}, the rows of text, expected'
    )

  def read(i):
    return {'text': text[i, : max(length[i], 0)]} | {name: found[name][i] for name in images}

  return read, len(text)


def noise(tokens: int, width: int, images: Sequence[str], index: int):
  """A record that is a function of its number."""
  rng = np.random.default_rng(index)
  text = rng.standard_normal((1 + index % tokens, width))
  return {'text': text} | {name: rng.integers(0, 256, (4, 4, 3), np.uint8) for name in images}


def row(index, *, read, name, tokens, width, images, size):
  """One record as a row of a batch, {'rows': {feature: [1, ...]}, 'bad': -1}."""
  record = read(index)
  text = np.asarray(record['text'], np.float32)
  if not 0 < len(text) <= tokens or text.shape[1] != width:
    raise ValueError(
      f'{name}: record {index} has text {text.shape}, 1 to {tokens} features of {width} expected'
    )
  rows = {
    'label': np.int32(index),
    'length': np.int32(len(text)),
    'text': np.pad(text, ((0, tokens - len(text)), (0, 0))),
  }
  for k in images:
    rows[k] = image.to_float(image.cover(image.decode(record[k]), height=size[0], width=size[1]))
  return {'rows': {k: np.asarray(x)[None] for k, x in rows.items()}, 'bad': np.int64(-1)}
