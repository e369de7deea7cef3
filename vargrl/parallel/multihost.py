"""Between the rows of this host and the arrays of all hosts."""
import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from vargrl.parallel import rules


def host():
  """(index, count) of this process."""
  return jax.process_index(), jax.process_count()


def first():
  """True on the one process that writes files."""
  return jax.process_index() == 0


def from_local(batch, mesh):
  """{name: numpy rows of this host} -> {name: global array, rows spread over the mesh}."""
  def one(x):
    count = x.shape[0] * jax.process_count()
    spread = count % (mesh.shape['data'] * mesh.shape['fsdp']) == 0
    spec = PartitionSpec(rules.ROWS) if spread else PartitionSpec()
    return jax.make_array_from_process_local_data(NamedSharding(mesh, spec), x,
                                                  (count, *x.shape[1:]))
  if jax.process_count() == 1:
    return jax.tree.map(one, batch)
  # Rows that cannot be spread are needed in full on every host.
  spread = {k: len(v) * jax.process_count() % (mesh.shape['data'] * mesh.shape['fsdp']) == 0
            for k, v in batch.items()}
  return {k: one(v) if spread[k] else jax.device_put(
      multihost_utils.process_allgather(v, tiled=True), NamedSharding(mesh, PartitionSpec()))
      for k, v in batch.items()}
