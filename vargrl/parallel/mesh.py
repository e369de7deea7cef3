"""The device mesh of a run, made from one line of its config."""

import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, PartitionSpec
import numpy as np

AXES = ('data', 'fsdp', 'tensor')


def make(axes, devices=None):
  """The Mesh of [('data', 1), ('fsdp', -1), ('tensor', 1)]; a size of -1 takes what is left.

  devices: default all. Several TPU slices lie along `data`, the only axis that communicates over
  the data centre's network; within a slice, neighbours on an axis are neighbours in its torus.
  Raises ValueError for axes other than AXES, or if the sizes do not multiply to the number of
  devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  try:
    names, sizes = [name for name, _ in axes], [int(size) for _, size in axes]
  except (TypeError, ValueError) as e:
    raise ValueError(f'mesh: {axes!r} in config, expected (name, size) for each of {AXES}') from e
  if tuple(names) != AXES:
    raise ValueError(f'mesh: axes {tuple(names)} in config, expected {AXES}')
  if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
    raise ValueError(f'mesh: sizes {sizes} in config, expected positive numbers and at most one -1')
  fixed = math.prod(size for size in sizes if size > 0)
  if len(devices) % fixed or (-1 not in sizes and fixed != len(devices)):
    needs = f'a multiple of {fixed}' if -1 in sizes else str(fixed)
    raise ValueError(f'mesh: {dict(zip(names, sizes))} needs {needs} devices, found {len(devices)}')
  sizes = [len(devices) // fixed if size == -1 else size for size in sizes]
  # Newer versions of jax default to Explicit axes, which reject our sharding constraints.
  return Mesh(device_array(devices, sizes), names, axis_types=(AxisType.Auto,) * len(names))


def current():
  """The mesh that is set, with its devices; an empty one if none is set.

  (jax 0.7.2 has no jax.sharding.get_mesh.)
  """
  if jax.sharding.get_abstract_mesh().empty:
    return Mesh(np.empty((), object), ())
  return jax.jit(lambda: 0.0, out_shardings=PartitionSpec())().sharding.mesh


def device_array(devices, sizes):
  """The devices as a numpy array of shape `sizes`, (data, fsdp, tensor)."""
  if devices[0].platform != 'tpu':
    return np.array(devices).reshape(sizes)
  slices = len({getattr(d, 'slice_index', 0) for d in devices})
  if sizes[0] % slices:
    raise ValueError(
      f'mesh: data={sizes[0]} in config, expected a multiple of the {slices} slices that the '
      'devices are in'
    )
  inside = (sizes[0] // slices, *sizes[1:])
  if slices == 1:
    return mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
  return mesh_utils.create_hybrid_device_mesh(
    inside, (slices, 1, 1), devices, allow_split_physical_axes=True
  )
