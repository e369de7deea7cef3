"""Prompts that are text features of another model, with images where the objective needs any.

They are read from an .npz: 'text' [n, S, d] float, 'length' [n] integer, any images [n, y, x, 3]
uint8, and if it has them 'prompts' [n], the texts, with which the names of rewards are compared; or
from a TFDS data set with a float feature 'text' [S, d], S of each record's own, and any images.
'random' is ten records of noise."""

import functools
from typing import Sequence

import grain
import numpy as np
import tensorflow_datasets as tfds

from vargrl.data import image, source
from vargrl.data import stream as streams
from vargrl.io import arrays, paths

PACKED = False  # whether rows hold several dialogues


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
) -> streams.Stream:
  """The Stream of prompts.

  Its batches have 'label' int32 [B], the index of the record; 'text' float32 [B, tokens, width],
  padded by zeros; 'length' int32 [B], how many of these are the prompt's; and each of the `images`,
  float32 [B, *size, 3] in [-1, 1], cropped at the center. Raises ValueError for a text that is
  empty, longer than `tokens` or of another width, and for records without these features.

  dataset: an .npz or 'random', whose split and dir are '', or a TFDS name, see source.make.
  prompts: how many a global step has, of which this host has the `rows`."""
  streams.check_rows(prompts, rows)
  read, count = open_source(dataset, split, dir, tokens, width, images)
  if count < prompts:
    raise ValueError(
      f'{dataset}: {count} records found, at least {prompts}, one global batch, expected'
    )
  order = grain.MapDataset.range(count).seed(seed)
  order = streams.endless(order.shuffle() if shuffle else order)
  load = functools.partial(
    load_row, read=read, name=dataset, tokens=tokens, width=width, images=images, size=size
  )
  return streams.Stream(
    streams.HostRows(order.map(load), prompts, rows),
    rows=len(rows),
    block=1,
    features=('label', 'text', 'length', *images),
    classes=None,
    class_names=(),
    record_count=count,
    record_prompts=read_prompts(dataset, count),
    max_unreadable=0.0,
    threads=4,
    workers=0,
    name=f'{dataset}{"/" * bool(split)}{split}, {count} records, prompts {prompts}, seed {seed}'
    f'{", shuffled" if shuffle else ""}',
  )


def load_first(path: str, *, tokens: int, width: int, first: int) -> dict[str, np.ndarray]:
  """{'text', 'length'} of the `first` records of an .npz or 'random', as in a batch of `make`."""
  read, count = open_source(path, '', '', tokens, width, ())
  if count < first:
    raise ValueError(f'{path}: {count} records found, at least {first} expected')
  parts = [
    load_row(i, read=read, name=path, tokens=tokens, width=width, images=(), size=())['rows']
    for i in range(first)
  ]
  return {k: np.concatenate([part[k] for part in parts]) for k in ('text', 'length')}


def open_source(dataset: str, split: str, dir: str, tokens: int, width: int, images: Sequence[str]):
  """(read, count): read(index) -> {'text' [its length, d], image: pixels or bytes} of a record."""
  if dataset.endswith('.npz') or dataset == 'random':
    if split or dir:
      raise ValueError(
        f"data: split {split!r}, dir {dir!r} with {dataset} found, '' expected for both"
      )
    return (
      open_npz(dataset, images)
      if dataset != 'random'
      else (functools.partial(random_record, tokens, width, images), 10)
    )
  records, spec = source.open_dataset(dataset, split, dir)
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
        f'{dataset}: features {sorted(kinds)} found, an image {name!r} expected among them'
      )
  return records.__getitem__, len(records)


def open_npz(path: str, images: Sequence[str]):
  """`open_source` of an .npz, all of whose arrays are held in memory, the text without padding."""
  file = paths.path(path)
  if not file.is_file():
    raise ValueError(f'{path}: no such file, an .npz of text features expected')
  try:
    found = arrays.headers(file, ('text', 'length', *images))
    check_arrays(path, found, images)
    with arrays.open_archive(file) as archive:
      length = arrays.read(archive, 'length', found['length'])
      if len(length) and length.max() > found['text'].shape[1]:
        raise Misfit(
          f'{path}: length {length.max()} found, at most {found["text"].shape[1]}, the rows of '
          'text, expected'
        )
      length = np.maximum(length, 0).astype(np.int64)
      text = arrays.read_beginnings(archive, 'text', found['text'], length)
      pixels = {name: arrays.read(archive, name, found[name]) for name in images}
  except Misfit:
    raise
  except (ValueError, OSError) as e:
    raise ValueError(f'{path}: not a whole .npz ({e})') from e

  def read(i):
    return {'text': text[i]} | {name: pixels[name][i] for name in images}

  return read, len(text)


class Misfit(ValueError):
  """Arrays that are whole, but none of text features."""


def check_arrays(path, found, images):
  """Raises Misfit unless the arrays.Arrays of an .npz are those of text features."""
  for name in ('text', 'length', *images):
    if name not in found:
      raise Misfit(f'{path}: arrays {sorted(found)} found, {name!r} expected among them')
  text, length = found['text'], found['length']
  if (
    len(text.shape) != 3
    or length.shape != text.shape[:1]
    or text.dtype.kind != 'f'
    or length.dtype.kind not in 'iu'
  ):
    raise Misfit(
      f'{path}: text {text.dtype} {text.shape}, length {length.dtype} {length.shape} found, floats '
      '[n, S, d] and integers [n] expected'
    )
  for name in images:
    if not (shape := found[name].shape) or shape[0] < text.shape[0]:
      raise Misfit(f'{path}: {name} {shape} found, one for each of {text.shape[0]} texts expected')


def read_prompts(dataset: str, count: int) -> tuple[str, ...]:
  """The prompts that the features of an .npz are of, its array 'prompts' of texts; () if it has
  none, and of other data sets. ValueError unless they are `count`."""
  if not dataset.endswith('.npz'):
    return ()
  file = paths.path(dataset)
  found = arrays.headers(file, ('prompts',)).get('prompts')
  if found is None or found.dtype.kind != 'U':
    return ()
  if found.shape != (count,):
    raise ValueError(
      f'{dataset}: prompts {list(found.shape)} found, one for each of {count} texts expected'
    )
  with arrays.open_archive(file) as archive:
    return tuple(arrays.read(archive, 'prompts', found).tolist())


def random_record(tokens: int, width: int, images: Sequence[str], index: int):
  """A record of noise, a function of its index."""
  rng = np.random.default_rng(index)
  text = rng.standard_normal((1 + index % tokens, width))
  return {'text': text} | {name: rng.integers(0, 256, (4, 4, 3), np.uint8) for name in images}


def load_row(index, *, read, name, tokens, width, images, size):
  """One record as a row of a batch, {'rows': {feature: [1, ...]}, 'bad': -1}, see stream.Stream."""
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
