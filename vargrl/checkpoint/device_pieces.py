"""A sharded array built on the host: only the pieces that this host's devices hold.

A piece is the part of an array that a device holds, by its bounds ((start, stop), ...).
"""

import jax
import numpy as np


def piece_devices(x):
  """Returns (sharding, {piece: [devices of this host that hold it]}) of an abstract array.

  An abstract array without a sharding lies on the first local device.
  """
  sharding = getattr(x, 'sharding', None) or jax.sharding.SingleDeviceSharding(
    jax.local_devices()[0]
  )
  out = {}
  for device, index in sharding.addressable_devices_indices_map(tuple(x.shape)).items():
    piece = tuple(s.indices(n)[:2] for s, n in zip(index, x.shape))
    out.setdefault(piece, []).append(device)
  return sharding, out


def empty(x):
  """{piece: uninitialised numpy array} of an abstract array."""
  return {
    piece: np.empty([stop - start for start, stop in piece], x.dtype)
    for piece in piece_devices(x)[1]
  }


def fill(pieces, layer, value):
  """Writes an array, or layer `layer` of it, into the pieces that overlap it, in their dtype."""
  for piece, array in pieces.items():
    if layer is not None:
      (start, stop), *piece = piece
      if not start <= layer < stop:
        continue
      array = array[layer - start, ...]  # a view, also of a single number
    array[...] = value[tuple(slice(*bounds) for bounds in piece)]


def to_array(x, pieces):
  """The global array of an abstract array's pieces.

  Empties `pieces`: each leaves the host's memory as soon as it is on its devices.
  """
  sharding, devices_of = piece_devices(x)
  arrays = []
  for piece, devices in devices_of.items():
    array = pieces.pop(piece)
    arrays += jax.block_until_ready([jax.device_put(array, device) for device in devices])
    del array
  return jax.make_array_from_single_device_arrays(tuple(x.shape), sharding, arrays)
