"""Kinds that the library does not have learn by its objectives, from a config to the update: by
GRPO from rewards of what is decoded, and from data.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from plan_cases import FLOW, MODEL, PARAMS, make_policy, picture, word_segment
import pytest
from toy_kinds import flow

from vargrl.objectives import grpo, sft
from vargrl.rollout.plan import Segment
from vargrl.training import flops, optim, update
from vargrl.training.stage import Stage
from vargrl.types import Rewards, Tokenizer

P, R = 4, 16
COLLECT = dict(std='group', eps=1e-4, kl_reward=0.0, reward_mix='sum', resample=0, mask={}, pool={})
COLLECT |= dict(rewards={'goal': {'weight': 1.0}}, rollouts=R, old_logp='trainer')
LOSS = dict(level='token', clip=0.2, clip_high=0.2, penalty=0.01, estimator='exact')
LOSS |= dict(scale_weight_power=0.0, first_scale=0, last_scale=-1)


def batch():
  """Prompts whose first word says the label, 0 or 1."""
  label_P = jnp.arange(P) % 2
  tokens_PS = jnp.stack([3 + label_P, jnp.full(P, 3)], 1)
  return {'tokens': tokens_PS, 'length': jnp.full(P, 2), 'label': label_P}


def decode(frozen, latents_B, prompts, keys_B):
  """A picture one pixel high: its tokens as greys, or three of its latents' channels as colours."""
  if jnp.issubdtype(latents_B.dtype, jnp.integer):
    grey_BL = latents_B / (MODEL.c.codes - 1) * 2 - 1
    return jnp.broadcast_to(grey_BL[:, None, :, None], (*grey_BL[:, None].shape, 3))
  return jnp.clip(latents_B[:, None], -1, 1)


TOKENIZER = Tokenizer(None, None, decode, None, None)


def closeness(frozen, samples, group_size):
  """1 - the distance from a dark picture for label 0, from a bright one for label 1."""
  goal_B111 = (np.asarray(samples.record['label']) - 0.5)[:, None, None, None]
  r_B = 1 - np.abs(np.asarray(samples.image_Byxc) - goal_B111).mean((1, 2, 3))
  return r_B, {'goal': r_B}, {}


SCORER = Rewards(closeness, None, None, None, lambda label_B: [str(x) for x in label_B], None)


def make_update(policy, loss, rate):
  """(State of new weights, the jitted update)."""
  tx = optax.adam(rate)
  trained = optim.Optimizer(tx, lambda step: rate, None)
  params = {'policy': PARAMS}
  state = update.State(params, tx.init(params))
  return state, jax.jit(update.make_update(loss, trained, accum=1))


def learn_from_rewards(policy, steps, rate, segments):
  """([mean reward of each step], the last Collection)."""
  frozen, options = {'old': PARAMS}, LOSS | dict(segments=segments)
  grpo.check_loss(policy, reference=True, **options)
  state, step = make_update(policy, partial(grpo.loss, policy, **options), rate)
  collect, rewards = grpo.collect(policy, TOKENIZER, SCORER, **COLLECT), []
  for i in range(steps):
    rng = jax.random.fold_in(jax.random.key(7), i)
    out = collect.run(Stage(i), state.params, frozen, batch(), rng)
    rewards.append(float(out.metrics['reward'].compute()))
    parts = update.split(out.experience, 2)
    for part in range(2):
      state, metrics = step(state, frozen, jax.tree.map(lambda x, i=part: x[i], parts))
      assert not float(metrics['skipped'].compute())
  return rewards, out


def check_rewards(policy, segments, steps, gain):
  """The mean reward rises by `gain`; what is learned from is counted."""
  rewards, out = learn_from_rewards(policy, steps, 2e-2, segments)
  print(np.round(rewards, 3))
  assert np.mean(rewards[-3:]) > np.mean(rewards[:2]) + gain
  tokens, pictures = flops.learning_counts(out.experience, policy.spans)
  span, mask = policy.spans[-1], out.experience.loss_mask
  mask = jnp.ones((P, R, span.stop)) if mask is None else mask
  mask *= out.experience.row_mask[..., None]
  assert tokens == mask.sum() and pictures == mask[..., span.start :].max(-1).sum() > 0


FLOW_SEGMENT = Segment('image', flow, FLOW)
FLOW_CLIP = (('image', dict(clip=5e-3, clip_high=5e-3)),)


@pytest.mark.parametrize(
  'name, segments, gain',
  [('codes', (('image', {}),), 0.3), ('masked', (('', {}),), 0.3), ('flow', FLOW_CLIP, 0.1)],
)
def test_rewards_are_learned(name, segments, gain):
  segment = FLOW_SEGMENT if name == 'flow' else picture(name)
  check_rewards(make_policy(segment), segments, 14, gain)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['remask', 'gaussian'])
def test_rewards_are_learned_by_other_estimators(name):
  check_rewards(make_policy(picture(name)), (('image', dict(clip=0.05)),), 30, 0.1)


@pytest.mark.slow
def test_a_text_and_a_picture_learn_together():
  text = (('text', dict(penalty=0.0)),)
  check_rewards(make_policy(word_segment('text'), FLOW_SEGMENT), text + FLOW_CLIP, 40, 0.1)


TARGETS = {
  'codes': (picture('codes'), np.arange(10) % 8),
  'remask': (picture('remask'), np.arange(10) % 8),
  'flow': (
    Segment('image', flow, dataclasses.replace(FLOW, ratio='match')),
    np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3),
  ),
}


@pytest.mark.parametrize('name', TARGETS)
def test_data_are_learned(name):
  segment, target = TARGETS[name]
  policy, frozen = make_policy(segment), {'old': PARAMS}
  encode = lambda frozen, image_Byxc: jnp.tile(target[None], (P, *[1] * target.ndim))
  options = dict(prompt_drop=0.0, condition_drop=0.0, drop_path=0.0, flip=0.0, flip_scales=0)
  collect = sft.collect(policy, Tokenizer(encode, None, None, None, None), **options)
  loss = partial(sft.loss, policy, scale_weight_power=0.0, segments=(('image', {}),))
  state, step = make_update(policy, loss, 2e-2)
  values, images = [], {'image': jnp.zeros((P, 1, 1, 3))}
  for i in range(30):
    out = collect.run(Stage(i), state.params, frozen, batch() | images, jax.random.key(i))
    state, metrics = step(state, frozen, out.experience)
    values.append(float(metrics['loss'].compute()))
  print(name, np.round(values, 2))
  assert np.mean(values[-3:]) < 0.5 * np.mean(values[:3])
