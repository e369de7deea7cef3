"""Checkpoints that are right or refused: orbax writes them, digests and names vouch for them.

FOLDER/STEP holds three items: `state` (arrays; nested dictionaries under the names of the leaves),
`data` (JSON, where the data iterator stands) and `meta` (JSON: the shape, dtype and digest of each
leaf, hashes of `data` and of itself, and what the caller adds). A checkpoint that fails its digests
is moved to FOLDER/corrupt/STEP. In a run of several processes all of them call every function; the
`data` and `meta` of the first one are written.
"""

import hashlib
import json
import logging
import math
import os
import re
import time
import traceback

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from vargrl.checkpoint import digest

# Words of a storage that is away for a moment, or locked: they say nothing against the checkpoint.
_PASSING = ('UNAVAILABLE', 'DEADLINE_EXCEEDED', 'PERMISSION_DENIED', 'UNAUTHENTICATED')


class Store:
  """A handle on the folder of one run's checkpoints; the only writer in it."""

  def __init__(self, folder, *, every: int, keep: int):
    if every < 1 or keep < 1:
      raise ValueError(f'{folder}: every={every} and keep={keep}, expected both at least 1')
    self._folder, self._every = _path(folder), every
    self._saving = None  # The step whose asynchronous save has been started last.
    self._began, self.took = None, None  # `took`: seconds of the last save, once it is on disk.
    _check_writable(self._folder)
    _hush()
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, cleanup_tmp_directories=True
    )  # What a killed save leaves fills the disk.
    self._manager = ocp.CheckpointManager(
      self._folder, options=options, item_names=('state', 'data', 'meta')
    )
    # Orbax would ask jax whether a notice has come, with the number of the step: where hosts stop
    # is agreed on by comparing the numbers of those who ask, and vargrl.parallel.preemption counts in
    # its own way.
    self._manager.reached_preemption = lambda step: False

  def save(self, step: int, state, data, meta: dict, *, force: bool = False) -> bool:
    """Returns whether a save of this step has begun; a failure of the previous one is raised here.

    Nothing is written when the step is not due (unless forced) or is there already.
    """
    # Not check_for_errors: it would take the error away from the thread that, finding none, deletes
    # the oldest checkpoint.
    if not self._manager.is_saving_in_progress():
      self.wait()
    if not (force or step % self._every == 0) or step in self._manager.all_steps():
      return False
    self.wait()
    leaves, data = digest.named(state), _plain(data, 'data')
    for name, x in leaves.items():
      if not isinstance(x, jax.Array):
        raise TypeError(f'{name}: {type(x).__name__} in state, expected a jax.Array')
    # Orbax refuses arrays without elements; their shape in meta is all there is to know.
    solid = _nested({name: x for name, x in leaves.items() if x.size})
    record = {
      'step': int(step),
      'leaves': _described(leaves, digest.digests(leaves)),
      'data': _sha256(data),
      'meta': _plain(meta, 'meta'),
    }
    record['sha256'] = _sha256(record)
    self._saving, self._began = step, time.perf_counter()
    try:
      self._manager.save(
        step,
        force=True,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeSave(solid),
          data=ocp.args.JsonSave(data),
          meta=ocp.args.JsonSave(record),
        ),
      )
    except Exception as error:
      self._raise_unsaved(error)
    return True

  def restore(self, abstract_state):
    """Returns (step, state, data, meta) of the newest good checkpoint, None if there never was one.

    The state has the tree, shapes, dtypes and shardings of abstract_state, exactly: other names or
    shapes are a ValueError. A corrupt checkpoint is moved aside only once an older one has proved
    good, so that a storage in trouble cannot empty the folder and restart a run at step 0.
    """
    self.wait()
    steps = _steps(self._folder)
    if not steps and (self._folder / 'corrupt').exists():
      raise RuntimeError(f'{self._folder}: only checkpoints in corrupt/, remove it to restart')
    if not steps:
      return None
    step, state, record, data, bad = _newest_good(self._folder, steps, abstract_state, item='')
    for other, problem in bad.items():
      target = _move_aside(self._folder, other)
      logging.warning(
        'checkpoint %s/%d is corrupt: %s. Moved to %s; step %d is used instead.',
        self._folder,
        other,
        problem,
        target,
        step,
      )
    if bad:
      self._manager.reload()
    return step, state, data, record['meta']

  def latest(self) -> int | None:
    """Returns the newest step completely on disk."""
    return next(iter(_steps(self._folder)), None)

  def wait(self):
    """Returns when the save under way, if any, is on disk; raises what went wrong with it."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      self._raise_unsaved(error)
    if self._began:
      self._began, self.took = None, time.perf_counter() - self._began

  def close(self):
    """Waits, and ends the threads that write."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def _raise_unsaved(self, error):
    # The rubble of the failed save goes: it may be what fills the disk.
    if jax.process_index() == 0:
      for path in self._folder.glob(f'{self._saving}.orbax-checkpoint-tmp*'):
        path.rmtree(missing_ok=True)
    self._manager.reload()
    raise OSError(
      f'{self._folder}: step {self._saving} could not be saved ({_line(error)}); '
      f'the newest complete checkpoint is {self.latest()}'
    ) from error


def load(folder, abstract, *, item: str = 'params'):
  """Returns (step, item, meta): one item of the newest good state, such as its params, on the
  shardings of abstract.

  As strict as Store.restore, but it only reads: a corrupt checkpoint stays where it is.
  """
  _hush()
  folder = _path(folder)
  steps = _steps(folder)
  if not steps:
    raise FileNotFoundError(
      f'{folder}: ' + ('no checkpoint in this folder' if folder.exists() else 'no such folder')
    )
  step, tree, record, _, bad = _newest_good(folder, steps, abstract, item=item)
  for other, problem in bad.items():
    logging.warning(
      'checkpoint %s/%d is corrupt: %s. Step %d is used instead.', folder, other, problem, step
    )
  return step, tree, record['meta']


def peek(folder, abstract, *, item: str):
  """Returns (step, data, meta) of the newest checkpoint that can be read, or None; no array is
  read.

  What load or restore would refuse, at no cost and before anything compiles: a checkpoint of
  another model than abstract is a ValueError."""
  folder = _path(folder)
  for step in _steps(folder):
    record, data, problem = _read_json(folder / str(step), step)
    if not problem:
      _refuse(folder / str(step), record['leaves'], abstract, item)
      return step, data, record['meta']
  return None


def names(folder, *, item: str):
  """Returns the names of an item's leaves in the newest checkpoint that can be read, none if there
  is none.
  """
  folder = _path(folder)
  for step in _steps(folder):
    record, _, problem = _read_json(folder / str(step), step)
    if not problem:
      return {name for name in record['leaves'] if f'{name}/'.startswith(f'{item}/')}
  return set()


def refuse_others(where, have, want):
  """ValueError, with the differences, unless both abstract trees have equal names, shapes and
  dtypes.
  """
  _refuse(where, _described(digest.named(have)), want, '')


def _newest_good(folder, steps, abstract, *, item):
  """Returns (step, tree, record, data, {corrupt step: what is wrong}); none good is an error."""
  bad = {}
  for step in steps:
    record, data, problem = _read_json(folder / str(step), step)
    problem = _agreed(problem)
    if not problem:
      tree, problem = _read_state(folder / str(step), record['leaves'], abstract, item)
    if not problem:
      return step, tree, record, data, bad
    bad[step] = problem
  raise RuntimeError(
    f'{folder}: none of its {len(bad)} checkpoints is good, nothing was moved'
    + ''.join(f'\n  {step}: {problem}' for step, problem in bad.items())
  )


def _read_json(path, step):
  """Returns (meta record, data, ''), or (None, None, what is wrong)."""
  found = {}
  for name in ('meta', 'data'):
    try:
      found[name] = json.loads((path / name / 'metadata').read_text())
    except (OSError, ValueError) as error:
      return None, None, _problem(path, f'{name}/metadata', error)
  record, data = found['meta'], found['data']
  if not isinstance(record, dict) or 'sha256' not in record:
    return None, None, 'meta/metadata: no sha256 of its own found, expected one'
  own = _sha256({key: value for key, value in record.items() if key != 'sha256'})
  if own != record['sha256']:
    return None, None, f'meta/metadata: sha256 {own} found, {record["sha256"]} expected'
  if _sha256(data) != record['data']:
    return None, None, f'data/metadata: sha256 {_sha256(data)} found, {record["data"]} expected'
  if record['step'] != step:
    return None, None, f'meta/metadata: step {record["step"]} found, {step} expected'
  return record, data, ''


def _read_state(path, saved, abstract, item):
  """Returns (tree, '') or (None, what is wrong); another model than the saved one is an error."""
  saved, wanted = _refuse(path, saved, abstract, item)
  try:
    arrays, problem = _read_arrays(path / 'state', wanted), ''
  except Exception as error:  # The kinds that orbax and tensorstore raise are not documented.
    arrays, problem = None, _problem(path, 'state', error)
  problem = _agreed(problem)  # Before the digests, which all processes compute together.
  if problem:
    return None, problem
  wrong = [
    f'{name}: digest {found} found, {saved[name]["digest"]} expected'
    for name, found in digest.digests(arrays).items()
    if found != saved[name]['digest']
  ]
  if wrong:
    return None, wrong[0] + (f', and {len(wrong) - 1} more leaves' if wrong[1:] else '')
  return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in wanted]), ''


def _refuse(path, saved, abstract, item):
  """Returns ({name: record} of the item, {name: abstract leaf}); ValueError if they differ."""
  wanted = {'/'.join(filter(None, (item, name))): x for name, x in digest.named(abstract).items()}
  saved = {name: x for name, x in saved.items() if not item or f'{name}/'.startswith(f'{item}/')}
  lines = _differences(saved, _described(wanted))
  if lines:
    more = [f'... and {len(lines) - 10} more'] if len(lines) > 10 else []
    raise ValueError(
      f'{path}: not a checkpoint of this model, {len(lines)} leaves differ '
      '(- only in checkpoint, + only in model, ~ in both)'
      + ''.join(f'\n  {line}' for line in lines[:10] + more)
    )
  return saved, wanted


def _read_arrays(path, wanted):
  """Returns {name: array} as wanted; where no sharding is given, on one device."""
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  places = {name: getattr(x, 'sharding', None) or here for name, x in wanted.items()}
  solid = {name: x for name, x in wanted.items() if math.prod(x.shape)}
  arrays = {
    name: jax.make_array_from_callback(
      x.shape, places[name], lambda index, x=x: np.zeros(x.shape, x.dtype)[index]
    )
    for name, x in wanted.items()
    if name not in solid
  }
  if solid:
    how = {name: _restore_args(x, places[name]) for name, x in solid.items()}
    items = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in solid.items()}
    arrays |= digest.named(
      ocp.PyTreeCheckpointHandler().restore(
        path,
        args=ocp.args.PyTreeRestore(
          item=_nested(items), restore_args=_nested(how), partial_restore=True
        ),
      )
    )
  for name, x in wanted.items():
    found = arrays.get(name)
    # Orbax hands back what was asked for, instead of an array, where its own metadata lacks a name.
    if not isinstance(found, jax.Array) or (found.shape, found.dtype) != (tuple(x.shape), x.dtype):
      raise ValueError(f'{name}: {found} in the file, expected an array {x.shape} {x.dtype}')
  return arrays


def _restore_args(x, sharding):
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):  # Orbax itself knows the words of a key.
    return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding)
  return ocp.ArrayRestoreArgs(
    restore_type=jax.Array, sharding=sharding, global_shape=x.shape, dtype=x.dtype
  )


def _differences(saved, wanted):
  """Returns a line for every leaf that is not the same in both."""

  def text(leaf):
    return f'{tuple(leaf["shape"])} {leaf["dtype"]}'

  lines = []
  for name in sorted(saved | wanted, key=lambda x: (not x.startswith('params/'), x)):
    if name not in wanted:
      lines.append(f'- {name} {text(saved[name])}')
    elif name not in saved:
      lines.append(f'+ {name} {text(wanted[name])}')
    elif text(saved[name]) != text(wanted[name]):
      lines.append(f'~ {name} checkpoint {text(saved[name])} model {text(wanted[name])}')
  return lines


def _described(leaves, digests=None):
  return {
    name: {'shape': list(x.shape), 'dtype': str(x.dtype)}
    | ({'digest': digests[name]} if digests else {})
    for name, x in leaves.items()
  }


def _nested(leaves):
  """{'params/blocks/w': x} -> {'params': {'blocks': {'w': x}}}."""
  tree = {}
  for name, x in leaves.items():
    *path, last = name.split('/')
    node = tree
    for part in path:
      node = node.setdefault(part, {})
    if not isinstance(node, dict) or last in node:
      raise ValueError(f'{name}: part of this name is the name of another leaf')
    node[last] = x
  return tree


def _move_aside(folder, step):
  """Moves FOLDER/STEP to FOLDER/corrupt/STEP, or STEP.1, STEP.2... if taken; returns the path."""
  target, count = folder / 'corrupt' / str(step), 0
  while target.exists():
    count += 1
    target = folder / 'corrupt' / f'{step}.{count}'
  multihost_utils.sync_global_devices('move_aside')  # All know the target before one moves.
  if jax.process_index() == 0:
    target.parent.mkdir(exist_ok=True)
    (folder / str(step)).rename(target)
  multihost_utils.sync_global_devices('moved_aside')
  return target


def _steps(folder):
  """Returns the complete checkpoints of a folder, newest first."""
  if not folder.exists():
    return []
  # A rename completes a checkpoint on a file system; a bucket has none, there a last file does.
  bucket = '://' in os.fspath(folder)
  steps = [
    int(path.name)
    for path in folder.iterdir()
    if path.name.isdigit()
    and path.is_dir()
    and (not bucket or (path / 'commit_success.txt').exists())
  ]
  return sorted(steps, reverse=True)


def _path(folder):
  text = os.fspath(folder)
  return epath.Path(text if '://' in text else os.path.abspath(os.path.expanduser(text)))


def _check_writable(folder):
  probe = folder / f'.writable-{jax.process_index()}-{os.getpid()}'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe.write_text('')
    probe.unlink()
  except Exception as error:  # A bucket's client has errors of its own.
    kind = PermissionError if isinstance(error, PermissionError) else OSError
    raise kind(f'{folder}: checkpoints cannot be written here ({_line(error)})') from error


def _problem(path, name, error):
  """Returns what is wrong with a file, in a line; passing trouble proves nothing and is raised."""
  line = _line(error)
  if isinstance(_root(error), (MemoryError, PermissionError, jax.errors.JaxRuntimeError)) or any(
    word in line for word in _PASSING
  ):
    raise OSError(f'{path}/{name} cannot be read now ({line}); nothing was moved') from error
  return f'{name}: {line}'


def _line(error):
  text = ' '.join(
    re.split(r'\[(?:tensorstore_spec|source locations)', str(_root(error)))[0].split()
  )  # Half a page.
  text = text if len(text) < 400 else f'{text[:200]} ... {text[-200:]}'  # The cause is at the end.
  return f'{type(_root(error)).__name__}: {text}'


def _root(error):
  return _root(error.__cause__) if error.__cause__ else error  # Orbax wraps what tensorstore says.


def _hush():
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(_is_news)


def _is_news(record):
  """False for the traces, hundreds of lines each, that orbax logs of errors it also raises."""
  trace = traceback.walk_tb(record.exc_info[2]) if record.exc_info else ()
  return not any('/orbax/' in frame.f_code.co_filename for frame, _ in trace)


def _plain(value, what):
  """Returns value as it will be read back from JSON."""
  try:
    return json.loads(json.dumps(value))
  except (TypeError, ValueError) as error:
    raise TypeError(f'{what}: {error}, expected what JSON can hold') from error


def _sha256(value):
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _agreed(problem):
  """Returns the problem of this process, or that another one has one: all must go the same way."""
  bad = multihost_utils.process_allgather(np.array(bool(problem)))
  return problem or ('another process could not read it' if bad.any() else '')
