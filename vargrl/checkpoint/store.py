"""Checkpoints of a run: orbax writes them, and integrity.py refuses those that are not right.

FOLDER/STEP contains three items: `state` (arrays; nested dictionaries under the names of the
leaves), `data` (JSON, the position of the data iterator) and `meta` (JSON: the shape, dtype and
digest of each leaf, hashes of `data` and of itself, and what the caller adds). A checkpoint that
fails its checks is moved to FOLDER/corrupt/STEP. In a run of several processes all of them call
every function; the `data` and `meta` of the first one are written.
"""

import logging
import os
import time
import traceback

from etils import epath
import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp

from vargrl.checkpoint import digest, integrity
from vargrl.io import paths


class Store:
  """The checkpoints of one run, in one folder; nothing else writes there.

  `save_seconds` is the duration of the last save that is completely on disk, None before.
  """

  def __init__(self, folder, *, every_steps: int, max_to_keep: int):
    if not (every_steps >= 1 and max_to_keep >= 1):
      raise ValueError(
        f'{folder}: every_steps={every_steps} and max_to_keep={max_to_keep}, expected both at '
        'least 1'
      )
    self._folder, self._every_steps = _path(folder), every_steps
    self._saving_step = None  # The step whose asynchronous save was started last.
    self._save_began, self.save_seconds = None, None
    _check_writable(self._folder)
    _silence_orbax()
    # What a killed save leaves would fill the disk.
    options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, cleanup_tmp_directories=True)
    self._manager = ocp.CheckpointManager(
      self._folder, options=options, item_names=('state', 'data', 'meta')
    )
    # Orbax would poll jax for preemption notices with the number of the step. Hosts agree on where
    # to stop by comparing such numbers, and vargrl.parallel.preemption counts its own.
    self._manager.reached_preemption = lambda step: False

  def save(self, step: int, state, data, meta: dict, *, force: bool = False) -> bool:
    """Starts an asynchronous save and returns True; returns False if there is nothing to save.

    Nothing is saved if the step exists already, or is no multiple of every_steps and not forced.
    state: a tree of jax.Arrays. data, meta: JSON values. Raises OSError if the previous save
    failed, TypeError for other values.
    """
    # Not check_for_errors: it would take the error away from the thread that, finding none, deletes
    # the oldest checkpoint.
    if not self._manager.is_saving_in_progress():
      self.wait()
    if not (force or step % self._every_steps == 0) or step in self._manager.all_steps():
      return False
    self.wait()
    leaves, data = digest.named_leaves(state), integrity.to_json(data, 'data')
    for name, x in leaves.items():
      if not isinstance(x, jax.Array):
        raise TypeError(f'{name}: {type(x).__name__} in state, expected a jax.Array')
    # Orbax refuses arrays without elements; their shape in meta is all there is to know.
    solid = integrity.nest({name: x for name, x in leaves.items() if x.size})
    record = {
      'step': int(step),
      'leaves': integrity.describe_leaves(leaves, digest.digests(leaves)),
      'data': integrity.sha256(data),
      'meta': integrity.to_json(meta, 'meta'),
    }
    record['sha256'] = integrity.sha256(record)
    self._saving_step, self._save_began = step, time.perf_counter()
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
    """Returns (step, state, data, meta) of the newest good checkpoint; None if there never was one.

    The state has exactly the tree, shapes, dtypes and shardings of abstract_state, which may be a
    function of the set of names of a checkpoint's leaves; ValueError for a checkpoint with other
    names, shapes or dtypes. A corrupt checkpoint is moved aside only after an
    older one has proved good, so that a storage in trouble cannot empty the folder and restart a
    run at step 0. Raises RuntimeError if there are only corrupt ones.
    """
    self.wait()
    steps = _steps(self._folder)
    if not steps and (self._folder / 'corrupt').exists():
      raise RuntimeError(f'{self._folder}: only checkpoints in corrupt/, remove it to restart')
    if not steps:
      return None
    step, state, record, data, bad = integrity.newest_good(
      self._folder, steps, abstract_state, item=''
    )
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
    """Returns the newest step that is completely on disk, or None."""
    return next(iter(_steps(self._folder)), None)

  def wait(self):
    """Waits until the save under way, if any, is on disk; raises OSError if it failed."""
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      self._raise_unsaved(error)
    if self._save_began:
      self._save_began, self.save_seconds = None, time.perf_counter() - self._save_began

  def close(self):
    """Waits like `wait`, and ends the threads that write."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def _raise_unsaved(self, error):
    # What the failed save left is deleted: it may be what fills the disk.
    if jax.process_index() == 0:
      for path in self._folder.glob(f'{self._saving_step}.orbax-checkpoint-tmp*'):
        path.rmtree(missing_ok=True)
    self._manager.reload()
    raise OSError(
      f'{self._folder}: step {self._saving_step} could not be saved '
      f'({integrity.describe_error(error)}); '
      f'the newest complete checkpoint is {self.latest()}'
    ) from error


def load(folder, abstract, *, item: str = 'params', instead: str = ''):
  """Returns (step, tree, meta): one item of the newest good state, such as its params.

  abstract: the item's tree, with shardings, or a function of the set of names of a checkpoint's
  leaves. instead: an item whose leaves are read in the place of those of the same name, where
  the checkpoint has them; '' for none. As strict as Store.restore, but it only reads: a
  corrupt checkpoint is not moved. Raises FileNotFoundError if there is no checkpoint.
  """
  _silence_orbax()
  folder = _path(folder)
  steps = _steps(folder)
  if not steps:
    raise FileNotFoundError(
      f'{folder}: ' + ('no checkpoint in this folder' if folder.exists() else 'no such folder')
    )
  step, tree, record, _, bad = integrity.newest_good(
    folder, steps, abstract, item=item, instead=instead
  )
  for other, problem in bad.items():
    logging.warning(
      'checkpoint %s/%d is corrupt: %s. Step %d is used instead.', folder, other, problem, step
    )
  return step, tree, record['meta']


def read_metadata(folder, abstract, *, item: str):
  """Returns (step, data, meta) of the newest checkpoint whose metadata is intact, or None.

  Reads no array: it raises ValueError for a checkpoint of another model than abstract, a tree or a
  function as in `load`, as `load` and Store.restore do, but at no cost and before anything is
  compiled.
  """
  folder = _path(folder)
  for step in _steps(folder):
    record, data, problem = integrity.read_metadata(folder / str(step), step)
    if not problem:
      expected = integrity.abstract_of(abstract, record['leaves'])
      integrity.check_leaves(folder / str(step), record['leaves'], expected, item)
      return step, data, record['meta']
  return None


def leaf_names(folder, *, item: str):
  """Returns the names of an item's leaves in the newest checkpoint with intact metadata.

  The set is empty if there is no such checkpoint.
  """
  folder = _path(folder)
  for step in _steps(folder):
    record, _, problem = integrity.read_metadata(folder / str(step), step)
    if not problem:
      return {name for name in record['leaves'] if f'{name}/'.startswith(f'{item}/')}
  return set()


def check_same_leaves(where, found, expected):
  """Raises ValueError, with the differences, unless two abstract trees have equal leaves.

  That is equal names, shapes and dtypes. where: the place of `found`, for the error.
  """
  found = integrity.describe_leaves(digest.named_leaves(found))
  integrity.check_leaves(where, found, expected, '')


def _move_aside(folder, step):
  """Moves FOLDER/STEP to FOLDER/corrupt/STEP and returns the new path.

  If that exists, the name is STEP.1, STEP.2 ...
  """
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
    if path.name.isascii()
    and path.name.isdigit()
    and path.is_dir()
    and (not bucket or (path / 'commit_success.txt').exists())
  ]
  return sorted(steps, reverse=True)


def _path(folder):
  """Returns the absolute epath of a folder, which may be in a bucket."""
  text = os.fspath(folder)
  return epath.Path(text if '://' in text else os.path.abspath(paths.path(text)))


def _check_writable(folder):
  """Raises PermissionError or OSError unless files can be written in the folder."""
  probe = folder / f'.writable-{jax.process_index()}-{os.getpid()}'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe.write_bytes(b'')
    probe.unlink()
  except Exception as error:  # A bucket's client has errors of its own.
    kind = PermissionError if isinstance(error, PermissionError) else OSError
    raise kind(
      f'{folder}: checkpoints cannot be written here ({integrity.describe_error(error)})'
    ) from error


def _silence_orbax():
  """Hides the traces, hundreds of lines each, that orbax logs of errors that it also raises."""
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(_is_no_orbax_trace)


def _is_no_orbax_trace(record):
  """False for a log record with a traceback through orbax."""
  trace = traceback.walk_tb(record.exc_info[2]) if record.exc_info else ()
  return not any('/orbax/' in frame.f_code.co_filename for frame, _ in trace)
