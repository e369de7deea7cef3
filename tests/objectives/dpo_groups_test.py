"""Preferences of groups: the best against the worst row of each prompt."""

import jax.numpy as jnp
import numpy as np
import pytest
import toys
from toys import fake_run

from vargrl.objectives import dpo, dpo_groups
from vargrl.types import Rewards, Rollout, Scores, Tokenizer

nan = float('nan')
LOSS = dict(kind='sigmoid', beta=1.0, smoothing=0.0, scale_weight_power=0.0)
LOSS |= dict(segments=(('.*', {}),))


def policy(r_PR):
  """Row r of prompt p has the one token 10 p + r, and as its log-probability the weight x times
  that."""
  P, R = np.shape(r_PR)
  tokens = jnp.asarray([[[10 * p + r] for r in range(R)] for p in range(P)])

  def generate(policy, frozen, prompt_P, key_P, keys_PR):
    zero = jnp.zeros(tokens.shape)
    return Rollout({'image': {'tokens': tokens}}, zero, zero, jnp.ones_like(zero))

  def score(policy, frozen, prompt_P, data_PR, reference=None):
    assert reference is None
    return Scores(policy['x'] * data_PR['image']['tokens'].astype(jnp.float32), None, None)

  return fake_run.policy(
    spans=toys.spans(('image', (1,))),
    prompt=lambda batch: jnp.asarray(batch['label']),
    generate=generate,
    latents=toys.latents,
    score=score,
    reference=toys.reference,
  )


def scorer(r_PR):
  r_B = np.asarray(r_PR, np.float32).reshape(-1)
  captions = lambda labels: [f'class {label}' for label in labels]
  score = lambda frozen, samples, group_size: (r_B, {'only': r_B}, {'reward/masked': 2})
  return fake_run.record(Rewards, score=score, captions=captions)


def decode(frozen, tokens, prompts, keys_B):
  return jnp.zeros((len(tokens), 1, 1, 3))


def test_the_best_row_is_chosen_and_equals_have_no_weight():
  r_PR = [[0.1, 0.9, 0.5], [0.2, 0.2, 0.2], [nan, 0.3, 0.1], [nan, nan, nan]]
  p, tokenizer = policy(r_PR), fake_run.record(Tokenizer, decode=decode)
  collect = dpo_groups.collect(p, tokenizer, scorer(r_PR), rollouts=3, rewards={}, pool={})
  params = {'policy': {'x': 1.0}}
  out = toys.run(collect, {'label': np.arange(4)}, params, {'reference': {'x': 2.0}})
  batch, metrics = out.experience, out.metrics
  tokens = np.asarray(batch.data['image']['tokens'])
  np.testing.assert_array_equal(tokens[[0, 2], :, 0], [[1, 0], [21, 22]])
  np.testing.assert_array_equal(batch.row_mask, [[1, 1], [0, 0], [1, 1], [0, 0]])
  np.testing.assert_array_equal(batch.ref_logp, 2 * tokens)
  np.testing.assert_array_equal(batch.loss_mask, np.ones((4, 2, 1)))
  assert toys.mean(metrics['pairs']) == 0.5 and metrics['reward/masked'] == 2
  assert toys.mean(metrics['pairs/gap']) == pytest.approx(0.5)
  assert toys.mean(metrics['reward']) == pytest.approx(np.nanmean(r_PR), rel=1e-6)
  assert out.images()['best'][1][0] == 'class 0\n0.9'
  # Of the two pairs that count, at the reference: log 2, whatever the others say.
  value, metrics = dpo.loss(p, {'policy': {'x': 2.0}}, {}, batch, **LOSS)
  assert value.count == 2 and toys.mean(value) == pytest.approx(np.log(2))


def test_a_group_of_one_is_refused():
  with pytest.raises(ValueError, match='rollouts: 1 per prompt'):
    dpo_groups.check(policy([[1.0]]), rollouts=1, rewards={}, pool={}, updates=1, reference=True)
