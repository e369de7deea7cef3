"""TPU topologies by name, for programs that are compiled where there is no TPU.

'v5e:4x4' is a slice of 4 x 4 chips of TPU v5e, '2*v5e:4x4' two of them, joined by the data centre's
network."""

import math
import os
import re

from jax.experimental import topologies

# What a program may use of the memory of one device, in GiB, as libtpu's compiler says. A device is
# a chip, but half a chip of tpu7x, whose two cores are two devices.
# https://cloud.google.com/tpu/docs/system-architecture-tpu-vm
MEMORY = {'v4': 30.75, 'v5e': 15.75, 'v5p': 95.74, 'v6e': 31.25, 'tpu7x': 94.75}
NAME = re.compile(r'(?:([1-9]\d*)\*)?([a-z0-9]+):([1-9]\d*(?:x[1-9]\d*)+)')


def parse(name):
  """'2*v5e:4x4' -> (2, 'v5e', (4, 4)); ValueError for what is no topology."""
  match = NAME.fullmatch(name)
  if not match or match[2] not in MEMORY:
    raise ValueError(
      f'topology: {name!r} found, KIND:AxB or AxBxC expected, KIND one of {sorted(MEMORY)}, '
      'such as '
      'v5e:4x4, v5p:2x2x2 or 2*v5e:4x4'
    )
  grid = tuple(int(n) for n in match[3].split('x'))
  if len(grid) != (2 if match[2] in ('v5e', 'v6e') else 3):
    raise ValueError(
      f'topology: {name!r} found, {"AxB" if match[2] in ("v5e", "v6e") else "AxBxC"} expected of '
      f'{match[2]}'
    )
  return int(match[1] or 1), match[2], grid


def devices(name):
  """The devices of a topology, which can be compiled for and not run on. Slices lead."""
  slices, kind, grid = parse(name)
  options = {'num_slices': slices} if slices > 1 else {}
  if kind == 'v4':
    options['chip_config_name'] = 'megacore'  # a chip is one device, as on a real v4
  if grid == (1, 1):
    options['chips_per_host_bounds'] = (1, 1, 1)
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # there is no metadata server to ask
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault(
    'ALLOW_MULTIPLE_LIBTPU_LOAD', '1'
  )  # no chip is used that another process might have
  os.environ['TPU_ACCELERATOR_TYPE'] = f'{kind}-{math.prod(grid)}'
  try:
    found = topologies.get_topology_desc(
      platform='tpu', topology_name=f'{kind}:{"x".join(map(str, grid))}', **options
    )
  except RuntimeError as e:
    if 'not installed' in str(e) or 'libtpu.so' in str(e):
      raise ValueError("compile: libtpu is not installed, expected pip install -e '.[tpu]'") from e
    raise ValueError(
      f'topology: {name!r} is not known to libtpu: {str(e).splitlines()[0][:200]}'
    ) from e
  return sorted(found.devices, key=lambda d: (getattr(d, 'slice_index', 0), d.id))


def memory(name):
  """Bytes of memory of one device."""
  return int(MEMORY[parse(name)[1]] * 2**30)
