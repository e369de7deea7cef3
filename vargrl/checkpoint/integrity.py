"""Checks of orbax checkpoints: what is read back is what was saved, or the checkpoint is refused.

The item `meta` of a checkpoint records the shape, dtype and digest of every leaf and the SHA-256 of
`data` and of itself. In a run of several processes all of them call these functions.
"""

import hashlib
import json
import math
import re

import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from vargrl.checkpoint import digest
from vargrl.io import text

# Words in the errors of a storage that is away for a moment, or locked. They do not mean that the
# checkpoint is corrupt.
_TRANSIENT = ('UNAVAILABLE', 'DEADLINE_EXCEEDED', 'PERMISSION_DENIED', 'UNAUTHENTICATED')


def newest_good(folder, steps, abstract, *, item, instead=''):
  """Reads the newest checkpoint that passes its checks.

  Returns (step, tree, meta record, data, {newer step: what is wrong with it}). steps: newest first.
  abstract: the tree to read, with shardings, or a function that makes it from the set of names of a
  checkpoint's leaves. item: the item of the state to read, such as 'params'; '' for all. instead:
  see `leaf_sources`. Raises RuntimeError if no checkpoint is good.
  """
  bad = {}
  for step in steps:
    record, data, problem = read_metadata(folder / str(step), step)
    problem = _agree(problem)
    if not problem:
      tree, problem = read_state(folder / str(step), record['leaves'], abstract, item, instead)
    if not problem:
      return step, tree, record, data, bad
    bad[step] = problem
  raise RuntimeError(
    f'{folder}: none of its {len(bad)} checkpoints is good, nothing was moved'
    + ''.join(f'\n  {step}: {problem}' for step, problem in bad.items())
  )


def read_metadata(path, step):
  """Returns (meta record, data, '') of a checkpoint, or (None, None, what is wrong)."""
  found = {}
  for name in ('meta', 'data'):
    try:
      found[name] = text.parse_json((path / name / 'metadata').read_bytes(), f'{path}/{name}')
    except (OSError, ValueError) as error:
      return None, None, _describe_problem(path, f'{name}/metadata', error)
  record, data = found['meta'], found['data']
  if not isinstance(record, dict) or 'sha256' not in record:
    return None, None, 'meta/metadata: no sha256 of its own found, expected one'
  if absent := {'step', 'leaves', 'data', 'meta'} - record.keys():
    return None, None, f'meta/metadata: no {sorted(absent)[0]} found, expected one'
  own = sha256({key: value for key, value in record.items() if key != 'sha256'})
  if own != record['sha256']:
    return None, None, f'meta/metadata: sha256 {own} found, {record["sha256"]} expected'
  if sha256(data) != record['data']:
    return None, None, f'data/metadata: sha256 {sha256(data)} found, {record["data"]} expected'
  if record['step'] != step:
    return None, None, f'meta/metadata: step {record["step"]} found, {step} expected'
  return record, data, ''


def read_state(path, saved, abstract, item, instead=''):
  """Returns (tree, '') of a checkpoint, or (None, what is wrong).

  saved: {name: record of a leaf}. abstract, item, instead: see newest_good. Raises ValueError if
  abstract is another model.
  """
  abstract = abstract_of(abstract, saved)
  own, wanted = check_leaves(path, saved, abstract, item)
  sources = leaf_sources(own, saved, item, instead)
  wanted = {sources[name]: x for name, x in wanted.items()}
  try:
    arrays, problem = read_arrays(path / 'state', wanted), ''
  except Exception as error:  # The kinds that orbax and tensorstore raise are not documented.
    arrays, problem = None, _describe_problem(path, 'state', error)
  problem = _agree(problem)  # Before the digests, which all processes compute together.
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


def abstract_of(abstract, saved):
  """Returns the abstract tree of a checkpoint with the leaves `saved`, which it may depend on."""
  return abstract(set(saved)) if callable(abstract) else abstract


def leaf_sources(names, saved, item, instead):
  """Returns {name of an item's leaf: name of the leaf to read in its place}.

  That is the leaf of the same name of the item `instead`, where the checkpoint has it, such as a
  moving average of weights; '' for no such item.
  """
  other = {name: f'{instead}{name.removeprefix(item)}' for name in names}
  return {name: other[name] if instead and other[name] in saved else name for name in names}


def check_leaves(path, saved, abstract, item):
  """Returns ({name: record} of an item's leaves, {name: abstract leaf}).

  Raises ValueError, with the differences, unless names, shapes and dtypes are equal.
  """
  wanted = {
    '/'.join(filter(None, (item, name))): x for name, x in digest.named_leaves(abstract).items()
  }
  saved = {name: x for name, x in saved.items() if not item or f'{name}/'.startswith(f'{item}/')}
  lines = _differences(saved, describe_leaves(wanted))
  if lines:
    more = [f'... and {len(lines) - 10} more'] if len(lines) > 10 else []
    raise ValueError(
      f'{path}: not a checkpoint of this model, {len(lines)} leaves differ '
      '(- only in checkpoint, + only in model, ~ in both)'
      + ''.join(f'\n  {line}' for line in lines[:10] + more)
    )
  return saved, wanted


def read_arrays(path, wanted):
  """Returns {name: array} with the shardings of the abstract leaves, or else on one device."""
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
    arrays |= digest.named_leaves(
      ocp.PyTreeCheckpointHandler().restore(
        path,
        args=ocp.args.PyTreeRestore(item=nest(items), restore_args=nest(how), partial_restore=True),
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
  """Returns a line for every leaf whose presence, shape or dtype differs."""

  def line(leaf):
    return f'{tuple(leaf["shape"])} {leaf["dtype"]}'

  lines = []
  for name in sorted(saved | wanted, key=lambda x: (not x.startswith('params/'), x)):
    if name not in wanted:
      lines.append(f'- {name} {line(saved[name])}')
    elif name not in saved:
      lines.append(f'+ {name} {line(wanted[name])}')
    elif line(saved[name]) != line(wanted[name]):
      lines.append(f'~ {name} checkpoint {line(saved[name])} model {line(wanted[name])}')
  return lines


def describe_leaves(leaves, digests=None):
  """Returns {name: record} of {name: leaf}: shape, dtype and, if given, digest."""
  return {
    name: {'shape': list(x.shape), 'dtype': str(x.dtype)}
    | ({'digest': digests[name]} if digests else {})
    for name, x in leaves.items()
  }


def nest(leaves):
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


def _describe_problem(path, name, error):
  """Returns in one line what is wrong with a file.

  Raises OSError for a problem of the storage or the machine: it proves nothing about the file.
  """
  line = describe_error(error)
  if isinstance(
    _root_cause(error), (MemoryError, PermissionError, jax.errors.JaxRuntimeError)
  ) or any(word in line for word in _TRANSIENT):
    raise OSError(f'{path}/{name} cannot be read now ({line}); nothing was moved') from error
  return f'{name}: {line}'


def describe_error(error):
  """Returns the type and the message of an error in one line of at most 400 characters."""
  # Tensorstore adds half a page after its message.
  said = re.split(r'\[(?:tensorstore_spec|source locations)', str(_root_cause(error)))[0]
  said = ' '.join(said.split())
  said = said if len(said) < 400 else f'{said[:200]} ... {said[-200:]}'  # The cause is at the end.
  return f'{type(_root_cause(error)).__name__}: {said}'


def _root_cause(error):
  return (
    _root_cause(error.__cause__) if error.__cause__ else error
  )  # Orbax wraps what tensorstore says.


def to_json(value, what):
  """Returns value as it will be read back from JSON; TypeError, naming `what`, if it cannot be."""
  try:
    return text.parse_json(json.dumps(value), what)
  except (TypeError, ValueError) as error:
    raise TypeError(f'{what}: {error}, expected what JSON can hold') from error


def sha256(value):
  """Returns the SHA-256, in hex, of a JSON value."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _agree(problem):
  """Returns this process's problem, or that another has one, so that all go the same way."""
  bad = multihost_utils.process_allgather(np.array(bool(problem)))
  return problem or ('another process could not read it' if bad.any() else '')
