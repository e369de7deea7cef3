"""Between the processes of a run: one program on all devices; rows, files and mishaps are each
host's own.
"""

import functools
import json
import os
import socket

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from vargrl.parallel import rules


def start(*, heartbeat, search=True):
  """Joins the processes of the run, also where there is only one: without, no preemption notice is
  heard.

  jax finds the others on TPU pods, Slurm and Open MPI
  (https://docs.jax.dev/en/latest/multi_process.html); elsewhere JAX_COORDINATOR_ADDRESS,
  JAX_NUM_PROCESSES and JAX_PROCESS_ID say who is who. heartbeat: seconds of silence after which a
  process is taken for dead and the others end too. search: False where this is the only process for
  certain, so that nobody has to be asked. Returns '', or what is not as it should be. Raises
  ValueError for half an address."""
  if jax.distributed.is_initialized():
    return ''
  try:
    for how in (given(), alone()) if search else (alone(),):
      if how.get('num_processes') == 1:  # the devices of one process need no network
        jax.config.update('jax_cpu_collectives_implementation', None)
      try:
        jax.distributed.initialize(**how, heartbeat_timeout_seconds=heartbeat)
        break
      except ValueError as e:  # nothing is given, and jax finds nobody: this is the only process
        if how or 'should be defined' not in str(e):
          raise
  except RuntimeError as e:
    if 'must be called before' not in str(e):
      raise
    return 'jax was used before vargrl was started, so that a preemption notice will not be heard'
  return ''


def given():
  """What the environment says of the processes; nothing where jax has to look for them."""
  names = {
    'coordinator_address': 'JAX_COORDINATOR_ADDRESS',
    'num_processes': 'JAX_NUM_PROCESSES',
    'process_id': 'JAX_PROCESS_ID',
  }
  found = {key: os.environ[name] for key, name in names.items() if name in os.environ}
  if not found:
    return {}
  for key, name in names.items():
    if key not in found:
      raise ValueError(
        f'environment: {name} is missing, expected beside the other two of '
        f'{", ".join(names.values())}'
      )
    if key != 'coordinator_address' and not found[key].isdigit():
      raise ValueError(f'environment: {name}={found[key]!r} found, a number expected')
  if (
    not found['coordinator_address'].rpartition(':')[2].isdigit()
    or ':' not in found['coordinator_address']
  ):
    raise ValueError(
      f'environment: {names["coordinator_address"]}={found["coordinator_address"]!r} found, '
      'HOST:PORT '
      'expected'
    )
  if int(found['process_id']) >= int(found['num_processes']):
    raise ValueError(
      f'environment: JAX_PROCESS_ID={found["process_id"]} found, less than JAX_NUM_PROCESSES='
      f'{found["num_processes"]} expected'
    )
  return {
    'coordinator_address': found['coordinator_address'],
    'num_processes': int(found['num_processes']),
    'process_id': int(found['process_id']),
    'cluster_detection_method': 'deactivate',
  }


def alone():
  """One process that listens to itself, on this machine only."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{s.getsockname()[1]}'
  return {
    'coordinator_address': address,
    'coordinator_bind_address': address,
    'num_processes': 1,
    'process_id': 0,
    'cluster_detection_method': 'deactivate',
  }


def several():
  """True if there are other processes; asks no device."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def first():
  """True on the one process that writes files and speaks."""
  return jax.process_index() == 0


def spread(mesh, count):
  """Where `count` rows lie: over the devices if they divide, else all of them on each."""
  even = count % (mesh.shape['data'] * mesh.shape['fsdp']) == 0
  return NamedSharding(mesh, PartitionSpec(rules.ROWS) if even else PartitionSpec())


def positions(mesh, count):
  """Which of a batch's `count` rows this host has to read, ascending: those that lie on its
  devices.
  """
  places = spread(mesh, count).addressable_devices_indices_map((count,)).values()
  return np.unique(np.concatenate([np.arange(count)[index] for index in places]))


def from_local(batch, mesh, count):
  """{name: numpy rows at `positions`} -> {name: global array of `count` rows}."""
  here = positions(mesh, count)

  def one(x):
    rows = lambda index: x[np.searchsorted(here, np.arange(count)[index[0]])]
    return jax.make_array_from_callback((count, *x.shape[1:]), spread(mesh, count), rows)

  return jax.tree.map(one, batch)


def whole(x):
  """A global array as numpy on every host. All hosts must ask for it."""
  if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
    x = _copied(x.sharding.mesh)(x)
  return np.asarray(x)


@functools.cache
def _copied(mesh):
  return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


def own(x):
  """(numpy rows, positions) of a global array that this host answers for: each row is one
  host's.
  """
  if not isinstance(x, jax.Array) or x.is_fully_addressable:
    return np.asarray(x), np.arange(len(x))
  parts = {(s.index[0].start or 0): s.data for s in x.addressable_shards if s.replica_id == 0}
  if not parts:
    return np.zeros((0, *x.shape[1:]), x.dtype), np.arange(0)
  rows = np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
  return rows, np.concatenate([start + np.arange(len(parts[start])) for start in sorted(parts)])


def everyone(x):
  """numpy of one shape on all hosts -> [hosts, ...] on all of them."""
  x = np.asarray(x)
  if jax.process_count() == 1:
    return x[None]
  spec = NamedSharding(_hosts(), PartitionSpec('host'))
  shape = (jax.process_count(), *x.shape)
  return whole(jax.make_array_from_callback(shape, spec, lambda index: x[None]))


@functools.cache
def _hosts():
  """Its `host` axis has one place for each process."""
  devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  return jax.sharding.Mesh(np.array(devices).reshape(jax.process_count(), -1), ('host', 'device'))


def together(values, at, count):
  """values [..., n] of the rows `at`, of each host -> [..., count] of all rows, on every host."""
  values = np.asarray(values)
  if jax.process_count() == 1:
    return values
  full = np.zeros((*values.shape[:-1], count), values.dtype)
  full[..., at] = values
  owner = everyone(np.isin(np.arange(count), at)).argmax(0)
  return np.take_along_axis(everyone(full), np.broadcast_to(owner, (1, *full.shape)), 0)[0]


def total(numbers):
  """The sum over the hosts of each number of a dictionary."""
  sums = everyone(np.array([float(x) for x in numbers.values()], np.float32)).sum(0)
  return dict(zip(numbers, sums.tolist(), strict=True))


def told(text):
  """What every host says, in order of the hosts."""
  data = np.frombuffer(text.encode(), np.uint8)
  sizes = everyone(np.array([len(data)], np.int32))[:, 0].tolist()
  if not any(sizes):
    return [''] * len(sizes)
  padded = np.zeros(max(sizes), np.uint8)
  padded[: len(data)] = data
  return [bytes(row[:size]).decode() for row, size in zip(everyone(padded), sizes)]


def agreed(call):
  """call(), once it has succeeded on every host. What goes wrong on one is raised on all, or the
  others would wait for it for ever."""
  if jax.process_count() == 1:
    return call()
  error, out = None, None
  try:
    out = call()
  except Exception as e:
    error = e
  texts = told('' if error is None else f'{type(error).__name__}: {error}')
  if error is not None:
    raise shared(error)
  for host, text in enumerate(texts):
    if text:
      raise shared(RuntimeError(f'host {host}: {text}'))
  return out


def shared(error):
  """Marks an error that all hosts raise: none has to be ended by the others."""
  error.shared = True
  return error


def same(facts):
  """ValueError unless every host has the same facts, {what: JSON}; told with where they differ."""
  each = [json.loads(text) for text in told(json.dumps(facts))]
  for host, theirs in enumerate(each):
    for what, found in theirs.items():
      expected = each[0][what]
      if found == expected:
        continue
      if isinstance(found, dict):
        key = next(k for k in sorted({*found, *expected}) if found.get(k) != expected.get(k))
        what, found, expected = f'{what} {key}', found.get(key), expected.get(key)
      raise shared(
        ValueError(
          f'{what}: {found} on host {host}, {expected} on host 0; all hosts must run the same'
        )
      )
