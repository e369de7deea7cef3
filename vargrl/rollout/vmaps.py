"""Rows come as P x R, R rows to a prompt: their keys, the mesh axes that they are spread over, the
weights as they are decoded with; and actions in chunks, where all logits at once would be too many.
"""

import functools
from functools import partial
import sys

import jax
import jax.numpy as jnp

from vargrl.models.layers.einsum import WEIGHT_NAMES, cast_weights
from vargrl.parallel import rows, rules

CHUNK = 128  # actions of each row whose logits exist at once; a multiple of 8, as a TPU's tiles are
WEIGHTS = ('gathered', 'sharded')
AXES = ('prompts', 'rollouts')  # names of the vmaps over P and R


def check_weights(weights):
  """ValueError unless `weights` is one of WEIGHTS: while rows are sampled, gathered once over the
  mesh's fsdp axis, or left sharded and gathered layer by layer, again for each scale or token,
  where a device has no room for all of them. The samples are the same."""
  if weights not in WEIGHTS:
    raise ValueError(f'rollout: weights={weights!r}, expected one of {WEIGHTS}')


def row_keys(rng, P, R):
  """keys_PR: a function of (seed, step, prompt, row) alone."""
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  return jax.vmap(lambda k: fold(k, jnp.arange(R)))(fold(rng, jnp.arange(P)))


def group_keys(rng, P):
  """key_P: what all rows of a prompt share at random, such as a window of steps or a re-mask."""
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  return fold(jax.random.fold_in(rng, 2**31 - 1), jnp.arange(P))


def any_row(alive):
  """bool: whether any row of the vmaps around is alive. One all-reduce over the mesh."""
  return jax.lax.pmax(jnp.asarray(alive, jnp.int32), AXES) > 0


def in_chunks(function, *trees, chunk):
  """function(*trees) of `chunk` actions at a time, one after the other: trees whose leaves lead
  with the actions in, a tree that leads with them out. What is made inside is made again in the
  backward pass."""
  A = len(jax.tree.leaves(trees)[0])
  size = -(-A // -(-A // chunk))
  size = size if size == A else -(-size // 8) * 8
  count = -(-A // size)

  def cut(x):
    x = jnp.asarray(x)
    # Repeated and not 0: a gradient of 0 through what divides by 0, as by a temperature, is NaN.
    x = jnp.pad(x, [(0, count * size - A)] + [(0, 0)] * (x.ndim - 1), mode='edge')
    return x.reshape(count, size, *x.shape[1:])

  one = lambda part: jax.checkpoint(function, prevent_cse=False)(*part)
  out = jax.lax.map(one, jax.tree.map(cut, trees))
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:A], out)


def spmd_axes(P, R, K=1):
  """spmd_axis_name of the vmaps over P, R and K, as keyword arguments: the mesh axes that they are
  spread over, R or else K where the P do not suffice.

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


def over_rows(function, context, per_prompt, per_row):
  """function(context(prompt part), prompt part, row part) of P x R rows, vmapped: per_prompt is a
  pytree that leads with P, per_row one that leads with P, R. What `context` makes of a prompt has
  no axis R: it is computed once for a group and stays one copy."""
  P, R = jax.tree.leaves(per_row)[0].shape[:2]
  p, r, _ = spmd_axes(P, R)

  def group(part_P, rows_R):
    shared = context(part_P)
    one = lambda row: function(shared, part_P, row)
    return jax.vmap(one, axis_name=AXES[1], **r)(rows_R)

  return jax.vmap(group, axis_name=AXES[0], **p)(per_prompt, per_row)


@functools.cache
def abstract_params(model):
  """Abstract weights that know their letters, by the `init` beside the model's class."""
  init = sys.modules[type(model).__module__].init
  return jax.eval_shape(partial(init, model), jax.eval_shape(lambda: jax.random.key(0)))


def place_for_decoding(weights, model, params, cast=None):
  """params where `weights` (see check_weights) wants them; those named in `cast` in the model's
  dtype, once and not at every token."""
  mesh = jax.sharding.get_abstract_mesh()
  stay = weights == 'sharded' or mesh.empty or rules.same_layout(mesh)
  if cast or (cast is not None and not stay):
    # The barrier: or a compiler may gather first and cast then, twice the bytes.
    params = cast_weights(params, model.c.dtype, cast or WEIGHT_NAMES)
    params = jax.lax.optimization_barrier(params)
  return params if stay else rules.shard_for_decoding(params, abstract_params(model))
