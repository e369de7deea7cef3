"""Batches in an order that no host, thread or worker count can change, and that can be resumed."""

from collections.abc import Sequence
import weakref

from absl import flags
import grain
import numpy as np

from vargrl.io import numbers

TRIES = 100  # random records tried in place of an unreadable one before giving up
# Records of an order without end. grain divides lengths as floats, which hold no larger integers:
# of sys.maxsize it makes 2**63, which len() may not return.
ENDLESS = 2**53


class Stream:
  """An endless iterator of batches {feature: array [B, ...]}, B the rows of this host.

  Attributes:
    features: the names in a batch.
    classes: how many values 'label' has, or None.
    class_names: their names, () if they have none.
    counts: of this host's records {'seen': n, 'skipped': m, and each of `shares` per record seen}.
    prompt_records: labels -> [{'prompt': str, 'label': int, and whatever a data file says besides}]
      of prompts that are text, or None.
    decode_text: token ids of what a policy said, int32 [L], -1 after the end -> str, or None.
    record_count: how many records 'label' is the index of, or None where it is a class.
    record_prompts: the prompts of these records, where they are known and no text is sampled.
    label_limit: labels from this number on, and below 0, are refused; None: any is taken.
  """

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
    records_per_row: int = 1,
    shares: dict[str, str] | None = None,
    prompt_records=None,
    decode_text=None,
    record_count: int | None = None,
    record_prompts: Sequence[str] = (),
  ):
    """Makes a Stream of `records`, an endless dataset of blocks of rows.

    A block is {'rows': {feature: array [block, ...]}, 'bad': the index of an unreadable record, or
    several, -1 for none, 'reason': what is wrong with one, 'record': the index of the record in its
    rows, both of which may be missing, and a number for each of `shares`}; its 'rows' are {} if no
    other record could take the place of a bad one.

    name: what a state must be of to be restored. rows: B, a multiple of `block`. records_per_row:
    how many records a row is made of. shares: {name in `counts`: key of its sum in a state}.
    max_unreadable: share of skipped records from which `next` raises. threads, workers: of reading,
    0 for none."""
    assert rows % block == 0, (rows, block)
    numbers.check_number('data.max_unreadable', max_unreadable, least=0, finite=False)
    self.features, self.classes = tuple(features), classes
    self.class_names = tuple(class_names)
    self._records, self._name, self._rows, self._pulls = records, name, rows, rows // block
    self._max_unreadable, self._threads, self._workers = max_unreadable, threads, workers
    self._records_per_row, self.record_count = records_per_row, record_count
    self.prompt_records, self.decode_text = prompt_records, decode_text
    self.record_prompts, self.label_limit = tuple(record_prompts), None
    self._state_keys = shares or {}
    self._sums = dict.fromkeys(self._state_keys, 0)
    self._step = self._seen = self._skipped = 0
    self._running = []  # The iterator of the records, once there is one.
    # Also at exit: a worker that outlives the interpreter leaves its records in /dev/shm.
    weakref.finalize(self, _stop, self._running)

  @property
  def counts(self) -> dict[str, int]:
    shares = {k: x / max(self._seen, 1) for k, x in self._sums.items()}
    return {'seen': self._seen, 'skipped': self._skipped, **shares}

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """The next batch.

    Raises ValueError when more than `max_unreadable` of the records were skipped, and for a label
    out of 0 .. label_limit - 1."""
    try:
      if not self._running:
        self._running.append(self._start())
      parts = [next(self._running[0]) for _ in range(self._pulls)]
    except BaseException:  # Even Ctrl-C in a notebook: half a batch read would shift all the next.
      self.close()
      raise
    self._step += 1
    self._seen += self._rows * self._records_per_row
    for k in self._sums:
      self._sums[k] += sum(int(part[k]) for part in parts)
    bad = [int(i) for part in parts for i in np.atleast_1d(part['bad']) if i >= 0]
    reason = next((f' ({part["reason"]})' for part in parts[::-1] if part.get('reason')), '')
    self._skipped += len(bad)
    # At least 100, so that one bad record among the first ten is no reason to stop.
    if bad and self._skipped > self._max_unreadable * max(self._seen, 100):
      raise ValueError(
        f'{self._name}: {self._skipped} of {self._seen} records unreadable, the last is record '
        f'{bad[-1]}{reason}; at most a share of {self._max_unreadable} expected'
      )
    if not all(part['rows'] for part in parts):
      raise ValueError(
        f'{self._name}: {self._skipped} of {self._seen} records unreadable, the last is record '
        f'{bad[-1]}, and none of {TRIES} random others is readable in its place'
      )
    for part in parts if self.label_limit and 'label' in self.features else ():
      check_labels(part['rows']['label'], self.label_limit, self._name, part.get('record'))
    return {k: np.concatenate([part['rows'][k] for part in parts]) for k in self.features}

  def get_state(self) -> dict[str, int | str]:
    """What is needed to go on after the last batch, for JSON and for any number of hosts."""
    # Batch k is a function of k alone, so there is nothing of grain's to save: its own state
    # would tie a run to its number of workers.
    sums = {key: self._sums[name] for name, key in self._state_keys.items()}
    counts = {'seen': self._seen, 'skipped': self._skipped}
    return {'stream': self._name, 'step': self._step, **counts, **sums}

  def set_state(self, state: dict[str, int | str]) -> None:
    """Makes `state` the point to go on from; ValueError if it is another stream's."""
    if state['stream'] != self._name:
      raise ValueError(f'data: state of {state["stream"]!r} found, of {self._name!r} expected')
    self.close()
    self._step, self._seen, self._skipped = state['step'], state['seen'], state['skipped']
    self._sums = {name: state[key] for name, key in self._state_keys.items()}

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


def endless(order: grain.MapDataset) -> grain.MapDataset:
  """The epochs of an order one after the other: ENDLESS records, or all of a longer order."""
  return order.repeat(max(1, ENDLESS // len(order)))


def check_labels(label: np.ndarray, limit: int, name: str, record: int | None = None) -> None:
  """Raises ValueError for the first integer of `label` out of 0 .. limit - 1.

  A device would take it for another one: JAX wraps and clamps indices. name: of the data set.
  record: the index of the record that the labels are of, if that is known."""
  if (bad := label[(label < 0) | (label >= limit)]).size:
    where = name if record is None else f'{name}: record {int(record)}'
    raise ValueError(f'{where}: label {bad.flat[0]} found, 0 to {limit - 1} expected')


def check_rows(batch: int, rows: Sequence[int]) -> None:
  """Raises ValueError unless `rows` are indices of a batch's rows, ascending."""
  if not batch >= 1:
    raise ValueError(f'batch: {batch} found, at least 1 expected')
  rows = list(rows)
  if not rows or rows != sorted(set(rows)) or not 0 <= rows[0] <= rows[-1] < batch:
    raise ValueError(f'rows: {rows} found, some of 0 to {batch - 1} in order expected')


class HostRows(grain.MapDataset):
  """The same rows of each batch of an endless dataset."""

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
