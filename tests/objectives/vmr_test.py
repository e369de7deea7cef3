from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from vargrl.objectives import reduce, vmr
from vargrl.training import optim, update
from vargrl.types import Models, State

COLLECT = dict(rollouts=4, split=1, continuations=3, eta=0.5, prefix_steps=3, suffix_steps=1)
COLLECT |= dict(old='trainer', std='none', eps=0.0, kl_reward=0.0, combine='sum', mask={})
COLLECT |= dict(rewards=None, pool=None)
LOSS = dict(level='token', clip=0.2, clip_high=0.3, kl=0.0, estimator='exact', alpha=0.7)
LOSS |= dict(first=0, last=1)
LABEL = np.array([0, 2])


def reward(t_BL):
  return t_BL[:, 0] * 0.5 + t_BL[:, 1:].mean(-1)


def models(lost=(), **changes):
  """The toy policy; the rewards of its tokens, but for the rows that are lost."""

  def score(frozen, image_Byxc, label_B):
    r_B = reward(np.asarray(image_Byxc[:, :, 0, 0], np.float32))
    r_B[list(lost)] = np.nan
    return r_B, {'sum': r_B}, {}

  parts = dict(
    init=None,
    config=None,
    scales=toys.SCALES,
    logprobs=toys.logprobs,
    branch=toys.branch,
    keys=toys.keys,
    score=score,
    decode=lambda frozen, t_BL: t_BL[:, :, None, None],
  )
  return Models(**parts | changes)


def collected(step, lost=(), **changes):
  run = vmr.collect(models(lost), **COLLECT | changes)
  return run(toys.params(), {}, {'label': LABEL}, jax.random.key(0), step)


def drawn(G, K):
  """The rows that a step of this key draws, [P, G, K, L]."""
  keys = toys.keys(jax.random.key(0), 2, G)
  out = jax.jit(partial(toys.branch, split=1, K=K))(
    toys.params()['policy'], {}, jnp.asarray(LABEL), keys
  )
  return np.asarray(out.tokens)


def test_three_steps_in_four_train_prefixes_and_the_fourth_suffixes():
  said = [collected(step).metrics['vmr/prefix'] for step in range(6)]
  assert said == [1, 1, 1, 0, 1, 1]
  assert collected(3, suffix_steps=0).metrics['vmr/prefix'] == 1
  assert collected(0, prefix_steps=0).metrics['vmr/prefix'] == 0


def test_a_prefix_is_worth_the_soft_value_of_its_continuations():
  batch, metrics, _ = collected(0)
  t_PGKL = drawn(4, 3)
  np.testing.assert_array_equal(batch.tokens, t_PGKL[:, :, 0, :1])  # the first scale, once
  assert batch.mask is None and batch.old.shape == (2, 4, 1)
  r_PGK = reward(t_PGKL.reshape(24, -1)).reshape(2, 4, 3)
  value_PG = 0.5 * np.log(np.mean(np.exp(r_PGK / 0.5), -1))
  np.testing.assert_allclose(batch.advantage, value_PG - value_PG.mean(1, keepdims=True), atol=1e-5)
  np.testing.assert_array_equal(batch.weight, 1)
  assert toys.mean(metrics['reward']) == pytest.approx(r_PGK.mean(), rel=1e-5)
  assert toys.mean(metrics['value']) == pytest.approx(value_PG.mean(), rel=1e-5)


def test_a_suffix_is_judged_against_others_of_the_same_prefix():
  batch, metrics, _ = collected(3)
  t_PRL = drawn(1, 4)[:, 0]
  np.testing.assert_array_equal(batch.tokens, t_PRL)
  assert all(len(np.unique(t_PRL[p, :, :1], axis=0)) == 1 for p in range(2))
  np.testing.assert_array_equal(batch.mask, np.broadcast_to([0.0, 1, 1, 1, 1], (2, 4, 5)))
  np.testing.assert_array_equal(batch.held, batch.mask)  # the prefix is neither pushed nor held
  r_PR = reward(t_PRL.reshape(8, -1)).reshape(2, 4)
  np.testing.assert_allclose(batch.advantage, r_PR - r_PR.mean(1, keepdims=True), atol=1e-5)
  assert 'value' not in metrics


def test_the_value_is_of_the_continuations_with_a_verdict():
  # Of the first prefix one of three is lost, of the second all; rows are [P, G, K].
  batch, metrics, _ = collected(0, lost=(1, 3, 4, 5))
  r_PGK = reward(drawn(4, 3).reshape(24, -1)).reshape(2, 4, 3)
  r_PGK[0, 0, 1], r_PGK[0, 1] = np.nan, np.nan
  np.testing.assert_array_equal(batch.weight, [[1, 0, 1, 1], [1, 1, 1, 1]])
  value_PG = reduce.soft_value(jnp.asarray(r_PGK), eta=0.5)
  expected, _, _ = reduce.advantages(value_PG, std='none', eps=0.0)
  np.testing.assert_allclose(batch.advantage, expected, atol=1e-5)
  assert np.isfinite(batch.advantage).all() and batch.advantage[0, 1] == 0
  assert float(metrics['reward'].count) == 20 and float(metrics['value'].count) == 7


def test_a_spatial_mask_is_of_all_continuations_and_of_the_suffix():
  def bright(image_Byxc, label_B):  # one pixel, which the row itself decides
    row_B = jnp.arange(len(image_Byxc))
    return jnp.zeros((len(row_B), 4, 4), bool).at[row_B, 0, 3 * (row_B % 2)].set(True)

  run = vmr.collect(models(mask=bright), **COLLECT | dict(split=1, mask=dict(name='bright')))
  batch, _, _ = run(toys.params(), {}, {'label': LABEL}, jax.random.key(0), 3)
  left, right = [0.0, 1, 0, 0, 0], [0.0, 0, 1, 0, 0]
  np.testing.assert_array_equal(batch.mask, [[left, right] * 2] * 2)
  batch, metrics, _ = run(toys.params(), {}, {'label': LABEL}, jax.random.key(0), 0)
  np.testing.assert_array_equal(batch.mask, np.ones((2, 4, 1)))
  assert toys.mean(metrics['mask_share']) == 1


def test_vmr_raises_the_reward():
  """Both kinds of step, on the toy: each with its own update, of its own length."""
  run = vmr.collect(models(), **COLLECT | dict(rollouts=16, continuations=2, eta=1.0))
  tx = optax.adam(0.1)
  step_update = jax.jit(
    update.make_update(partial(vmr.loss, toys.MODELS, **LOSS), optim.Optimizer(tx, None, None), 1)
  )
  state, rewards, names = State(toys.params(), tx.init(toys.params())), [], {}
  for step in range(40):
    batch, metrics, _ = run(state.params, {}, {'label': LABEL}, jax.random.key(step), step)
    state, facts = step_update(state, {}, batch)
    rewards.append(toys.mean(metrics['reward']))
    names[step % 4] = {k for k, v in facts.items() if v.count}
  assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 1, rewards
  assert 'entropy/scale_0' in names[0] and 'entropy/scale_1' not in names[0]
  assert 'entropy/scale_1' in names[3] and 'entropy/scale_0' not in names[3]
  assert {'loss', 'ratio', 'entropy', 'clip_ratio/low_mean'} <= names[0] & names[3]
  table = np.asarray(state.params['policy']['table'])
  moved = abs(table - np.asarray(toys.params()['policy']['table'])).max((0, 2))
  assert (moved > 0.5).all()  # coarse tokens and fine ones


def test_settings_that_mean_nothing_are_refused():
  check = lambda **changes: vmr.check(
    models(), **COLLECT | dict(updates=1, reference=False) | changes
  )
  check_loss = lambda **changes: vmr.check_loss(models(), **LOSS | dict(reference=False) | changes)
  check()
  check_loss()
  for changes, words in (
    (dict(split=0), 'split: 0 of 2 scales, expected 1 to 1'),
    (dict(split=2), 'split: 2'),
    (dict(continuations=0), 'continuations: 0'),
    (dict(eta=0.0), 'eta: 0.0'),
    (dict(prefix_steps=0, suffix_steps=0), 'prefix_steps=0, suffix_steps=0'),
    (dict(prefix_steps=-1), 'prefix_steps=-1'),
    (dict(rollouts=1), 'rollouts: 1'),
    (dict(old='now', updates=2), 'old'),
  ):
    with pytest.raises(ValueError, match=words):
      check(**changes)
  for changes, words in (
    (dict(first=1), 'first=1'),
    (dict(last=0), 'last=0'),
    (dict(clip=0.5), 'clip'),
  ):
    with pytest.raises(ValueError, match=words):
      check_loss(**changes)
