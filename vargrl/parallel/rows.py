"""How the rows of an evaluation are cut into calls of one shape, and spread over the mesh."""

import math

import jax
from jax.sharding import PartitionSpec
import numpy as np

from vargrl.parallel import rules


def ways():
  """How many devices the rows of a call are spread over."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in rules.ROWS)


def calls(n, batch, poll=None):
  """(row_B, counts_B) of each call: together they count every row 0 .. n - 1 once.

  All have one length, so that one program is compiled: at most `batch` rows on each device. The
  last call is filled up with the last row, which does not count again. poll() comes before each: it
  may end them all."""
  size = ways() * min(batch, -(-n // ways()))
  for start in range(0, n, size):
    if poll:
      poll()
    row_B = np.arange(start, start + size)
    yield np.minimum(row_B, n - 1), row_B < n


def spread(tree):
  """Arrays that lead with B, in a jitted function: each device computes its own rows. Without a
  mesh, or where they do not divide over it, does nothing."""
  if jax.sharding.get_abstract_mesh().empty or any(len(x) % ways() for x in jax.tree.leaves(tree)):
    return tree
  return jax.lax.with_sharding_constraint(tree, PartitionSpec(rules.ROWS))
