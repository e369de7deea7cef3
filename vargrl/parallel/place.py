"""Parameters with their shardings: abstract ones, and new ones made on their devices."""

import functools

import flax.linen as nn
import jax

from vargrl.parallel import rules


def abstract_params(init, mesh):
  """The parameters of `init` as ShapeDtypeStructs with their shardings on the mesh.

  init: key -> boxed parameters, each of which has the letters of its axes. The result is unboxed.
  """
  boxed = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
  shapes = nn.unbox(boxed)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    rules.weight_shardings(boxed, mesh),
  )


def init_sharded(init, key, shapes):
  """Initializes parameters in one jitted call; each array is made on the devices that hold it.

  init: key -> boxed parameters. shapes: what `abstract_params` returns for it.
  """
  shardings = jax.tree.map(lambda x: x.sharding, shapes)
  # jax caches compilations by the identity of the function: with an equal one, a reference that is
  # initialized like its policy, and the next command in the process, compile nothing.
  partial = isinstance(init, functools.partial)
  unboxed = _unboxed_init(init.func, *init.args) if partial else _unboxed_init(init)
  return jax.jit(unboxed, out_shardings=shardings)(key)


@functools.lru_cache(16)
def _unboxed_init(init, *args):
  return lambda key: nn.unbox(init(*args, key))
