"""Weights that know their letters, made where they will live."""

import functools

import flax.linen as nn
import jax

from vargrl.parallel import rules


def abstract(init, mesh):
  """key -> boxed params, as ShapeDtypeStructs with their shardings, unboxed."""
  boxed = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
  shapes = nn.unbox(boxed)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    rules.weights(boxed, mesh),
  )


def born(init, key, shapes):
  """Weights from their initializers, each array made where it will live."""
  shardings = jax.tree.map(lambda x: x.sharding, shapes)
  # jax knows a function again by identity: a reference drawn like its policy, and the next command
  # of a process, then compile nothing.
  whole = unboxed(init.func, *init.args) if isinstance(init, functools.partial) else unboxed(init)
  return jax.jit(whole, out_shardings=shardings)(key)


@functools.lru_cache(16)
def unboxed(init, *args):
  return lambda key: nn.unbox(init(*args, key))
