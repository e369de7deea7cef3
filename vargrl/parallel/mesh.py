"""The device mesh of a run, from one line of its config."""

import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, PartitionSpec
import numpy as np

AXES = ('data', 'fsdp', 'tensor')


def make(axes, devices=None):
  """[('data', 1), ('fsdp', -1), ('tensor', 1)] -> Mesh; one size may be -1, it takes what is left.

  Several TPU slices lie along `data`, which alone sends over the data centre's network; within a
  slice, neighbours on an axis are neighbours in its torus."""
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
    needs = f'a multiple of {known}' if -1 in sizes else str(known)
    raise ValueError(f'mesh: {dict(zip(names, sizes))} needs {needs} devices, found {len(devices)}')
  sizes = [len(devices) // known if size == -1 else size for size in sizes]
  # Auto, said aloud: newer versions of jax.make_mesh default to Explicit, which refuses our
  # constraints.
  return Mesh(placed(devices, sizes), names, axis_types=(AxisType.Auto,) * len(names))


def current():
  """The mesh that is set, with its devices; an empty one if none is. (jax 0.7.2 has no
  jax.sharding.get_mesh.)
  """
  if jax.sharding.get_abstract_mesh().empty:
    return Mesh(np.empty((), object), ())
  return jax.jit(lambda: 0.0, out_shardings=PartitionSpec())().sharding.mesh


def placed(devices, sizes):
  """The devices as an array of these sizes, (data, fsdp, tensor)."""
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
