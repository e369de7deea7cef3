"""Worker processes for rewards that are not JAX: what fails there costs rows, not the run."""

import collections
import contextlib
import difflib
import importlib.machinery
import importlib.util
import inspect
import multiprocessing
from multiprocessing import connection, resource_tracker
import os
import pickle
import pkgutil
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback

import numpy as np

KINDS = ('nan', 'error', 'timeout', 'death')  # why a row has no verdict
START_SECONDS = 300.0  # to import a module: torch and a detector on a cold disk take a minute
IMPORTING = 'importing'
SPAWN = multiprocessing.get_context('spawn')  # a fork would copy jax's locks without their threads
HIDING = threading.Lock()


def nearest(name, names):
  """The end of an error message: what `name` was probably meant to be, or all there is."""
  close = difflib.get_close_matches(name, names, n=1)
  return f'; did you mean {close[0]!r}?' if close else f'; there are: {", ".join(sorted(names))}'


def locate(name):
  """'rewards.jpeg' -> ('vargrl.rewards.jpeg', 'reward'), 'a.f' -> ('a', 'f'); neither imported."""
  first, *rest = (f'vargrl.{name}' if name.startswith('rewards.') else name).split('.')
  if first == '__main__':
    raise ValueError(f'reward {name}: workers have no __main__; put the function into a module')
  module, spec = first, importlib.util.find_spec(first) if first else None
  if spec is None:
    raise ValueError(f'reward {name}: found no module {first!r} on sys.path')
  while rest and spec.submodule_search_locations is not None:
    inner, folders = f'{module}.{rest[0]}', list(spec.submodule_search_locations)
    spec = importlib.machinery.PathFinder.find_spec(inner, folders)
    if spec is None:
      break
    module, rest = inner, rest[1:]
  return module, '.'.join(rest) or 'reward'


def load(name, options):
  """The function; whatever can be wrong with its name and options is an error before any image."""
  module, path = locate(name)
  try:
    found = importlib.import_module(module)
  except Exception as e:
    raise ValueError(f'reward {name}: importing {module}: {traceback.format_exc()}') from e
  for attribute in path.split('.'):
    if not hasattr(found, attribute):
      names = [n for n in vars(found) if not n.startswith('_')]
      names += [m.name for m in pkgutil.iter_modules(getattr(found, '__path__', []))]
      raise ValueError(f'reward {name}: {module} has no {attribute!r}' + nearest(attribute, names))
    found = getattr(found, attribute)
  if not callable(found):
    raise ValueError(f'reward {name}: found a {type(found).__name__}, expected a function')
  check_options(name, found, options, ('images', 'prompts'))
  return found


def check_options(name, function, options, arrays):
  """Refuses options that `function(*arrays, **options)` would not take."""
  try:
    signature = inspect.signature(function)
  except (TypeError, ValueError):
    return  # a builtin without a signature: the first call will tell
  known = list(signature.parameters)[len(arrays) :]
  if not any(p.kind == p.VAR_KEYWORD for p in signature.parameters.values()):
    for option in options:
      if option not in known:
        raise ValueError(f'reward {name}: unknown option {option!r}' + nearest(option, known))
  try:
    signature.bind(*arrays, **options)
  except TypeError as e:
    raise ValueError(f'reward {name}: {e}; found {sorted(options)}, expected {known}') from e


def verdicts(name, scores, n):
  """r_B, NaN for no verdict; anything but n real numbers is a bug, never a row that failed."""
  listed = isinstance(scores, (list, tuple)) or getattr(scores, 'dtype', None) == object
  try:
    r_B = np.asarray([np.nan if s is None else s for s in scores] if listed else scores)
  except Exception as e:
    raise ValueError(f'reward {name}: returned no array ({e}), expected {n} numbers') from e
  if r_B.shape != (n,):
    found = f'{type(scores).__name__} of shape {r_B.shape}'
    found = f'{len(r_B)} scores' if r_B.ndim == 1 else found
    raise ValueError(f'reward {name}: returned {found}, expected {n}, one for each image')
  if r_B.dtype.kind not in 'fiub':
    raise ValueError(f'reward {name}: returned dtype {r_B.dtype}, expected real numbers')
  return finite(r_B)


def finite(r_B):
  """float32, with NaN for Inf and for what float32 cannot hold."""
  r_B = np.asarray(r_B)
  return np.where(np.abs(r_B) <= np.finfo(np.float32).max, r_B, np.nan).astype(np.float32)


def work(conn, name, options):
  """A worker's life: import, then one answer to each file it is told of, until the parent ends."""
  os.setsid()  # its own group: Ctrl-C passes by, and a kill takes along the programs it started
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
  paths = []
  threading.Thread(target=die_with_parent, args=(paths,), daemon=True).start()
  os.environ['JAX_PLATFORMS'] = 'cpu'  # a module that imports jax must leave the trainer its chips
  try:
    function = load(name, options)
  except Exception as e:
    return conn.send(('error', str(e)))
  conn.send(('ready', ''))
  with contextlib.suppress(EOFError):
    while True:
      paths[:] = [conn.recv()]
      with open(paths[0], 'rb') as file:
        images, prompts = pickle.load(file)
      conn.send(answer(name, function, images, prompts, options))


def answer(name, function, images, prompts, options):
  try:
    scores = function(images, prompts, **options)
  except Exception:
    return 'error', traceback.format_exc()[-2000:]
  try:
    return 'scores', verdicts(name, scores, len(images))
  except ValueError as e:
    return 'wrong', str(e)


def die_with_parent(paths):
  """Cleans up after a parent that was killed, and ends a function that may never return."""
  connection.wait([multiprocessing.parent_process().sentinel])
  for path in paths:
    shutil.rmtree(os.path.dirname(path), ignore_errors=True)
  os.killpg(0, signal.SIGKILL)


class Worker:
  """A handle to a process. `chunk` is what it is at: IMPORTING, (start, stop) of rows, or None."""

  def __init__(self, name, options):
    self.conn, theirs = SPAWN.Pipe()
    self.process = SPAWN.Process(target=work, args=(theirs, name, options), daemon=True)
    resource_tracker.ensure_running()  # else start() starts it, which unblocks SIGINT
    main = vars(sys.modules['__main__'])
    # A spawned process runs __main__ again (jax, scripts without a guard) if that has a file.
    with HIDING:
      hidden = {k: main[k] for k in ('__spec__', '__file__') if k in main}
      mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited, until `work`
      try:
        main.update(dict.fromkeys(hidden))
        self.process.start()
      finally:
        main.update(hidden)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()
    self.begin(IMPORTING, START_SECONDS)

  def begin(self, chunk, seconds):
    self.chunk, self.seconds, self.deadline = chunk, seconds, time.monotonic() + seconds

  def heard(self):
    """(kind, value) of what became of the chunk; (None, None) while it is at it."""
    with contextlib.suppress(EOFError, OSError):
      if self.conn.poll():
        return self.conn.recv()
      if not connection.wait([self.process.sentinel], 0):
        late = time.monotonic() > self.deadline
        return ('timeout', f'no answer within {self.seconds:g} s') if late else (None, None)
    return 'death', 'the worker died'

  def kill(self):
    """Kills it and what it started; returns its exit code."""
    try:
      os.killpg(self.process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # not a group yet; nothing left of it
      self.process.kill()
    self.process.join()
    self.conn.close()
    return self.process.exitcode


class Pool:
  """A handle to processes that hold f(images uint8 [n,y,x,3], prompts, **options) -> n numbers.

  `counts` are the latest scores' rows without a verdict by kind, and the calls repeated ('retry').
  """

  def __init__(self, function_name, options, *, workers, timeout, retries, chunk):
    if min(workers, chunk) < 1 or retries < 0 or timeout <= 0:
      found = f'workers={workers}, chunk={chunk}, retries={retries}, timeout={timeout}'
      raise ValueError(f'reward {function_name}: found {found}, expected >= 1, >= 1, >= 0, > 0')
    locate(function_name)  # before the cost of a process
    self.name, self.options, self.size, self.chunk = function_name, options, workers, chunk
    self.timeout, self.retries, self.workers, self.failed_starts = timeout, retries, [], 0
    try:
      self.begin(0)
      while any(w.chunk for w in self.workers):
        wait([self])
        self.hear(max_failed=1.0)
    except BaseException:
      self.close()
      raise

  def scores(self, images, prompts):
    """r_B float32, NaN where there is no verdict."""
    return run([self], images, prompts, max_failed=1.0)[0]

  def begin(self, n):
    """Forgets the rows before, queues n new ones and replaces the workers that were dropped."""
    if not self.size:
      raise ValueError(f'reward {self.name}: its pool is closed')
    rows = max(1, min(self.chunk, -(-n // self.size)))  # a part for everyone, if less than a chunk
    self.todo = collections.deque((i, min(i + rows, n)) for i in range(0, n, rows))
    self.r_B, self.tries = np.full(n, np.nan, np.float32), collections.Counter()
    self.counts, self.last_error = dict.fromkeys((*KINDS, 'retry'), 0), ''
    while len(self.workers) < self.size:
      self.workers.append(Worker(self.name, self.options))

  def scoring(self):
    return [w for w in self.workers if isinstance(w.chunk, tuple)]

  def dispatch(self, images, prompts, folder):
    """A chunk for each idle worker, in a file: a pipe would block us if that worker is stopped."""
    for i, worker in enumerate(self.workers):
      if worker.chunk is not None or not self.todo:
        continue
      start, stop = self.todo[0]
      path = os.path.join(folder, f'{start}-{stop}')
      if not os.path.exists(path):  # else another pool or an earlier try has written it
        with open(path, 'wb') as file:
          pickle.dump((images[start:stop], prompts[start:stop]), file, protocol=5)
      try:
        worker.conn.send(path)
        worker.begin(self.todo.popleft(), self.timeout)
      except OSError:  # it died while idle, no row's fault
        worker.kill()
        self.workers[i] = Worker(self.name, self.options)

  def hear(self, max_failed):
    """Takes what the workers have to say, and replaces those that will say nothing."""
    for i, worker in enumerate(self.workers):
      kind, value = worker.heard() if worker.chunk else (None, None)
      if kind is None:
        continue
      chunk, worker.chunk = worker.chunk, None
      if kind in ('timeout', 'death'):
        value += f' (exit code {worker.kill()})'
        self.workers[i] = Worker(self.name, self.options)
      if chunk == IMPORTING:
        self.started(kind, value)
      else:
        self.settle(chunk, kind, value)
    failed = sum(self.counts[k] for k in KINDS)
    refuse(self.name, failed, len(self.r_B), max_failed, self.last_error)

  def started(self, kind, value):
    """An error of the import is final; a death (a crowded memory) may be tried again."""
    self.failed_starts = 0 if kind == 'ready' else self.failed_starts + 1
    if kind == 'error':
      raise ValueError(value)
    if self.failed_starts > self.retries:
      raise ValueError(f'reward {self.name}: {value} while importing it')

  def settle(self, chunk, kind, value):
    """Writes down what became of a chunk: its scores, another try, or rows without a verdict."""
    start, stop = chunk
    if kind == 'wrong':
      raise ValueError(value)
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
    else:
      self.counts[kind] += stop - start

  def close(self, grace=2.0):
    """Idle workers leave by themselves (a module may have files to remove); others are killed."""
    self.size = 0
    idle = [w for w in self.workers if w.chunk is None]
    for worker in idle:
      worker.conn.close()
    for worker in idle:
      worker.process.join(grace)
    self.drop(self.workers)

  def drop(self, workers):
    for worker in workers:
      worker.kill()
    self.workers = [w for w in self.workers if w not in workers]


def run(pools, images, prompts, *, max_failed):
  """[r_B of each pool], all at work at once but watched by one thread: Ctrl-C leaves nothing."""
  images = np.asarray(images)
  prompts = np.asarray(prompts) if hasattr(prompts, 'dtype') else list(prompts)
  if images.dtype != np.uint8 or images.ndim != 4 or len(prompts) != len(images):
    found = f'found {images.dtype} {images.shape} and {len(prompts)} prompts'
    raise ValueError(f'images: {found}, expected uint8 (n, y, x, 3) and n prompts')
  with tempfile.TemporaryDirectory(prefix='vargrl_rewards_') as folder:
    try:
      for pool in pools:
        pool.begin(len(images))
      while busy := [p for p in pools if p.todo or p.scoring()]:
        for pool in busy:
          pool.dispatch(images, prompts, folder)
        wait(busy)
        for pool in busy:
          pool.hear(max_failed)
    except BaseException:
      for pool in pools:  # what they still say would be taken for answers to the next call
        pool.drop(pool.scoring())
      raise
  return [pool.r_B for pool in pools]


def wait(pools):
  """Returns when a worker of `pools` has something to say, has died, or is out of time."""
  at_work = [w for pool in pools for w in pool.workers if w.chunk]
  seconds = min(w.deadline for w in at_work) - time.monotonic()
  connection.wait([x for w in at_work for x in (w.conn, w.process.sentinel)], max(0.0, seconds))


def refuse(name, failed, n, max_failed, last_error):
  """A few lost rows are weather; a share above max_failed is a broken reward."""
  if failed > max_failed * n:
    raise RuntimeError(
      f'reward {name}: no verdict for {failed} of {n} images (a share of {failed / n:.3g}), '
      f'max_failed allows {max_failed:g}; last error: {last_error}'
    )
