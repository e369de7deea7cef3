"""TFDS records as numpy batches, in an order that no host, thread or worker count can change."""

from collections.abc import Sequence
import difflib
import functools
import itertools
import warnings
import weakref

from absl import flags
import grain
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from vargrl.data import digits, image
from vargrl.data import scenes_builder as scenes

TRIES = 100  # Random records tried in place of an unreadable one before giving up.
OURS = {'digits': digits.Digits, 'digit_pairs': digits.DigitPairs, 'scenes': scenes.Scenes}


class Stream:
  """An endless iterator of {feature: array [rows, ...]}, the rows of this host, and its state.

  Attributes: `features`, the names in a batch; `classes`, how many values 'label' has, or None;
  `class_names`, () if they have none; `counts`, {'seen': n, 'skipped': m, share: per record seen}
  of this host's records; `texts`, labels -> the prompts' texts, or None."""

  def __init__(
    self,
    records: grain.MapDataset,
    *,
    name: str,
    rows: int,
    block: int,
    features: Sequence[str],
    class_names: Sequence[str],
    classes: int | None,
    max_unreadable: float,
    threads: int,
    workers: int,
    each: int = 1,
    shares: Sequence[str] = (),
    texts=None,
    record_count: int | None = None,
  ):
    """`records` yields {'rows': {feature: [block, ...]}, 'bad': -1, or an unreadable's index, or
    several}.

    `each` records are in a row; 'why', if it is there, says what is wrong with the bad ones;
    `shares` are names of numbers beside them."""
    assert rows % block == 0, (rows, block)
    self.features, self.classes = tuple(features), classes
    self.class_names = tuple(class_names)
    self._records, self._name, self._rows, self._pulls = records, name, rows, rows // block
    self._max_unreadable, self._threads, self._workers = max_unreadable, threads, workers
    self._each, self._shares, self.texts = each, dict.fromkeys(shares, 0), texts
    self.record_count = record_count  # of the records that labels number; None: they are classes
    self._step = self._seen = self._skipped = 0
    self._running = []  # The iterator of the records, once there is one.
    # Also at exit: a worker that outlives the interpreter leaves its records in /dev/shm.
    weakref.finalize(self, _stop, self._running)

  @property
  def counts(self) -> dict[str, int]:
    shares = {k: x / max(self._seen, 1) for k, x in self._shares.items()}
    return {'seen': self._seen, 'skipped': self._skipped, **shares}

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """The next batch; ValueError when more than `max_unreadable` of the records were skipped."""
    try:
      if not self._running:
        self._running.append(self._start())
      parts = [next(self._running[0]) for _ in range(self._pulls)]
    except BaseException:  # Even Ctrl-C in a notebook: half a batch read would shift all the next.
      self.close()
      raise
    self._step += 1
    self._seen += self._rows * self._each
    for k in self._shares:
      self._shares[k] += sum(int(part[k]) for part in parts)
    bad = [int(i) for part in parts for i in np.atleast_1d(part['bad']) if i >= 0]
    why = next((f' ({part["why"]})' for part in parts[::-1] if part.get('why')), '')
    self._skipped += len(bad)
    # At least 100, so that one bad record among the first ten is no reason to stop.
    if bad and self._skipped > self._max_unreadable * max(self._seen, 100):
      raise ValueError(
        f'{self._name}: {self._skipped} of {self._seen} records unreadable, the last is record '
        f'{bad[-1]}{why}; at most a share of {self._max_unreadable} expected'
      )
    if not all(part['rows'] for part in parts):
      raise ValueError(
        f'{self._name}: {self._skipped} of {self._seen} records unreadable, the last is record '
        f'{bad[-1]}, and none of {TRIES} random others is readable in its place'
      )
    return {k: np.concatenate([part['rows'][k] for part in parts]) for k in self.features}

  def get_state(self) -> dict[str, int | str]:
    """What is needed to go on after the last batch, fit for JSON and for any number of hosts."""
    # Batch k is a function of k alone, so there is nothing of grain's to save: its own state
    # would tie a run to its number of workers.
    return {'stream': self._name, 'step': self._step, **self.counts, **self._shares}

  def set_state(self, state: dict[str, int | str]) -> None:
    """Makes `state` the point to go on from; ValueError if it is another stream's."""
    if state['stream'] != self._name:
      raise ValueError(f'data: state of {state["stream"]!r} found, of {self._name!r} expected')
    self.close()
    self._step, self._seen, self._skipped = state['step'], state['seen'], state['skipped']
    self._shares = {k: state[k] for k in self._shares}

  def close(self) -> None:
    """Stops threads and workers; the next batch starts them again."""
    _stop(self._running)

  def _start(self):
    records = self._records[self._step * self._pulls :]
    # Two batches ahead, shared among the workers, each of which has `threads` of its own.
    ahead = max(self._threads, 2 * self._pulls // max(self._workers, 1)) if self._threads else 0
    read = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=ahead)
    records = records.to_iter_dataset(read)
    if self._workers:
      if not flags.FLAGS.is_parsed():  # Notebooks and pytest do not parse; grain's workers ask.
        flags.FLAGS.mark_as_parsed()
      # Few, because this buffer lies in /dev/shm, of which a container has 64 MB.
      records = records.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=4)
      )
    return iter(records)


def _stop(running: list) -> None:
  while running:
    running.pop().close()


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
) -> Stream:
  """The Stream of a TFDS split: images float32 [rows, size, size, 3] in [-1, 1], integers int32.

  `batch` is the size of a global batch, of which this host reads the `rows`, ascending; all of
  them: range(batch). Global batch k is the same records in the same order with the same crops
  whatever the hosts, each record once per epoch, epochs in different orders if `shuffle`. All
  images of a record get the same draw of crop and flip. Other features than top-level images and
  integers are dropped.

  A record with an unreadable image is skipped and counted, and a random other record takes its
  place: were the rows after it to move up instead, hosts would drift apart. `dir` '' is TFDS's own;
  `digits`, `digit_pairs` and `scenes/32` to `scenes/256` are built there if missing. ValueErrors
  name what does not fit."""
  check_rows(batch, rows)
  if crop not in image.CROPS:
    raise ValueError(f'crop: {crop!r} found, one of {image.CROPS} expected')
  source, spec = _open(dataset, split, dir)
  if len(source) < batch:
    raise ValueError(
      f'{dataset}/{split}: {len(source)} records found, at least {batch}, one '
      'global batch, expected'
    )
  order = grain.MapDataset.range(len(source)).seed(seed)
  order = (order.shuffle() if shuffle else order).repeat()
  kinds = _kinds(dataset, spec)
  load = functools.partial(_load, source=source, kinds=kinds, size=size, crop=crop, mirror=flip)
  # Drawn before the choice, where the index that seeds the generator is the global one.
  records = Rows(order.random_map(load), batch, rows)
  classes, class_names = _classes(spec)
  return Stream(
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


def read(
  *, dataset: str, split: str, size: int, crop: str, dir: str, limit: int
) -> dict[str, np.ndarray]:
  """{feature: array [N, ...]}: the first `limit` readable records of a split, in order; 0 is all.

  As in `make`, with `crop` 'none' or 'center'. N is less than `limit` if the split is shorter.
  Unreadable records are left out, with a warning that says how many.
  """
  rows = list(walk(dataset=dataset, split=split, size=size, crop=crop, dir=dir, limit=limit))
  return {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}


def count(*, dataset: str, split: str, dir: str) -> int:
  """How many records a split has."""
  return len(_open(dataset, split, dir)[0])


def walk(*, dataset: str, split: str, size: int, crop: str, dir: str, limit: int):
  """The rows of `read`, {feature: array [1, ...]}, one by one: any number fits in memory."""
  if crop not in ('none', 'center'):
    raise ValueError(f"crop: {crop!r} found, 'none' or 'center' expected for a fixed reading")
  source, spec = _open(dataset, split, dir)
  kinds = _kinds(dataset, spec)

  def load(index):
    try:
      return {'rows': _convert(source[index], kinds, size, crop, False, 0), 'index': index}
    except image.Unreadable:
      return {'rows': {}, 'index': index}

  records = grain.MapDataset.range(len(source)).map(load)
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


def check_rows(batch: int, rows: Sequence[int]) -> None:
  """ValueError unless `rows` are some of a batch's, in order."""
  if batch < 1:
    raise ValueError(f'batch: {batch} found, at least 1 expected')
  rows = list(rows)
  if not rows or rows != sorted(set(rows)) or not 0 <= rows[0] <= rows[-1] < batch:
    raise ValueError(f'rows: {rows} found, some of 0 to {batch - 1} in order expected')


class Rows(grain.MapDataset):
  """Of an endless dataset that is cut in batches, the same rows of each batch."""

  _MUTATES_ELEMENT_SPEC = False

  def __init__(self, parent, batch, rows):
    super().__init__(parent)
    self._batch, self._rows = batch, tuple(int(row) for row in rows)

  def __len__(self):
    return len(self._parent) // self._batch * len(self._rows)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    step, row = divmod(index, len(self._rows))
    return self._parent[step * self._batch + self._rows[row]]


def _load(index, rng, *, source, kinds, size, crop, mirror):
  """One row of the record, or of a random other if it is unreadable; {} if those are too."""
  draw = int(rng.integers(2**63))
  others = (int(rng.integers(len(source))) for _ in range(TRIES))
  for i in itertools.chain([index], others):
    try:
      rows = _convert(source[i], kinds, size, crop, mirror, draw)
    except image.Unreadable:
      continue
    return {'rows': rows, 'bad': np.int64(-1 if i == index else index)}
  return {'rows': {}, 'bad': np.int64(index)}


def _convert(record, kinds, size, crop, mirror, draw):
  """{feature: array [1, ...]} of a record; `draw` seeds the crop and flip of all its images."""
  rows = {}
  for name, kind in kinds.items():
    if kind == 'image':
      rng = np.random.default_rng(draw)
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
  label = dict(spec.items()).get('label')
  if not isinstance(label, tfds.features.ClassLabel):
    return None, ()
  return label.num_classes, tuple(label.names or ())


def _open(dataset: str, split: str, dir: str):
  """(random access to the records with images still encoded, their features)."""
  builder = _prepared(dataset, dir)
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


def _prepared(dataset: str, dir: str) -> tfds.core.DatasetBuilder:
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
    raise ValueError(_missing(dataset, dir, e)) from e


def _missing(dataset: str, dir: str, cause: Exception) -> str:
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
  data_dir = dir or None
  ours, _, config = dataset.partition('/')
  if ours in OURS:
    if config and config not in OURS[ours].builder_configs:
      known = [f'{ours}/{name}' for name in OURS[ours].builder_configs] or [ours]
      raise ValueError(f'dataset: {dataset!r} found, one of {known} expected')
    return OURS[ours](data_dir=data_dir, config=config or None)
  name = dataset.split('/')[0].split(':')[0]
  # Files first: what is on disk needs none of the code that made it, which may need TensorFlow.
  try:
    if name.isidentifier():
      return read_only_builder.builder_from_files(dataset, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError:
    pass
  theirs = tfds.list_builders(with_community_datasets=False)
  if name not in theirs:
    near = difflib.get_close_matches(name, [*OURS, *theirs], n=3, cutoff=0)
    raise ValueError(
      f'dataset: {dataset!r} found, a name known to TFDS or prepared in '
      f'{dir or "its default folder"} expected; nearest are {", ".join(near)}'
    )
  try:
    return tfds.builder(dataset, data_dir=data_dir)
  except ImportError as e:  # Its code needs TensorFlow.
    raise ValueError(_missing(dataset, dir, e)) from e
