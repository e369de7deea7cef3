"""The device mesh of a run, from one line of its config."""
import math

import jax
from jax.sharding import AxisType, Mesh
import numpy as np

AXES = ('data', 'fsdp', 'tensor')


def make(axes, devices=None):
  """[('data', 1), ('fsdp', -1), ('tensor', 1)] -> Mesh; one size may be -1, it takes what is left."""
  devices = list(jax.devices() if devices is None else devices)
  try:
    names, sizes = [name for name, _ in axes], [int(size) for _, size in axes]
  except (TypeError, ValueError) as e:
    raise ValueError(f'mesh: {axes!r} in config, expected (name, size) for each of {AXES}') from e
  if tuple(names) != AXES:
    raise ValueError(f'mesh: axes {tuple(names)} in config, expected {AXES}')
  if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
    raise ValueError(f'mesh: sizes {sizes} in config, expected positive numbers and at most one -1')
  known = math.prod(size for size in sizes if size > 0)
  if len(devices) % known or (-1 not in sizes and known != len(devices)):
    raise ValueError(f'mesh: {dict(zip(names, sizes))} needs {known} devices or a multiple where a '
                     f'size is -1, found {len(devices)}')
  sizes = [len(devices) // known if size == -1 else size for size in sizes]
  # Auto, said aloud: newer versions of jax.make_mesh default to Explicit, which refuses our constraints.
  return Mesh(np.array(devices).reshape(sizes), names, axis_types=(AxisType.Auto,) * len(names))
