"""TFDS data sets of images: as a Stream of batches, or read once in order."""

from collections.abc import Sequence
import difflib
import functools
import itertools
import warnings

import grain
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from vargrl.data import digits, image
from vargrl.data import scenes_builder as scenes
from vargrl.data import stream as streams
from vargrl.io import paths

BUILDERS = {'digits': digits.Digits, 'digit_pairs': digits.DigitPairs, 'scenes': scenes.Scenes}

PACKED = False  # whether rows hold several dialogues


def make(
  *,
  dataset: str,
  split: str,
  batch: int,
  size: int,
  crop: str,
  flip: bool,
  shuffle: bool,
  max_unreadable: float,
  dir: str,
  threads: int,
  workers: int,
  seed: int,
  rows: Sequence[int],
) -> streams.Stream:
  """The Stream of a TFDS split: images float32 [B, size, size, 3] in [-1, 1], integers int32.

  batch: the size of a global batch, of which this host reads the `rows`, ascending; range(batch) is
  all. Global batch k has the same records in the same order with the same crops whatever the hosts,
  each record once per epoch, epochs in different orders with `shuffle`. crop, flip: see image.fit
  and image.flip; all images of a record get the same random numbers. Other features than top-level
  images and integers are dropped.

  A record with an unreadable image is skipped and counted, and a random other record takes its
  place: were the rows after it to move up instead, hosts would drift apart. dir: '' is TFDS's own
  folder; digits, digit_pairs and scenes/32 to scenes/256 are built there if missing. Raises
  ValueError for options, data sets and splits that do not fit."""
  streams.check_rows(batch, rows)
  if crop not in image.CROPS:
    raise ValueError(f'crop: {crop!r} found, one of {image.CROPS} expected')
  source, spec = open_dataset(dataset, split, dir)
  if len(source) < batch:
    raise ValueError(
      f'{dataset}/{split}: {len(source)} records found, at least {batch}, one '
      'global batch, expected'
    )
  order = grain.MapDataset.range(len(source)).seed(seed)
  order = streams.endless(order.shuffle() if shuffle else order)
  kinds = _kinds(dataset, spec)
  load = functools.partial(_load_row, source=source, kinds=kinds, size=size, crop=crop, mirror=flip)
  # Drawn before the choice, where the index that seeds the generator is the global one.
  records = streams.HostRows(order.random_map(load), batch, rows)
  classes, class_names = _classes(spec)
  return streams.Stream(
    records,
    rows=len(rows),
    block=1,
    features=kinds,
    classes=classes,
    class_names=class_names,
    max_unreadable=max_unreadable,
    threads=threads,
    workers=workers,
    name=f'{dataset}/{split}, {len(source)} records, batch {batch}, seed {seed}'
    f'{", shuffled" if shuffle else ""}',
  )


def load(
  *, dataset: str, split: str, size: int, crop: str, dir: str, limit: int, classes: int = 0
) -> dict[str, np.ndarray]:
  """{feature: array [N, ...]} of the first `limit` readable records of a split, in order; 0 is all.

  As in `make`, with `crop` 'none' or 'center'. N is less than `limit` if the split is shorter.
  Unreadable records are left out, with a warning that says how many. classes: ValueError for a
  label out of 0 .. classes - 1; 0: any is taken."""
  options = dict(dataset=dataset, split=split, size=size, crop=crop, dir=dir, limit=limit)
  rows = list(iterate(**options, classes=classes))
  return {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}


def count(*, dataset: str, split: str, dir: str) -> int:
  """The number of records of a split."""
  return len(open_dataset(dataset, split, dir)[0])


def iterate(
  *, dataset: str, split: str, size: int, crop: str, dir: str, limit: int, classes: int = 0
):
  """Yields the rows of `load`, {feature: array [1, ...]}, one by one: any number fits in memory."""
  if crop not in ('none', 'center'):
    raise ValueError(f"crop: {crop!r} found, 'none' or 'center' expected for a fixed reading")
  source, spec = open_dataset(dataset, split, dir)
  kinds = _kinds(dataset, spec)

  def load_record(index):
    try:
      row = _to_row(source[index], kinds, size, crop, False, 0)
    except image.Unreadable:
      return {'rows': {}, 'index': index}
    if classes and 'label' in row:
      streams.check_labels(row['label'], classes, f'{dataset}/{split}', index)
    return {'rows': row, 'index': index}

  records = grain.MapDataset.range(len(source)).map(load_record)
  records = iter(records.to_iter_dataset(grain.ReadOptions(4, 64)))
  seen, bad = 0, []
  try:
    for part in records:
      if part['rows']:
        seen += 1
        yield part['rows']
      else:
        bad.append(part['index'])
      if limit and seen == limit:
        break
  finally:
    records.close()
  if bad:
    warnings.warn(
      f'{dataset}/{split}: {len(bad)} of {seen + len(bad)} records unreadable '
      f'and left out, the last is record {bad[-1]}',
      stacklevel=2,
    )
  if not seen:
    raise ValueError(f'{dataset}/{split}: 0 readable records of {len(source)}, 1 expected')


def _load_row(index, rng, *, source, kinds, size, crop, mirror):
  """One row of a batch, see stream.Stream: the record, or a random other if it is unreadable."""
  seed = int(rng.integers(2**63))
  others = (int(rng.integers(len(source))) for _ in range(streams.TRIES))
  for i in itertools.chain([index], others):
    try:
      rows = _to_row(source[i], kinds, size, crop, mirror, seed)
    except image.Unreadable:
      continue
    return {'rows': rows, 'bad': np.int64(-1 if i == index else index), 'record': np.int64(i)}
  return {'rows': {}, 'bad': np.int64(index)}


def _to_row(record, kinds, size, crop, mirror, seed):
  """{feature: array [1, ...]} of a record; `seed`: of its crops and flips."""
  rows = {}
  for name, kind in kinds.items():
    if kind == 'image':
      rng = np.random.default_rng(seed)
      x = image.fit(image.decode(record[name]), size=size, crop=crop, rng=rng)
      x = image.to_float(image.flip(x, rng) if mirror else x)
    else:
      x = np.asarray(record[name])
      if x.size and not -(2**31) <= x.min() <= x.max() < 2**31:
        raise ValueError(f'{name}: {x.max()} found, integers of 32 bits expected')
      x = x.astype(np.int32)
    rows[name] = x[None]
  return rows


def _kinds(dataset: str, spec: tfds.features.FeaturesDict) -> dict[str, str]:
  """{feature: 'image' or 'integer'} of the features that are kept."""
  kinds = {}
  for name, feature in sorted(spec.items()):  # Their order on disk is not fixed.
    # Not LabeledImage, whose pixels are classes, nor float images, whose bytes are not a picture.
    if type(feature) is tfds.features.Image and feature.np_dtype != np.float32:
      kinds[name] = 'image'
    elif isinstance(feature, tfds.features.Tensor):
      whole = np.dtype(feature.np_dtype).kind in 'iu' and None not in feature.shape
      kinds |= {name: 'integer'} if whole else {}
  if not kinds:
    raise ValueError(f'{dataset}: features {sorted(spec)} found, an image or an integer expected')
  return kinds


def _classes(spec) -> tuple[int | None, tuple[str, ...]]:
  """(how many classes 'label' has, their names); (None, ()) if it is no class."""
  label = dict(spec.items()).get('label')
  if not isinstance(label, tfds.features.ClassLabel):
    return None, ()
  return label.num_classes, tuple(label.names or ())


def open_dataset(dataset: str, split: str, dir: str):
  """(records, features) of a TFDS split: records[i] has its images still encoded.

  Builds or downloads the data set if it is not on disk; ValueError if it cannot be had."""
  builder = _prepare(dataset, dir)
  try:
    source = builder.as_data_source(split)
  except Exception as e:  # Of many types: no such split, not an array_record, files missing.
    raise ValueError(f'{dataset}/{split} in {builder.data_dir}: {e}') from e
  spec = builder.info.features
  # Here and not in `as_data_source`: with decoders, tfds.testing.mock_data encodes its pictures,
  # which takes TensorFlow.
  source.decoders = {
    name: tfds.decode.SkipDecoding()
    for name, feature in spec.items()
    if isinstance(feature, tfds.features.Image)
  }
  return source, spec


def _prepare(dataset: str, dir: str) -> tfds.core.DatasetBuilder:
  """The builder of a dataset that is on disk: as found there, or built or downloaded first."""
  builder = _builder(dataset, dir)
  try:
    tfds.disable_progress_bar()
    builder.download_and_prepare(
      file_format='array_record',
      download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )
    return builder
  except Exception as e:
    # Builds go to a folder of their own and are renamed at the end, so of two processes that
    # build at once, the second finds the name taken by a whole dataset.
    builder = _builder(dataset, dir)
    if builder.is_prepared():
      return builder
    raise ValueError(_missing_message(dataset, dir, e)) from e


def _missing_message(dataset: str, dir: str, cause: Exception) -> str:
  """Why a data set cannot be prepared here, and the command that prepares it elsewhere."""
  where = f', data_dir={dir!r}' if dir else ''
  code = (
    f'import tensorflow_datasets as tfds; tfds.builder({dataset!r}{where})'
    ".download_and_prepare(file_format='array_record')"
  )
  return (
    f'{dataset}: not prepared in {dir or tfds.core.constants.DATA_DIR}, and cannot be here: '
    f'{type(cause).__name__}: {cause}\nWhere it can: python -c "{code}"'
  )


def _builder(dataset: str, dir: str) -> tfds.core.DatasetBuilder:
  """The builder of a dataset of BUILDERS, of files in `dir`, or of TFDS; ValueError for no such."""
  data_dir = paths.local(dir) if dir else None
  ours, _, config = dataset.partition('/')
  if ours in BUILDERS:
    if config and config not in BUILDERS[ours].builder_configs:
      known = [f'{ours}/{name}' for name in BUILDERS[ours].builder_configs] or [ours]
      raise ValueError(f'dataset: {dataset!r} found, one of {known} expected')
    return BUILDERS[ours](data_dir=data_dir, config=config or None)
  name = dataset.split('/')[0].split(':')[0]
  # Files first: what is on disk needs none of the code that made it, which may need TensorFlow.
  try:
    if name.isidentifier():
      return read_only_builder.builder_from_files(dataset, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError:
    pass
  theirs = tfds.list_builders(with_community_datasets=False)
  if name not in theirs:
    near = difflib.get_close_matches(name, [*BUILDERS, *theirs], n=3, cutoff=0)
    raise ValueError(
      f'dataset: {dataset!r} found, a name known to TFDS or prepared in '
      f'{dir or "its default folder"} expected; nearest are {", ".join(near)}'
    )
  try:
    return tfds.builder(dataset, data_dir=data_dir)
  except ImportError as e:  # Its code needs TensorFlow.
    raise ValueError(_missing_message(dataset, dir, e)) from e
