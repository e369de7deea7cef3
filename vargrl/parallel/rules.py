"""Sharding rules: which letter of an array's name is divided over which mesh axis.

Only this file says `fsdp`. Upper-case letters of the alphabet may be sharded, lower-case ones never
are. Weights have their letters as flax's logical axis names; activations are constrained by the
letters of their einsum.
"""

from functools import partial
import math

from flax import traverse_util
import flax.linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec

WEIGHTS = {'D': 'fsdp', 'N': 'tensor', 'K': 'tensor', 'F': 'tensor', 'V': 'tensor'}
# Sampling reads every weight once for each scale or token: weights that are gathered once before it
# need not be gathered again.
DECODING = {'N': 'tensor', 'K': 'tensor', 'F': 'tensor', 'V': 'tensor'}
# B is left to the compiler: inside the vmapped rollout it is 1 or the guidance pair, and the
# batch's mesh axes belong to vmap's spmd_axis_name; outside, the input's sharding propagates.
ACTIVATIONS = {'N': 'tensor', 'K': 'tensor', 'F': 'tensor', 'V': 'tensor'}
ROW_AXES = ('data', 'fsdp')  # the mesh axes that the rows of a batch are divided over


def spec(axes, shape, table, mesh):
  """The PartitionSpec of an array: 'DNH' -> PartitionSpec('fsdp', 'tensor', None).

  An axis whose size is not divisible by that of its mesh axis is replicated; B is unconstrained.
  """

  def one(letter, size):
    if letter == 'B':
      return PartitionSpec.UNCONSTRAINED
    name = table.get(letter)
    return name if name and size % mesh.shape[name] == 0 else None

  return PartitionSpec(*(one(letter, size) for letter, size in zip(axes, shape)))


def shard(x, axes, table=ACTIVATIONS):
  """Constrains the sharding of an activation by its letters; without a mesh, returns x."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, table, mesh))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(w, axes, stored):
  """Gathers a weight over fsdp where a product uses it.

  axes: the letters of the weight in the product. stored: those by which it is stored. The gradient
  is reduce-scattered at once; the transpose of `shard` would all-reduce it to every device.
  """
  return shard(w, axes)


gather.defvjp(
  lambda w, axes, stored: (shard(w, axes), None),
  lambda axes, stored, _, g: (shard(g, stored, WEIGHTS),),
)


def shard_map(function, *arrays, axes, replicated=()):
  """Returns function(*arrays, *replicated), computed by each device on its own part of the arrays.

  All arrays, and the result, have the letters `axes`; each device gets all of `replicated`. This is
  for what the compiler cannot partition, such as kernels, and would gather. B is not divided: in a
  vmap, spmd_axis_name adds the mesh axes of the rows. The arrays may have different sizes of one
  letter (N of queries, K of keys): the smallest decides. Without a mesh, a plain call.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return function(*arrays, *replicated)
  shape = [min(sizes) for sizes in zip(*(x.shape for x in arrays))]
  part = PartitionSpec(None, *spec(axes, shape, ACTIVATIONS, mesh)[1:])
  specs = (part,) * len(arrays) + (PartitionSpec(),) * len(replicated)
  mapped = jax.shard_map(function, in_specs=specs, out_specs=part, check_vma=False)
  return mapped(*arrays, *replicated)


def platform():
  """'tpu', 'cpu', 'gpu': of the devices that the function being traced is compiled for."""
  device = getattr(jax.sharding.get_abstract_mesh(), 'abstract_device', None)
  if device is None:
    return jax.default_backend()
  if hasattr(device, 'platform'):
    return device.platform
  kind = device.device_kind  # jax 0.7 has no more than this
  return 'tpu' if kind.startswith('TPU') else 'cpu' if kind == 'cpu' else 'gpu'


def weight_shardings(boxed, mesh, table=WEIGHTS):
  """The tree of shardings of boxed parameters, which have their letters as logical axis names.

  A parameter without letters is replicated.
  """

  def one(p):
    if not isinstance(p, nn.LogicallyPartitioned):
      return NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, spec(p.names, p.value.shape, table, mesh))

  return jax.tree.map(one, boxed, is_leaf=lambda p: isinstance(p, nn.LogicallyPartitioned))


def same_layout(mesh):
  """True if weights have the same shardings on the mesh in training and in decoding."""
  return all(mesh.shape[axis] == 1 for axis in set(WEIGHTS.values()) - set(DECODING.values()))


def shard_for_decoding(params, boxed):
  """Constrains parameters, in a jitted function, to the shardings that decoding uses.

  boxed: abstract parameters with their letters, of at least all of `params`.
  """
  mesh, letters = jax.sharding.get_abstract_mesh(), traverse_util.flatten_dict(boxed)

  def one(path, x):
    p = letters[path]
    axes = p.names if isinstance(p, nn.LogicallyPartitioned) else ''
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, DECODING, mesh))

  flat = traverse_util.flatten_dict(params)
  return traverse_util.unflatten_dict({path: one(path, x) for path, x in flat.items()})


def replicated_share(shapes, shardings):
  """The share, in [0, 1], of the parameter bytes that every device holds in full.

  0 on a mesh whose axes fsdp and tensor have size 1, where nothing could be divided.
  """
  total, replicated = 0, 0
  for x, s in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings)):
    size = math.prod(x.shape) * x.dtype.itemsize
    total += size
    divides = s.mesh.shape['fsdp'] * s.mesh.shape['tensor'] > 1
    replicated += size * (s.is_fully_replicated and divides)
  return replicated / max(total, 1)


def check_replicated(shapes, shardings, *, max_share):
  """Raises ValueError if more than `max_share` of the parameter bytes are replicated.

  A mesh axis is then paid for and not used.
  """
  share = replicated_share(shapes, shardings)
  if share > max_share:
    raise ValueError(
      f'sharding: {share:.1%} of the parameter bytes are replicated on the mesh, at '
      f"most {max_share:.0%} expected; choose a mesh that divides the model's sizes"
    )
