"""Digests of arrays, computed on the devices that hold them.

Orbax does not notice a flipped bit in a checkpoint; these do.
"""

import functools
import hashlib
import json

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np


def named_leaves(tree) -> dict[str, jax.Array]:
  """Returns {'params/blocks/q/w': leaf}, in the order of the tree.

  Raises ValueError if two leaves have the same name.
  """
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  names = {}
  for path, leaf in leaves:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if name in names:
      raise ValueError(f'{name}: the name of two leaves, every leaf must have its own')
    names[name] = leaf
  return names


def digests(tree) -> dict[str, str]:
  """Returns {leaf name: 16 hex digits}, the same on every mesh, sharding and number of processes.

  The arithmetic is exact (integers modulo 2**32), so that neither the order of summation nor the
  sharding matters. A change of one element always changes the digest; any other change is missed
  with probability 2**-64. Shape and dtype are not part of it. Positions count modulo 2**32: in a
  leaf of more elements, a swap of two that are exactly 2**32 apart would be missed.
  """
  leaves = named_leaves(tree)
  # By leaf, not one program for the tree (which took 10 s to compile for 300 leaves on CPU): leaves
  # of one shape, such as parameters and both moments, share a compilation. All are under way before
  # the first is waited for.
  sums = jax.device_get({name: _compiled(_replicated(x))(x) for name, x in leaves.items()})
  return {name: f'{a:08x}{b:08x}' for name, (a, b) in sums.items()}


def digest(tree) -> str:
  """Returns 16 hex digits of the whole tree: its names, and the digests of its leaves."""
  text = json.dumps(digests(tree), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _replicated(x):
  """Returns the sharding of a sum that every process of the run can read."""
  sharding = getattr(x, 'sharding', None)
  if isinstance(sharding, jax.sharding.NamedSharding):
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
  return None


@functools.cache
def _compiled(out):
  return jax.jit(_sums, out_shardings=out)


def _sums(x):
  """Returns two sums of mixed words, uint32[2]; both mixes are bijections and all weights odd."""
  words = _words(x)
  position, stride = jnp.zeros(words.shape, jnp.uint32), 1
  for axis in reversed(range(words.ndim)):  # Not arange and reshape: by axis it stays sharded.
    position += lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride % 2**32)
    stride *= words.shape[axis]
  odd = position * np.uint32(2) + np.uint32(1)
  # Mixed, not only weighted: 2**31 * (odd + odd) = 0, two flipped signs would cancel out.
  first = _mix(words + position * np.uint32(0x9E3779B1))
  second = _mix(first ^ np.uint32(0x85EBCA77))
  # One reduction of both: two jnp.sum keep two copies of the leaf in memory and take 6x longer.
  zero = np.uint32(0)
  return jnp.stack(
    lax.reduce(
      (first * odd, second * odd),
      (zero, zero),
      lambda a, b: (a[0] + b[0], a[1] + b[1]),
      tuple(range(words.ndim)),
    )
  )


def _mix(words):
  """The finaliser of MurmurHash3, https://github.com/aappleby/smhasher: a bijection of uint32."""
  words = (words ^ (words >> 16)) * np.uint32(0x85EBCA6B)
  words = (words ^ (words >> 13)) * np.uint32(0xC2B2AE35)
  return words ^ (words >> 16)


def _words(x):
  """Returns the bits of x as uint32, in x's shape; wider elements gain an axis of words."""
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    x = jnp.stack([x.real, x.imag], -1)
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  info = jnp.finfo if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo
  bits = info(x.dtype).bits
  if bits == 64:
    return lax.bitcast_convert_type(x, jnp.uint32)
  return lax.bitcast_convert_type(x, jnp.dtype(f'uint{bits}')).astype(jnp.uint32)
