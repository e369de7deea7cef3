"""Processes for the tests to start, kill and count devices in: store_child.py MODE FOLDER [...]."""

import os
import pathlib
import sys

DEVICES = {'save': 8, 'restore': 1, 'two_processes': 2, 'loop': 1}
os.environ['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={DEVICES[sys.argv[1]]}'

import jax  # noqa: E402  After the flags, which are read once.
from jax.experimental import multihost_utils  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402
import numpy as np  # noqa: E402

from vargrl.checkpoint import digest, store  # noqa: E402


def state(step, rows=64):
  rng = np.random.default_rng(step)
  return {
    'params': {
      'w': rng.normal(size=(rows, 32)).astype('float32'),
      'e': rng.normal(size=(16, rows)).astype(jnp.bfloat16),
    },
    'opt': {'count': np.int32(step), 'used': rng.integers(0, 2, (rows,)) > 0},
  }


def put_on_mesh(tree, mesh, *axes):
  """Returns tree on the mesh: each leaf split over as many of the axes as it has dimensions."""

  def one(x):
    sharding = NamedSharding(mesh, PartitionSpec(*axes[: np.ndim(x)]))
    return jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index])

  return jax.tree.map(one, tree)


def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def make_mesh(*shape):
  return Mesh(np.array(jax.devices()).reshape(shape), ('data', 'model')[: len(shape)])


def is_equal(tree, other):
  """Compares what this process can see."""
  return all(
    np.asarray(shard.data).tobytes() == np.asarray(y)[shard.index].tobytes()
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    for shard in x.addressable_shards
  )


def save(folder):
  """Saves on one layout of eight devices, restores on another; prints the digests on many."""
  checkpoints = store.Store(folder, every_steps=1, max_to_keep=3)
  checkpoints.save(7, put_on_mesh(state(7), make_mesh(4, 2), 'data', 'model'), {'next': 7}, {})
  checkpoints.close()
  tree = put_on_mesh(state(0), make_mesh(2, 4), 'model', 'data')
  step, found, data, _ = store.Store(folder, every_steps=1, max_to_keep=3).restore(abstract(tree))
  assert step == 7 and data == {'next': 7} and is_equal(found, state(7))
  assert found['params']['w'].sharding == tree['params']['w'].sharding
  print(digest.digests(jax.tree.map(jnp.asarray, state(3))))
  for shape, axes in (((8,), (None, 'data')), ((4, 2), (('data', 'model'),))):
    print(digest.digests(put_on_mesh(state(3), make_mesh(*shape), *axes)))


def restore(folder):
  """Without shardings: onto the only device."""
  wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state(7))
  step, found, _, _ = store.Store(folder, every_steps=1, max_to_keep=3).restore(wanted)
  assert jax.device_count() == 1 and step == 7 and is_equal(found, state(7))
  assert is_equal(store.load(folder, wanted['params'])[1], state(7)['params'])


def two_processes(folder, port, index):
  """One of two processes with two devices each: saves, then falls back from a corrupt step."""
  jax.distributed.initialize(f'localhost:{port}', 2, int(index))
  tree = put_on_mesh(state(1), make_mesh(2, 2), 'data', 'model')
  checkpoints = store.Store(folder, every_steps=1, max_to_keep=3)
  for step in (1, 2):
    checkpoints.save(
      step, put_on_mesh(state(step), make_mesh(2, 2), 'data', 'model'), {'next': step}, {}
    )
  checkpoints.wait()
  step, found, _, _ = checkpoints.restore(abstract(tree))
  assert step == 2 and is_equal(found, state(2))
  if index == '0':
    pathlib.Path(folder, '2/meta/metadata').write_text('{}')
  multihost_utils.sync_global_devices('harmed')
  step, found, data, _ = checkpoints.restore(abstract(tree))
  assert step == 1 and data == {'next': 1} and is_equal(found, state(1))
  assert checkpoints.save(
    2, put_on_mesh(state(2), make_mesh(2, 2), 'data', 'model'), {'next': 2}, {}
  )
  checkpoints.close()
  print(digest.digests(put_on_mesh(state(3), make_mesh(2, 2), 'data', 'model')))


def loop(folder):
  """Trains for ever: resumes, saves every step without waiting, and says what it does."""
  checkpoints = store.Store(folder, every_steps=1, max_to_keep=3)
  tree = jax.tree.map(jnp.asarray, state(0, 4096))
  found = checkpoints.restore(abstract(tree))
  first = found[0] + 1 if found else 1
  print(
    'resumed', first - 1, found is None or is_equal(found[1], state(first - 1, 4096)), flush=True
  )
  for step in range(first, first + 1000):
    tree = jax.tree.map(jnp.asarray, state(step, 4096))
    checkpoints.save(step, tree, {'next': step}, {})
    print('saving', step, checkpoints.latest(), flush=True)


if __name__ == '__main__':
  globals()[sys.argv[1]](*sys.argv[2:])
