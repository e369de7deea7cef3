"""Schedules and AdamW, with freezing, rate multipliers and decay as [(regex, value)] over names."""

import math
import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import optax

SCHEDULES = ('constant', 'linear', 'cosine')


def make(config, params, updates):
  """(optax transformation, step -> learning rate, tree of bools: what is trained) for abstract
  `params`.

  The transformation knows the trained parameters alone: see `part`.
  config: name 'adamw', b1, b2, eps, clip (global norm; 0 is off), peak, warmup (updates), schedule,
  end (last rate / peak), scale [(regex, multiplier or None to freeze)], decay [(regex, value)]. The
  first pattern found in a parameter's name counts; every parameter must be covered.
  """
  if config.name != 'adamw':
    raise ValueError(f"optim.name: {config.name!r}, expected 'adamw'")
  if config.schedule not in SCHEDULES:
    raise ValueError(f'optim.schedule: {config.schedule!r}, expected one of {SCHEDULES}')
  for key in ('peak', 'eps', 'clip', 'end'):
    if not 0 <= config[key] < math.inf:
      raise ValueError(f'optim.{key}: {config[key]}, expected at least 0')
  for key in ('b1', 'b2'):
    if not 0 <= config[key] < 1:
      raise ValueError(f'optim.{key}: {config[key]}, expected 0 <= {key} < 1')
  if not 0 <= config.warmup < updates:
    raise ValueError(f'optim.warmup: {config.warmup} updates, expected 0 <= warmup < {updates}')
  scale = match(config.scale, params, 'optim.scale')
  decay = match(config.decay, params, 'optim.decay')
  rate = schedule(config, updates)
  trained = jax.tree.map(lambda s: s is not None, scale, is_leaf=lambda s: s is None)
  if not any(jax.tree.leaves(trained)):
    raise ValueError('optim.scale: every parameter is frozen')
  decay, _ = part(decay, trained)  # as scale is: None where nothing is trained

  def by_name(numbers):
    """updates + numbers * params, leaf by leaf; then the rate and the multiplier."""

    def update(updates, state, params):
      count = state
      new = jax.tree.map(
        lambda u, p, d, f: -rate(count) * f * (u + d * p), updates, params, decay, scale
      )
      return new, count + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)

  clip = optax.clip_by_global_norm(config.clip) if config.clip else optax.identity()
  adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
  return optax.chain(clip, adam, by_name(decay)), rate, trained


def part(params, trained):
  """(learned, still): two trees like params, with None, which is no leaf, where the other has a
  leaf.
  """
  pick = lambda which: jax.tree.map(lambda p, t: p if t == which else None, params, trained)
  return pick(True), pick(False)


def join(learned, still):
  """The tree that `part` made these of."""
  return jax.tree.map(
    lambda p, q: q if p is None else p, learned, still, is_leaf=lambda p: p is None
  )


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
