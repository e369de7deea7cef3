"""Weights that know their letters, made where they will live."""
import flax.linen as nn
import jax

from vargrl.parallel import rules


def abstract(init, mesh):
  """key -> boxed params, as ShapeDtypeStructs with their shardings, unboxed."""
  boxed = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
  shapes = nn.unbox(boxed)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                      shapes, rules.weights(boxed, mesh))


def born(init, key, shapes):
  """Weights from their initializers, each array made where it will live."""
  shardings = jax.tree.map(lambda x: x.sharding, shapes)
  return jax.jit(lambda key: nn.unbox(init(key)), out_shardings=shardings)(key)
