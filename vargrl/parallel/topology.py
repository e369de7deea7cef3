"""TPU topologies by name, for programs that are compiled on a machine without a TPU.

'v5e:4x4' is a slice of 4 x 4 chips of TPU v5e; '2*v5e:4x4' is two such slices, joined by the data
centre's network.
"""

import math
import os
import re

from jax.experimental import topologies

from vargrl.io import text

# What a program may use of the memory of one device, in GiB, as libtpu's compiler says. A device is
# a chip; of tpu7x it is half a chip, whose two cores are two devices.
# https://cloud.google.com/tpu/docs/system-architecture-tpu-vm
MEMORY_GIB = {'v4': 30.75, 'v5e': 15.75, 'v5p': 95.74, 'v6e': 31.25, 'tpu7x': 94.75}
NAME_PATTERN = re.compile(r'(?:([1-9]\d*)\*)?([a-z0-9]+):([1-9]\d*(?:x[1-9]\d*)+)')


def parse(name):
  """'2*v5e:4x4' -> (2, 'v5e', (4, 4)): slices, kind, chips along each axis of a slice.

  Raises ValueError for anything else than the name of a topology.
  """
  match = NAME_PATTERN.fullmatch(name)
  if not match or match[2] not in MEMORY_GIB:
    raise ValueError(
      f'topology: {name!r} found, KIND:AxB or AxBxC expected, KIND one of {sorted(MEMORY_GIB)}, '
      'such as v5e:4x4, v5p:2x2x2 or 2*v5e:4x4'
    )
  grid = tuple(int(n) for n in match[3].split('x'))
  flat = match[2] in ('v5e', 'v6e')
  if len(grid) != (2 if flat else 3):
    expected = 'AxB' if flat else 'AxBxC'
    raise ValueError(f'topology: {name!r} found, {expected} expected of {match[2]}')
  return int(match[1] or 1), match[2], grid


def devices(name):
  """The devices of a topology, ordered by slice; programs can be compiled for them, not run."""
  slices, kind, grid = parse(name)
  options = {'num_slices': slices} if slices > 1 else {}
  if kind == 'v4':
    options['chip_config_name'] = 'megacore'  # a chip is one device, as on a real v4
  if grid == (1, 1):
    options['chips_per_host_bounds'] = (1, 1, 1)
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # there is no metadata server to ask
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  # No chip is used that another process might hold.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  os.environ['TPU_ACCELERATOR_TYPE'] = f'{kind}-{math.prod(grid)}'
  try:
    found = topologies.get_topology_desc(
      platform='tpu', topology_name=f'{kind}:{"x".join(map(str, grid))}', **options
    )
  except RuntimeError as e:
    if 'not installed' in str(e) or 'libtpu.so' in str(e):
      raise ValueError("compile: libtpu is not installed, expected pip install -e '.[tpu]'") from e
    raise ValueError(
      f'topology: {name!r} is not known to libtpu: {text.split_lines(str(e))[0][:200]}'
    ) from e
  return sorted(found.devices, key=lambda d: (getattr(d, 'slice_index', 0), d.id))


def memory_bytes(name):
  """Bytes of memory that a program may use on one device."""
  return int(MEMORY_GIB[parse(name)[1]] * 2**30)
