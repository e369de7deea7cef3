"""The weights and pictures that tests/golden/inception.npz was computed with (NumPy only).

Gains keep the second moment through relu (He), so that features are of order one at the end of 40
layers."""

import math
import zlib

import fill
import numpy as np


def weights(name, shape):
  """float32 array of the checkpoint key `name`."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  noise = rng.standard_normal(shape, np.float32)
  if name.endswith('running_var'):
    return np.exp(0.3 * noise)
  if name.endswith('bn.weight'):
    return 1 + 0.1 * noise
  if name == 'fc.weight':
    return noise * np.float32(2 / math.sqrt(shape[1]))
  if len(shape) > 1:
    return noise * np.float32(math.sqrt(2 / math.prod(shape[1:])))
  return np.float32(0.1) * noise


def pictures(count=2, size=256):
  """uint8 [count, size, size, 3]."""
  x = np.stack([fill.image(seed, size) for seed in range(count)])
  return np.rint((x.transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)


def features(seed, count, width, shift):
  """float32 [count, width]: correlated normals, for the statistics."""
  rng = np.random.default_rng(seed)
  mix = rng.standard_normal((width, width)) / math.sqrt(width)
  return (rng.standard_normal((count, width)) @ mix + shift).astype(np.float32)
