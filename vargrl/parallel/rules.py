"""One letter, one mesh axis. Only this file says `fsdp`.

Upper-case letters of the alphabet may be sharded, lower-case ones never are. Weights carry their
letters as flax's logical names; activations are constrained by the letters of their einsum.
"""

from functools import partial
import math

from flax import traverse_util
import flax.linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec

WEIGHTS = {'D': 'fsdp', 'N': 'tensor', 'K': 'tensor', 'F': 'tensor', 'V': 'tensor'}
# What is drawn scale by scale reads every weight as often: gathered once, they need not travel
# again.
DECODING = {'N': 'tensor', 'K': 'tensor', 'F': 'tensor', 'V': 'tensor'}
# B is left to the compiler: inside the vmapped rollout it is 1 or the guidance pair, and the
# batch's mesh axes belong to vmap's spmd_axis_name; outside, the input's sharding propagates.
ACTIVATIONS = {'N': 'tensor', 'K': 'tensor', 'F': 'tensor', 'V': 'tensor'}
ROWS = ('data', 'fsdp')


def spec(axes, shape, table, mesh):
  """'DNH' -> PartitionSpec('fsdp', 'tensor', None); an axis that does not divide is replicated."""

  def one(letter, size):
    if letter == 'B':
      return PartitionSpec.UNCONSTRAINED
    name = table.get(letter)
    return name if name and size % mesh.shape[name] == 0 else None

  return PartitionSpec(*(one(letter, size) for letter, size in zip(axes, shape)))


def shard(x, axes, table=ACTIVATIONS):
  """Constrains an activation by the letters of its name; without a mesh, does nothing."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, table, mesh))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(w, axes, stored):
  """A weight that lies as the letters `stored` say, where a product with letters `axes` needs it:
  FSDP, said aloud. Its gradient is scattered at once: the transpose of `shard` would sum all of it
  on every device."""
  return shard(w, axes)


gather.defvjp(
  lambda w, axes, stored: (shard(w, axes), None),
  lambda axes, stored, _, g: (shard(g, stored, WEIGHTS),),
)


def local(function, *arrays, axes, whole=()):
  """function(*arrays, *whole), each device with its own part of arrays that all have the letters
  `axes`, as has the result, and with all of `whole`.

  For what the compiler cannot cut, such as kernels: it would gather the arrays. B stays whole:
  within vmap, spmd_axis_name adds the mesh axes of the rows. Sizes of one letter may differ (N of
  queries, K of keys): the smallest decides."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return function(*arrays, *whole)
  shape = [min(sizes) for sizes in zip(*(x.shape for x in arrays))]
  here = PartitionSpec(None, *spec(axes, shape, ACTIVATIONS, mesh)[1:])
  specs = (here,) * len(arrays) + (PartitionSpec(),) * len(whole)
  return jax.shard_map(function, in_specs=specs, out_specs=here, check_vma=False)(*arrays, *whole)


def platform():
  """'tpu', 'cpu', ...: of the devices that the function being traced is for."""
  device = getattr(jax.sharding.get_abstract_mesh(), 'abstract_device', None)
  if device is None:
    return jax.default_backend()
  if hasattr(device, 'platform'):
    return device.platform
  kind = device.device_kind  # all that jax 0.7 knows
  return 'tpu' if kind.startswith('TPU') else 'cpu' if kind == 'cpu' else 'gpu'


def weights(boxed, mesh, table=WEIGHTS):
  """Boxed parameters (each knows its letters) -> the tree of their shardings."""

  def one(p):
    if not isinstance(p, nn.LogicallyPartitioned):
      return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, spec(p.names, p.value.shape, table, mesh))

  return jax.tree.map(one, boxed, is_leaf=lambda p: isinstance(p, nn.LogicallyPartitioned))


def alike(mesh):
  """True if training and decoding have the same layout on the mesh."""
  return all(mesh.shape[axis] == 1 for axis in set(WEIGHTS.values()) - set(DECODING.values()))


def decoding(params, boxed):
  """Constrains weights, in a jitted function, to the layout that they are decoded in. boxed:
  abstract ones that know their letters, of these and maybe of more."""
  mesh, known = jax.sharding.get_abstract_mesh(), traverse_util.flatten_dict(boxed)

  def one(path, x):
    axes = known[path].names if isinstance(known[path], nn.LogicallyPartitioned) else ''
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, DECODING, mesh))

  flat = traverse_util.flatten_dict(params)
  return traverse_util.unflatten_dict({path: one(path, x) for path, x in flat.items()})


def rows(mesh, prompts, rollouts=1):
  """Mesh axes of the P prompts and of the R rollouts of each, so that every device has equal rows.

  A group stays together where the prompts suffice; on a mesh with more devices than prompts, its
  rows are spread too. Raises ValueError where neither divides.
  """
  data, fsdp = (mesh.shape[a] for a in ROWS)
  if prompts % (data * fsdp) == 0:
    return ROWS, ()
  if prompts % data == 0 and rollouts % fsdp == 0:
    return ROWS[:1], ROWS[1:]
  if rollouts % (data * fsdp) == 0:
    return (), ROWS
  raise ValueError(
    f"batch: {prompts} prompts x {rollouts} rows do not divide over the mesh's "
    f'data={data} x fsdp={fsdp}'
  )


def replicated(shapes, shardings):
  """Share of the bytes that every device holds in full; 0 on a mesh of one device."""
  total, whole = 0, 0
  for x, s in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings)):
    size = math.prod(x.shape) * x.dtype.itemsize
    total += size
    whole += size * (s.is_fully_replicated and s.mesh.shape['fsdp'] * s.mesh.shape['tensor'] > 1)
  return whole / max(total, 1)


def check(shapes, shardings, *, at_most):
  """Refuses weights that are mostly replicated: a mesh axis is then paid for and not used."""
  share = replicated(shapes, shardings)
  if share > at_most:
    raise ValueError(
      f'sharding: {share:.1%} of the parameter bytes are replicated on the mesh, at '
      f"most {at_most:.0%} expected; choose a mesh that divides the model's sizes"
    )
