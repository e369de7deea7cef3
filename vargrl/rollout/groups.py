"""Rows come as P x R: their keys, the mesh axes that they are spread over, weights as they are
decoded with; and positions in chunks, where all logits at once would be too many."""

import functools
from functools import partial
import sys

import jax
import jax.numpy as jnp

from vargrl.models.layers.einsum import cast_weights
from vargrl.parallel import rows, rules

CHUNK = (
  128  # positions of each row whose logits exist at once; a multiple of 8, as a TPU's tiles are
)
WEIGHTS = ('gathered', 'sharded')


def check_weights(c):
  if c.weights not in WEIGHTS:
    raise ValueError(f'rollout: weights={c.weights!r}, expected one of {WEIGHTS}')


def keys(rng, P, R, first=0):
  """A key for each prompt and for its rows first .. first + R - 1: a function of (seed, step,
  prompt, row) alone. [P, R]."""
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  return jax.vmap(lambda k: fold(k, first + jnp.arange(R)))(fold(rng, jnp.arange(P)))


def in_chunks(function, x, *rows_L, wide=1):
  """function(x, *rows_L) of wide * CHUNK positions at a time, one after the other: x [..., L, D]
  and [L, ..] in, a tree of [L] out. What is made inside is made again in the backward pass."""
  L, chunk = len(rows_L[0]), wide * CHUNK
  size = -(-L // -(-L // chunk))
  size = size if size == L else -(-size // 8) * 8
  count = -(-L // size)

  def cut(a, axis):
    padding = [(0, 0)] * a.ndim
    padding[axis] = (0, count * size - L)
    a = jnp.pad(a, padding)
    return jnp.moveaxis(a.reshape(*a.shape[:axis], count, size, *a.shape[axis + 1 :]), axis, 0)

  parts = jax.tree.map(lambda a: cut(a, a.ndim - 2), x), *(cut(jnp.asarray(a), 0) for a in rows_L)
  out = jax.lax.map(lambda part: jax.checkpoint(function, prevent_cse=False)(*part), parts)
  return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:L], out)


def spread(P, R, K=1):
  """spmd_axis_name of the vmaps over P, R and K: the mesh axes that they are spread over, R or else
  K where the P do not suffice.

  Rows that do not divide over the mesh (a training batch is refused at start, an evaluation may be
  any size) are computed on every device.
  """
  mesh, axes = jax.sharding.get_abstract_mesh(), ((), (), ())
  for place, size in ((1, R), (2, K)):
    if mesh.empty or any(axes):
      break
    try:
      outer, inner = rows.mesh_axes(mesh, P, size)
      axes = (outer, inner, ()) if place == 1 else (outer, (), inner)
    except ValueError:
      pass
  return tuple({'spmd_axis_name': a} if a else {} for a in axes)


@functools.cache
def boxed(model):
  """Abstract weights that know their letters, by the `init` beside the model's class."""
  init = sys.modules[type(model).__module__].init
  return jax.eval_shape(partial(init, model), jax.eval_shape(lambda: jax.random.key(0)))


def laid(c, model, params, dtype=None):
  """Weights where `c.weights` wants them; with dtype, the large ones in it, as they are used."""
  mesh = jax.sharding.get_abstract_mesh()
  if c.weights == 'sharded' or mesh.empty or rules.same_layout(mesh):
    return params
  # The barrier: or a compiler may gather first and cast then, twice the bytes.
  if dtype is not None:
    params = jax.lax.optimization_barrier(cast_weights(params, dtype))
  return rules.shard_for_decoding(params, boxed(model))
