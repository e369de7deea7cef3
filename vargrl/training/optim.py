"""AdamW and its schedules, with freezing, rate multipliers, decay and clipping as [(regex, value)]
over the names of parameters; and the exponential moving average of the weights.
"""

import math
import re
from typing import Any, Callable, NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
import optax

from vargrl.io import numbers

KEYS = ('name', 'b1', 'b2', 'eps', 'clip', 'ema', 'peak', 'warmup', 'schedule', 'end', 'scale')
KEYS += ('decay',)
SCHEDULES = ('constant', 'linear', 'cosine')


class Optimizer(NamedTuple):
  """What a config's `optim` section stands for.

  tx: the optax transformation of the trained parameters alone, see `partition`. rate: update ->
  learning rate. trained: tree of bools like the parameters. ema: decay of the moving average of the
  policy's weights, in an update; 0: there is none. clip_groups: the group of each trained parameter
  that is clipped by a norm of its group, a tree of ints, None for the others; None where there are
  no groups."""

  tx: optax.GradientTransformation
  rate: Callable
  trained: Any
  ema: float = 0.0
  clip_groups: Any = None


def make(config, params, updates):
  """The Optimizer of a config for abstract `params`, in a run of so many updates.

  config: name 'adamw', b1, b2, eps, clip, peak, warmup (updates), schedule, end (last rate / peak),
  scale [(regex, multiplier or None to freeze)], decay [(regex, value)], ema (decay in an update, 0
  for no moving average). The first pattern found in a parameter's name counts; every parameter must
  be covered, and every pattern must decide one. clip: the largest norm of the gradient of all that
  is trained, or [(regex, largest norm)]: the parameters of each pattern are clipped by their joint
  norm. None or 0 is off. ValueError for what does not fit."""
  check(config, updates)
  scale = match(config.scale, params, 'optim.scale')
  decay = match(config.decay, params, 'optim.decay')
  rate = schedule(config, updates)
  trained = jax.tree.map(lambda s: s is not None, scale, is_leaf=lambda s: s is None)
  if not any(jax.tree.leaves(trained)):
    raise ValueError('optim.scale: every parameter is frozen')
  decay, _ = partition(decay, trained)  # as scale is: None where nothing is trained

  def decay_and_scale(decay):
    """updates + decay * params, leaf by leaf; then the rate and the multiplier."""

    def update(updates, state, params):
      count = state
      new = jax.tree.map(
        lambda u, p, d, f: -rate(count) * f * (u + d * p), updates, params, decay, scale
      )
      return new, count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)

  adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
  groups = None
  if is_table(config.clip):
    index = [(pattern, i) for i, (pattern, _) in enumerate(config.clip)]
    groups, _ = partition(match(index, params, 'optim.clip'), trained)
    clip = clip_by_group_norm([norm for _, norm in config.clip], groups)
  else:
    clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
  tx = optax.chain(clip, adam, decay_and_scale(decay))
  return Optimizer(tx, rate, trained, config.ema, groups)


def check(config, updates):
  """ValueError for a number of the `optim` section that is out of its range."""
  if config.name != 'adamw':
    raise ValueError(f"optim.name: {config.name!r}, expected 'adamw'")
  if config.schedule not in SCHEDULES:
    raise ValueError(f'optim.schedule: {config.schedule!r}, expected one of {SCHEDULES}')
  for key in ('peak', 'eps', 'end'):
    numbers.check_number(f'optim.{key}', config[key], least=0)
  for norm in [x for _, x in config.clip] if is_table(config.clip) else [config.clip]:
    if norm is not None:
      numbers.check_number('optim.clip', norm, least=0)
  for key in ('b1', 'b2', 'ema'):
    numbers.check_number(f'optim.{key}', config[key], least=0, below=1)
  numbers.check_number('optim.warmup', config.warmup, least=0, below=updates)


def is_table(clip):
  """True if gradients are clipped by pattern, not all together."""
  return isinstance(clip, (tuple, list))


def clip_by_group_norm(limits, groups):
  """The optax transformation that clips the gradients of group i to the joint norm limits[i], None
  or 0 for no limit. groups: the group of each parameter, a tree of ints."""

  def update(grads, state, params=None):
    leaves, structure = jax.tree.flatten(grads)
    index = jax.tree.leaves(groups)
    for i, limit in enumerate(limits):
      places = [n for n, group in enumerate(index) if group == i]
      if not limit or not places:
        continue
      clip = optax.clip_by_global_norm(limit)
      clipped, _ = clip.update([leaves[n] for n in places], clip.init(None))
      for n, leaf in zip(places, clipped, strict=True):
        leaves[n] = leaf
    return jax.tree.unflatten(structure, leaves), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def group_norms(grads, groups):
  """{group: norm of its gradients}, of the groups that have any. groups: as of an Optimizer."""
  leaves = {}
  for group, grad in zip(jax.tree.leaves(groups), jax.tree.leaves(grads), strict=True):
    leaves.setdefault(group, []).append(grad)
  return {group: optax.tree.norm(leaves[group]) for group in sorted(leaves)}


def partition(params, trained):
  """(trained parameters, frozen parameters): two trees like params, each with None, which is no
  leaf, where the other has a leaf. trained: tree of bools."""
  pick = lambda which: jax.tree.map(lambda p, t: p if t == which else None, params, trained)
  return pick(True), pick(False)


def merge(trained_params, frozen_params):
  """The tree that `partition` made these of."""
  return jax.tree.map(
    lambda p, q: q if p is None else p,
    trained_params,
    frozen_params,
    is_leaf=lambda p: p is None,
  )


def ema_start(params, trained):
  """{'policy': float32 copies of its trained parameters}, where a moving average starts. Takes
  arrays of `params` or what is known of them."""
  policy, _ = partition(params['policy'], trained['policy'])
  return {'policy': jax.tree.map(lambda p: jnp.copy(p).astype(jnp.float32), policy)}


def ema_params(state):
  """The weights of a State to evaluate: its parameters, the policy's trained ones in their moving
  average, if there is one. Nothing is copied."""
  if state.ema is None:
    return state.params
  return state.params | {'policy': merge(state.ema['policy'], state.params['policy'])}


def match(patterns, params, what):
  """{name: value} of the first pattern found in each name, as a tree like params."""
  flat = traverse_util.flatten_dict(params, sep='/')
  out, used = {}, set()
  for name in flat:
    hits = [(p, v) for p, v in patterns if re.search(p, name)]
    if not hits:
      raise ValueError(f'{what}: no pattern covers the parameter {name!r}')
    out[name] = hits[0][1]
    used.add(hits[0][0])
  idle = [p for p, _ in patterns if p not in used]
  if idle:
    raise ValueError(f'{what}: the pattern {idle[0]!r} decides no parameter')
  return traverse_util.unflatten_dict(out, sep='/')


def schedule(config, updates):
  """Linear warm-up to `peak`, then constant, or linear or cosine to end * peak at the last
  update.
  """

  def rate(count):
    count = jnp.asarray(count, jnp.float32)
    warm = jnp.minimum((count + 1) / max(config.warmup, 1), 1.0) if config.warmup else 1.0
    share = jnp.clip((count - config.warmup) / max(updates - 1 - config.warmup, 1), 0.0, 1.0)
    fall = {
      'constant': 1.0,
      'linear': 1 - (1 - config.end) * share,
      'cosine': config.end + (1 - config.end) * (1 + jnp.cos(math.pi * share)) / 2,
    }
    return config.peak * warm * fall[config.schedule]

  return rate
