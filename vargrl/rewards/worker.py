"""A process that holds a reward function: what its name means, what it may return, how it ends."""

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
import threading
import time
import traceback

import numpy as np

START_SECONDS = 300.0  # to import a module: torch and a detector on a cold disk take a minute
IMPORTING = 'importing'
SPAWN = multiprocessing.get_context('spawn')  # a fork would copy jax's locks without their threads
HIDING = threading.Lock()


def suggestion(name, names):
  """The end of an error message: the name that was probably meant, or all that there are."""
  if not names:
    return '; there are none'
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


def load(name, options, arrays=('samples',)):
  """The function of a name, which is called as function(*arrays, **options).

  Raises ValueError for whatever can be wrong with its name and options, before it sees a row."""
  module, path = locate(name)
  try:
    found = importlib.import_module(module)
  except Exception as e:
    raise ValueError(f'reward {name}: importing {module}: {traceback.format_exc()}') from e
  for attribute in path.split('.'):
    if not hasattr(found, attribute):
      names = [n for n in vars(found) if not n.startswith('_')]
      names += [m.name for m in pkgutil.iter_modules(getattr(found, '__path__', []))]
      raise ValueError(
        f'reward {name}: {module} has no {attribute!r}' + suggestion(attribute, names)
      )
    found = getattr(found, attribute)
  if not callable(found):
    raise ValueError(f'reward {name}: found a {type(found).__name__}, expected a function')
  check_options(name, found, options, arrays)
  if path == 'reward':
    check_values(name, sys.modules[module], options)
  return found


def check_values(name, module, options):
  """Raises ValueError, which names the reward, for values of options that its module refuses: its
  function `check` takes the same options, and sees no row."""
  check = getattr(module, 'check', None)
  try:
    inspect.signature(check).bind(**options)
  except (TypeError, ValueError):
    return  # another function, or none
  try:
    check(**options)
  except ValueError as e:
    raise ValueError(f'reward {name}: {e}') from e


def wants_groups(name, function):
  """Whether the function must see all rows of a prompt in one call, as it compares them.

  It or its module says so by an attribute GROUPS = True."""
  module = importlib.import_module(locate(name)[0])
  return bool(getattr(function, 'GROUPS', getattr(module, 'GROUPS', False)))


def check_options(name, function, options, arrays):
  """Refuses options that `function(*arrays, **options)` would not take."""
  try:
    signature = inspect.signature(function)
  except (TypeError, ValueError):
    return  # a builtin without a signature: the first call will tell
  try:
    signature.bind_partial(*arrays)
  except TypeError as e:
    given = ', '.join(arrays)
    raise ValueError(
      f'reward {name}: a function with the parameters {signature} found, which is called with '
      f'({given}) and then its options by name; ({given}, *, ...) expected'
    ) from e
  known = list(signature.parameters)[len(arrays) :]
  if not any(p.kind == p.VAR_KEYWORD for p in signature.parameters.values()):
    for option in options:
      if option not in known:
        raise ValueError(f'reward {name}: unknown option {option!r}' + suggestion(option, known))
  try:
    signature.bind(*arrays, **options)
  except TypeError as e:
    raise ValueError(f'reward {name}: {e}; found {sorted(options)}, expected {known}') from e


class WrongCount(ValueError):
  """A function returned another number of scores than rows: its own fault, whatever the rows."""


def as_scores(scores, n):
  """r_B float32, NaN for no verdict; ValueError for anything but n real numbers, WrongCount where
  there are not n."""
  listed = isinstance(scores, (list, tuple)) or getattr(scores, 'dtype', None) == object
  try:
    r_B = np.asarray([np.nan if s is None else s for s in scores] if listed else scores)
  except Exception as e:
    raise ValueError(f'returned no array ({e}), expected {n} numbers') from e
  if r_B.shape != (n,):
    found = f'{type(scores).__name__} of shape {r_B.shape}'
    found = f'{len(r_B)} scores' if r_B.ndim == 1 else found
    raise WrongCount(f'returned {found}, expected {n}, one for each row')
  if r_B.dtype.kind not in 'fiub':
    raise ValueError(f'returned dtype {r_B.dtype}, expected real numbers')
  return finite(r_B)


def finite(r_B):
  """float32, with NaN for Inf and for what float32 cannot hold."""
  r_B = np.asarray(r_B)
  return np.where(np.abs(r_B) <= np.finfo(np.float32).max, r_B, np.nan).astype(np.float32)


def run_worker(conn, name, options):
  """Runs in the process: imports, then answers each file whose path comes, till the parent ends."""
  os.setsid()  # its own group: Ctrl-C passes by, and a kill takes along the programs it started
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
  # A daemon may start no processes, and a reward may: they end with this one's group.
  multiprocessing.current_process()._config['daemon'] = False
  paths = []
  threading.Thread(target=die_with_parent, args=(paths,), daemon=True).start()
  os.environ['JAX_PLATFORMS'] = 'cpu'  # a module that imports jax must leave the trainer its chips
  try:
    function = load(name, options)
  except Exception as e:
    return conn.send(('error', str(e)))
  conn.send(('ready', wants_groups(name, function)))
  with contextlib.suppress(EOFError):
    while True:
      paths[:] = [conn.recv()]
      with open(paths[0], 'rb') as file:
        samples = pickle.load(file)
      conn.send(call_function(function, samples, options))


def call_function(function, samples, options):
  """('scores', r_B) of a call of the function, or ('error' or 'count', what went wrong)."""
  try:
    scores = function(samples, **options)
  except Exception:
    rows = 'rows without pictures: ' if samples.image_Byxc is None else ''
    return 'error', rows + traceback.format_exc()[-2000:]
  try:
    return 'scores', as_scores(scores, len(samples.record))
  except WrongCount as e:
    return 'count', str(e)
  except ValueError as e:
    return 'error', str(e)


def die_with_parent(paths):
  """Cleans up after a parent that was killed, and ends a function that may never return."""
  connection.wait([multiprocessing.parent_process().sentinel])
  for path in paths:
    shutil.rmtree(os.path.dirname(path), ignore_errors=True)
  os.killpg(0, signal.SIGKILL)


class Worker:
  """A handle to a process. chunk: what it works on, IMPORTING, (start, stop) of rows, or None."""

  def __init__(self, name, options):
    self.conn, theirs = SPAWN.Pipe()
    self.process = SPAWN.Process(target=run_worker, args=(theirs, name, options), daemon=True)
    resource_tracker.ensure_running()  # else start() starts it, which unblocks SIGINT
    main = vars(sys.modules['__main__'])
    # A spawned process runs __main__ again (jax, scripts without a guard) if that has a file.
    with HIDING:
      hidden = {k: main[k] for k in ('__spec__', '__file__') if k in main}
      mask = signal.pthread_sigmask(
        signal.SIG_BLOCK, [signal.SIGINT]
      )  # inherited, until `run_worker`
      try:
        main.update(dict.fromkeys(hidden))
        self.process.start()
      finally:
        main.update(hidden)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()
    self.begin(IMPORTING, START_SECONDS)

  def begin(self, chunk, seconds):
    """Notes what it is busy with, and for how long it may be."""
    self.chunk, self.seconds, self.deadline = chunk, seconds, time.monotonic() + seconds

  def poll(self):
    """(kind, value) of what became of the chunk; (None, None) while the worker is busy with it."""
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
