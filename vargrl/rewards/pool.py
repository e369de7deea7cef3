"""Worker processes for rewards that are not JAX: what fails there costs rows, not the run.

A chunk of rows that raises, kills its worker or returns what are no numbers is tried `retries`
times more, then halved, each half tried once, until the guilty rows are alone and the others have
their scores. A chunk that hangs is lost whole, after 1 + retries times `timeout` (a
half: after one): it is seldom one row's fault, and each step of a search would cost a timeout.
Where a function compares the rows of a prompt, whole groups take the place of rows in all this.
Another number of scores than of rows is no row's fault but the function's: after the same retries
the run ends.

The run ends as soon as more rows are lost than max_failed allows: a function that always raises is
called once for each chunk, and then about twice for each row allowed.
"""

import collections
from multiprocessing import connection
import pickle
import tempfile
import time

import numpy as np

from vargrl.io import numbers, paths
from vargrl.rewards.worker import IMPORTING, Worker, locate

KINDS = ('nan', 'error', 'timeout', 'death')  # why a row has no verdict


class Pool:
  """A handle to processes that hold function(HostSamples, **options) -> a number for each row.

  `groups`: the function wants all rows of a prompt in one call (GROUPS = True). `counts` are the
  latest scores' rows without a verdict by kind, and the calls that failures cost ('retry': a chunk
  once more, or one of its halves).
  """

  def __init__(self, function_name, options, *, workers, timeout, retries, chunk):
    least = {'workers': (workers, 1), 'chunk': (chunk, 1), 'retries': (retries, 0)}
    for key, (value, at_least) in least.items():
      numbers.check_number(f'objective.collect.pool.{key}', value, least=at_least)
    numbers.check_number('objective.collect.pool.timeout', timeout, above=0)
    locate(function_name)  # before the cost of a process
    self.name, self.options, self.size, self.chunk = function_name, options, workers, chunk
    self.timeout, self.retries, self.workers, self.failed_starts = timeout, retries, [], 0
    self.groups = False
    try:
      self.begin(0, 1)
      while any(w.chunk for w in self.workers):
        wait([self])
        self.collect(max_failed=1.0)
    except BaseException:
      self.close()
      raise

  def scores(self, samples, group_size=1):
    """r_B float32, NaN where there is no verdict."""
    return run([self], samples, group_size=group_size, max_failed=1.0)[0]

  def begin(self, n, group_size):
    """Forgets the rows before, queues n new ones and replaces the workers that were dropped.

    The rows that are never parted, `unit` of them, are a group, or one."""
    if not self.size:
      raise ValueError(f'reward {self.name}: its pool is closed')
    self.unit = group_size if self.groups else 1
    # A part for every worker, if that is less than a chunk.
    rows = max(1, min(self.chunk // self.unit, -(-n // (self.unit * self.size)))) * self.unit
    self.todo = collections.deque((i, min(i + rows, n)) for i in range(0, n, rows))
    self.r_B, self.tries = np.full(n, np.nan, np.float32), collections.Counter()
    self.counts, self.last_error = dict.fromkeys((*KINDS, 'retry'), 0), ''
    while len(self.workers) < self.size:
      self.workers.append(Worker(self.name, self.options))

  def scoring(self):
    """The workers that are busy with rows."""
    return [w for w in self.workers if isinstance(w.chunk, tuple)]

  def dispatch(self, samples, folder):
    """A chunk for each idle worker, in a file: a pipe would block us if that worker is stopped."""
    for i, worker in enumerate(self.workers):
      if worker.chunk is not None or not self.todo:
        continue
      start, stop = self.todo[0]
      path = paths.path(folder) / f'{start}-{stop}'
      if not path.exists():  # else another pool or an earlier try has written it
        with path.open('wb') as file:
          pickle.dump(samples.rows(start, stop), file, protocol=5)
      try:
        worker.conn.send(str(path))
        worker.begin(self.todo.popleft(), self.timeout)
      except OSError:  # it died while idle, no row's fault
        worker.kill()
        self.workers[i] = Worker(self.name, self.options)

  def collect(self, max_failed):
    """Takes the answers of workers that have one, and replaces the workers that will give none."""
    for i, worker in enumerate(self.workers):
      kind, value = worker.poll() if worker.chunk else (None, None)
      if kind is None:
        continue
      chunk, worker.chunk = worker.chunk, None
      if kind in ('timeout', 'death'):
        value += f' (exit code {worker.kill()})'
        self.workers[i] = Worker(self.name, self.options)
      if chunk == IMPORTING:
        self.check_start(kind, value)
      else:
        self.record(chunk, kind, value)
    failed = sum(self.counts[k] for k in KINDS)
    check_failures(self.name, failed, len(self.r_B), max_failed, self.last_error)

  def check_start(self, kind, value):
    """Raises ValueError where the import failed, or where too many workers died while importing."""
    self.failed_starts = 0 if kind == 'ready' else self.failed_starts + 1
    if kind == 'ready':
      self.groups = value
    if kind == 'error':
      raise ValueError(value)
    if self.failed_starts > self.retries:
      raise ValueError(f'reward {self.name}: {value} while importing it')

  def record(self, chunk, kind, value):
    """Records what became of a chunk: its scores, more tries, or rows without a verdict. Raises
    ValueError for another number of scores than of rows."""
    start, stop = chunk
    if kind == 'scores':
      self.r_B[start:stop] = value
      if np.isnan(value).any():
        self.counts['nan'] += int(np.isnan(value).sum())
        self.last_error = 'it returned None, NaN or Inf'
      return
    self.last_error, self.tries[chunk] = value, self.tries[chunk] + 1
    if self.tries[chunk] <= self.retries:
      self.counts['retry'] += 1
      self.todo.append(chunk)
    elif kind == 'count':
      raise ValueError(f'reward {self.name}: {value}')
    elif kind == 'timeout' or stop - start == self.unit:
      self.counts[kind] += stop - start
    else:
      self.halve(start, stop)

  def halve(self, start, stop):
    """Queues one try for each half, ahead of all else: single rows, found early, end a run."""
    middle = start + (stop - start) // self.unit // 2 * self.unit
    for half in ((middle, stop), (start, middle)):
      self.todo.appendleft(half)
      self.tries[half] = self.retries
      self.counts['retry'] += 1

  def close(self, grace=2.0):
    """Lets idle workers end by themselves (a module may have files to remove), and kills others."""
    self.size = 0
    idle = [w for w in self.workers if w.chunk is None]
    for worker in idle:
      worker.conn.close()
    for worker in idle:
      worker.process.join(grace)
    self.drop(self.workers)

  def drop(self, workers):
    """Kills workers of this pool."""
    for worker in workers:
      worker.kill()
    self.workers = [w for w in self.workers if w not in workers]


def run(pools, samples, *, group_size, max_failed):
  """[r_B of each pool] of HostSamples, whose groups have `group_size` rows each.

  All pools work at once but are watched by one thread: Ctrl-C leaves no process behind. Raises
  ValueError for samples that do not fit together, RuntimeError where more than the share
  `max_failed` of the rows has no verdict."""
  samples.check()
  with tempfile.TemporaryDirectory(prefix='vargrl_rewards_') as folder:
    try:
      for pool in pools:
        pool.begin(len(samples.record), group_size)
      while busy := [p for p in pools if p.todo or p.scoring()]:
        for pool in busy:
          pool.dispatch(samples, folder)
        wait(busy)
        for pool in busy:
          pool.collect(max_failed)
    except BaseException:
      for pool in pools:  # what they still answer would be taken for scores of the next call
        pool.drop(pool.scoring())
      raise
  return [pool.r_B for pool in pools]


def wait(pools):
  """Returns when a worker of `pools` has an answer, has died, or is out of time."""
  at_work = [w for pool in pools for w in pool.workers if w.chunk]
  seconds = min(w.deadline for w in at_work) - time.monotonic()
  connection.wait([x for w in at_work for x in (w.conn, w.process.sentinel)], max(0.0, seconds))


def check_failures(name, failed, n, max_failed, last_error):
  """Raises RuntimeError where more than the share max_failed of n rows has no verdict."""
  if failed > max_failed * n:
    raise RuntimeError(
      f'reward {name}: no verdict for {failed} of {n} rows (a share of {failed / n:.3g}), '
      f'max_failed allows {max_failed:g}; last error: {last_error}'
    )
