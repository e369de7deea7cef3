"""How the rows of a batch lie on the mesh, and how an evaluation is cut into batches."""

import math

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from vargrl.parallel import rules


def n_shards():
  """The number of devices that the rows of a batch are divided over; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in rules.ROW_AXES)


def batches(n, batch, poll=None):
  """Yields (row_B, counts_B) of each batch of an evaluation of n rows.

  row_B are indices of rows. counts_B is True for the rows that count: over all batches together
  each of the rows 0 .. n - 1 counts once. All batches have the same B, at most `batch` rows for
  each device, so that one program is compiled; the last batch is padded with the last row.
  poll(), if given, is called before each batch and may raise to end the evaluation.
  """
  size = n_shards() * min(batch, -(-n // n_shards()))
  for start in range(0, n, size):
    if poll:
      poll()
    row_B = np.arange(start, start + size)
    yield np.minimum(row_B, n - 1), row_B < n


def row_sharding(mesh, count):
  """The sharding of an array of `count` rows: divided over the devices if `count` is divisible by
  their number, otherwise replicated.
  """
  divisible = count % math.prod(mesh.shape[axis] for axis in rules.ROW_AXES) == 0
  return NamedSharding(mesh, PartitionSpec(rules.ROW_AXES) if divisible else PartitionSpec())


def shard_rows(tree):
  """Constrains arrays [B, ...], in a jitted function, so that each device computes its own rows.

  Returns the tree as it is where there is no mesh, or where a B is not divisible by its devices.
  """
  mesh, leaves = jax.sharding.get_abstract_mesh(), jax.tree.leaves(tree)
  if mesh.empty or any(len(x) % n_shards() for x in leaves):
    return tree
  return jax.lax.with_sharding_constraint(tree, PartitionSpec(rules.ROW_AXES))


def mesh_axes(mesh, prompts, rollouts=1):
  """Returns (mesh axes of the P prompts, mesh axes of the R rollouts of each prompt).

  Every device gets the same number of rows. The rollouts of a prompt stay on one device if there
  are enough prompts; on a mesh with more devices than prompts they are divided too. Raises
  ValueError if neither P nor P x R can be divided evenly.
  """
  data, fsdp = (mesh.shape[a] for a in rules.ROW_AXES)
  if prompts % (data * fsdp) == 0:
    return rules.ROW_AXES, ()
  if prompts % data == 0 and rollouts % fsdp == 0:
    return rules.ROW_AXES[:1], rules.ROW_AXES[1:]
  if rollouts % (data * fsdp) == 0:
    return (), rules.ROW_AXES
  raise ValueError(
    f"batch: {prompts} prompts x {rollouts} rows do not divide over the mesh's "
    f'data={data} x fsdp={fsdp}'
  )
