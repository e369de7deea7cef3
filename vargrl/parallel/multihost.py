"""Communication between the hosts of a run; a host is one process, with its own devices.

All hosts run the same program on all devices. Each host reads its own rows, and has its own files
and its own errors. Functions marked "collective" must be called by all hosts, or those that call
them wait for ever.
"""

import functools
import json
import os
import socket

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from vargrl.io import text as io_text
from vargrl.parallel import rows


def initialize(*, heartbeat_seconds, detect_cluster=True):
  """Initializes jax.distributed, also for a single process: otherwise jax receives no preemption
  notice.

  jax finds the other processes on TPU pods, Slurm and Open MPI
  (https://docs.jax.dev/en/latest/multi_process.html); elsewhere JAX_COORDINATOR_ADDRESS,
  JAX_NUM_PROCESSES and JAX_PROCESS_ID must be set. heartbeat_seconds: after this long without a
  sign of life a process counts as dead, and the others end too. detect_cluster: False if this is
  certainly the only process; jax then does not search. Returns a warning for the user, or ''.
  Raises ValueError if the environment variables are incomplete or malformed.
  """
  if jax.distributed.is_initialized():
    return ''
  try:
    for options in (env_options(), local_options()) if detect_cluster else (local_options(),):
      if options.get('num_processes') == 1:  # the devices of one process need no network
        jax.config.update('jax_cpu_collectives_implementation', None)
      try:
        jax.distributed.initialize(**options, heartbeat_timeout_seconds=heartbeat_seconds)
        break
      except ValueError as e:  # no variables are set and jax finds no cluster: a single process
        if options or 'should be defined' not in str(e):
          raise
  except RuntimeError as e:
    if 'must be called before' not in str(e):
      raise
    return 'jax was used before vargrl was started, so that a preemption notice will not be heard'
  return ''


def env_options():
  """The arguments of jax.distributed.initialize from the environment; {} if none is set."""
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
  address = found['coordinator_address']
  if ':' not in address or not address.rpartition(':')[2].isdigit():
    raise ValueError(
      f'environment: {names["coordinator_address"]}={address!r} found, HOST:PORT expected'
    )
  if int(found['process_id']) >= int(found['num_processes']):
    raise ValueError(
      f'environment: JAX_PROCESS_ID={found["process_id"]} found, less than JAX_NUM_PROCESSES='
      f'{found["num_processes"]} expected'
    )
  return {
    'coordinator_address': address,
    'num_processes': int(found['num_processes']),
    'process_id': int(found['process_id']),
    'cluster_detection_method': 'deactivate',
  }


def local_options():
  """The arguments of jax.distributed.initialize for a single process on this machine."""
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


def is_multihost():
  """True if the run has several hosts. Initializes no device."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first_host():
  """True on the one host that writes files and prints."""
  return jax.process_index() == 0


def local_rows(mesh, count):
  """The indices, ascending, of those of a batch's `count` rows that lie on this host's devices."""
  indices = rows.row_sharding(mesh, count).addressable_devices_indices_map((count,)).values()
  return np.unique(np.concatenate([np.arange(count)[index] for index in indices]))


def global_batch(batch, mesh, count):
  """Global arrays of `count` rows from this host's numpy arrays of the `local_rows`."""
  here, sharding = local_rows(mesh, count), rows.row_sharding(mesh, count)

  def one(x):
    part = lambda index: x[np.searchsorted(here, np.arange(count)[index[0]])]
    return jax.make_array_from_callback((count, *x.shape[1:]), sharding, part)

  return jax.tree.map(one, batch)


def to_numpy(x):
  """A global array, in full, as numpy on every host. Collective."""
  if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
    x = _replicate(x.sharding.mesh)(x)
  return np.asarray(x)


@functools.cache
def _replicate(mesh):
  return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


def owned_rows(x):
  """Returns (numpy rows, their indices) of a global array, so that each row is owned by one
  host.
  """
  if not isinstance(x, jax.Array) or x.is_fully_addressable:
    return np.asarray(x), np.arange(len(x))
  parts = {(s.index[0].start or 0): s.data for s in x.addressable_shards if s.replica_id == 0}
  if not parts:
    return np.zeros((0, *x.shape[1:]), x.dtype), np.arange(0)
  values = np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
  return values, np.concatenate([start + np.arange(len(parts[start])) for start in sorted(parts)])


def allgather(x):
  """Stacks an array of each host, all of one shape, to numpy [hosts, ...] on every host.
  Collective.
  """
  x = np.asarray(x)
  if jax.process_count() == 1:
    return x[None]
  spec = NamedSharding(_host_mesh(), PartitionSpec('host'))
  shape = (jax.process_count(), *x.shape)
  return to_numpy(jax.make_array_from_callback(shape, spec, lambda index: x[None]))


@functools.cache
def _host_mesh():
  """A mesh whose axis `host` has one position for each host."""
  devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  return jax.sharding.Mesh(np.array(devices).reshape(jax.process_count(), -1), ('host', 'device'))


def allgather_rows(values, indices, count):
  """Values [..., n] of this host's rows `indices` -> values [..., count] of all rows, on every
  host. Collective.
  """
  values = np.asarray(values)
  if jax.process_count() == 1:
    return values
  full = np.zeros((*values.shape[:-1], count), values.dtype)
  full[..., indices] = values
  owner = allgather(np.isin(np.arange(count), indices)).argmax(0)
  return np.take_along_axis(allgather(full), np.broadcast_to(owner, (1, *full.shape)), 0)[0]


def sum_over_hosts(numbers):
  """Sums each number of a dictionary over the hosts. Collective."""
  sums = allgather(np.array([float(x) for x in numbers.values()], np.float32)).sum(0)
  return dict(zip(numbers, sums.tolist(), strict=True))


def allgather_text(text):
  """The texts of all hosts, a list in the order of the hosts. Collective."""
  data = np.frombuffer(text.encode(), np.uint8)
  sizes = allgather(np.array([len(data)], np.int32))[:, 0].tolist()
  if not any(sizes):
    return [''] * len(sizes)
  padded = np.zeros(max(sizes), np.uint8)
  padded[: len(data)] = data
  return [bytes(row[:size]).decode() for row, size in zip(allgather(padded), sizes)]


def on_all_hosts(call):
  """Returns call() after it has succeeded on every host. Collective.

  An error on one host is raised on all of them; otherwise the others would wait for it for ever.
  """
  if jax.process_count() == 1:
    return call()
  error, out = None, None
  try:
    out = call()
  except Exception as e:
    error = e
  texts = allgather_text('' if error is None else f'{type(error).__name__}: {error}')
  if error is not None:
    raise mark_shared(error)
  for host, text in enumerate(texts):
    if text:
      raise mark_shared(RuntimeError(f'host {host}: {text}'))
  return out


def mark_shared(error):
  """Marks an error as raised on all hosts, so that no host has to end the others for it."""
  error.shared = True
  return error


def check_equal(facts):
  """Raises ValueError, with the first difference, unless facts are equal on all hosts.

  facts: {name: JSON value}, with the same names on all hosts. Collective.
  """
  each = [io_text.parse_json(x, 'facts', dict) for x in allgather_text(json.dumps(facts))]
  for host, theirs in enumerate(each):
    for name, found in theirs.items():
      expected = each[0][name]
      if found == expected:
        continue
      if isinstance(found, dict):
        key = next(k for k in sorted({*found, *expected}) if found.get(k) != expected.get(k))
        name, found, expected = f'{name} {key}', found.get(key), expected.get(key)
      raise mark_shared(
        ValueError(
          f'{name}: {found} on host {host}, {expected} on host 0; all hosts must run the same'
        )
      )
