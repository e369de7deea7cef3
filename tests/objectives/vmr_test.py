"""VMR on the toy: what prefixes and suffixes are worth, and what of each is trained."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys
from toys import fake_run

from vargrl.objectives import reduce, vmr
from vargrl.training import optim, update
from vargrl.types import State

COLLECT = dict(rollouts=4, split=1, continuations=3, eta=0.5, prefix_steps=3, suffix_steps=1)
COLLECT |= dict(old_logp='trainer', std='none', eps=0.0, kl_reward=0.0, reward_mix='sum')
COLLECT |= dict(resample=0, mask={}, rewards=None, pool=None)
LOSS = dict(level='token', clip=0.2, clip_high=0.3, penalty=0.0, estimator='exact')
LOSS |= dict(scale_weight_power=0.7, first_scale=0, last_scale=-1, segments=(('.*', {}),))
LABEL = np.array([0, 2])


def reward(t_BL):
  return t_BL[:, 0] * 0.5 + t_BL[:, 1:].mean(-1)


def collected(step, lost=(), pixels=None, **changes):
  """The Collection of a step; rows that are lost have no verdict. pixels: what they are about."""

  def score(t_BL):
    r_B = reward(t_BL.astype(np.float32))
    r_B[list(lost)] = np.nan
    return r_B

  run = vmr.collect(toys.POLICY, toys.TOKENIZER, toys.scorer(score, pixels), **COLLECT | changes)
  return toys.run(run, {'label': LABEL}, toys.params(), step=step)


def drawn(G, K, rng=0):
  """The tokens that a step of this key draws, [P, G, K, L]."""
  key = rng if isinstance(rng, jax.Array) else jax.random.key(rng)
  _, keys = toys.POLICY.keys(key, 2, G)
  draw = jax.jit(partial(toys.branch, split=1, copies=K))
  out = draw(toys.params()['policy'], {}, jnp.asarray(LABEL), keys)
  return np.asarray(out.data['image']['tokens'])


def pair(collection):
  return collection.experience, collection.metrics


def test_three_steps_in_four_train_prefixes_and_the_fourth_suffixes():
  said = [collected(step).metrics['vmr/prefix'] for step in range(6)]
  assert said == [1, 1, 1, 0, 1, 1]
  assert collected(3, suffix_steps=0).metrics['vmr/prefix'] == 1
  assert collected(0, prefix_steps=0).metrics['vmr/prefix'] == 0


def test_a_prefix_is_worth_the_soft_value_of_its_continuations():
  batch, metrics = pair(collected(0))
  t_PGKL = drawn(4, 3)
  tokens = batch.data['image']['tokens']
  np.testing.assert_array_equal(tokens, t_PGKL[:, :, 0, :1])  # the first scale, once
  assert batch.loss_mask is None and batch.kl_mask is None and batch.old_logp.shape == (2, 4, 1)
  r_PGK = reward(t_PGKL.reshape(24, -1)).reshape(2, 4, 3)
  value_PG = 0.5 * np.log(np.mean(np.exp(r_PGK / 0.5), -1))
  np.testing.assert_allclose(batch.advantage, value_PG - value_PG.mean(1, keepdims=True), atol=1e-5)
  np.testing.assert_array_equal(batch.row_mask, 1)
  assert toys.mean(metrics['reward']) == pytest.approx(r_PGK.mean(), rel=1e-5)
  assert toys.mean(metrics['value']) == pytest.approx(value_PG.mean(), rel=1e-5)


def test_a_suffix_is_judged_against_others_of_the_same_prefix():
  batch, metrics = pair(collected(3))
  t_PRL = drawn(1, 4)[:, 0]
  np.testing.assert_array_equal(batch.data['image']['tokens'], t_PRL)
  assert all(len(np.unique(t_PRL[p, :, :1], axis=0)) == 1 for p in range(2))
  np.testing.assert_array_equal(batch.loss_mask, np.broadcast_to([0.0, 1, 1, 1, 1], (2, 4, 5)))
  np.testing.assert_array_equal(
    batch.kl_mask, batch.loss_mask
  )  # the prefix is neither pushed nor held
  r_PR = reward(t_PRL.reshape(8, -1)).reshape(2, 4)
  np.testing.assert_allclose(batch.advantage, r_PR - r_PR.mean(1, keepdims=True), atol=1e-5)
  assert 'value' not in metrics


def test_the_value_is_of_the_continuations_with_a_verdict():
  # Of the first prefix one of three is lost, of the second all; rows are [P, G, K].
  batch, metrics = pair(collected(0, lost=(1, 3, 4, 5)))
  r_PGK = reward(drawn(4, 3).reshape(24, -1)).reshape(2, 4, 3)
  r_PGK[0, 0, 1], r_PGK[0, 1] = np.nan, np.nan
  np.testing.assert_array_equal(batch.row_mask, [[1, 0, 1, 1], [1, 1, 1, 1]])
  value_PG = reduce.soft_value(jnp.asarray(r_PGK), eta=0.5)
  expected, _, _ = reduce.advantages(value_PG, std='none', eps=0.0)
  np.testing.assert_allclose(batch.advantage, expected, atol=1e-5)
  assert np.isfinite(batch.advantage).all() and batch.advantage[0, 1] == 0
  assert float(metrics['reward'].count) == 20 and float(metrics['value'].count) == 7


def test_a_spatial_mask_is_of_all_continuations_and_of_the_suffix():
  def bright(image_Byxc, label_B):  # one pixel, which the row itself decides
    row_B = jnp.arange(len(image_Byxc))
    return jnp.zeros((len(row_B), 4, 4), bool).at[row_B, 0, 3 * (row_B % 2)].set(True)

  options = dict(mask=dict(name='bright'))
  batch, metrics = pair(collected(3, pixels=bright, **options))
  left, right = [0.0, 1, 0, 0, 0], [0.0, 0, 1, 0, 0]
  np.testing.assert_array_equal(batch.loss_mask, [[left, right] * 2] * 2)
  suffix = np.broadcast_to([0.0, 1, 1, 1, 1], (2, 4, 5))
  np.testing.assert_array_equal(batch.kl_mask, suffix)
  assert toys.mean(metrics['mask_share']) == pytest.approx(1 / 4)
  batch, metrics = pair(collected(0, pixels=bright, **options))
  np.testing.assert_array_equal(batch.loss_mask, np.ones((2, 4, 1)))
  assert toys.mean(metrics['mask_share']) == 1


def test_prefixes_without_a_difference_are_drawn_again():
  """All continuations of a group with them; rewards here are the first token, which its rows may
  share."""
  first = toys.scorer(lambda t_BL: t_BL[:, 0].astype(np.float32))
  options = COLLECT | dict(rollouts=2, resample=1)
  run = vmr.collect(toys.POLICY, toys.TOKENIZER, first, **options)
  seen = set()
  for seed in range(6):
    out = toys.run(run, {'label': LABEL}, toys.params(), rng=seed)
    key = jax.random.key(seed)
    found, fresh = drawn(2, 3, key), drawn(2, 3, jax.random.fold_in(key, 2**30))
    flat_P = found[:, 0, 0, 0] == found[:, 1, 0, 0]
    expected = np.where(flat_P[:, None, None, None], fresh, found)
    np.testing.assert_array_equal(out.experience.data['image']['tokens'], expected[:, :, 0, :1])
    assert out.metrics['resampled'] == flat_P.mean()
    images = out.images()['best'][0][:, :, 0, 0]
    assert set(map(tuple, images)) <= set(map(tuple, expected.reshape(12, -1)))
    seen.add(int(flat_P.sum()))
  assert len(seen) > 1


def test_vmr_raises_the_reward():
  """Both kinds of step, on the toy: each with its own update, of its own length."""
  options = COLLECT | dict(rollouts=16, continuations=2, eta=1.0)
  run = vmr.collect(toys.POLICY, toys.TOKENIZER, toys.scorer(reward), **options)
  tx = optax.adam(0.1)
  step_update = jax.jit(
    update.make_update(partial(vmr.loss, toys.SCORED, **LOSS), optim.Optimizer(tx, None, None), 1)
  )
  state, rewards, names = State(toys.params(), tx.init(toys.params())), [], {}
  for step in range(40):
    out = toys.run(run, {'label': LABEL}, state.params, step=step, rng=step)
    state, facts = step_update(state, {}, out.experience)
    rewards.append(toys.mean(out.metrics['reward']))
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
    toys.POLICY, **COLLECT | dict(updates=1, reference=False) | changes
  )
  check_loss = lambda **changes: vmr.check_loss(
    toys.POLICY, **LOSS | dict(reference=False) | changes
  )
  check()
  check_loss()
  for changes, words in (
    (dict(split=0), 'split: 0 of 2 scales, expected 1 to 1'),
    (dict(split=2), 'split: 2'),
    (dict(continuations=0), 'continuations: 0'),
    (dict(eta=0.0), 'eta: 0.0'),
    (dict(prefix_steps=0, suffix_steps=0), 'prefix_steps and suffix_steps are 0'),
    (dict(prefix_steps=-1), 'prefix_steps: -1 found'),
    (dict(rollouts=1), 'rollouts: 1'),
    (dict(old_logp='current', updates=2), 'old_logp'),
  ):
    with pytest.raises(ValueError, match=words):
      check(**changes)
  for changes, words in (
    (dict(first_scale=1), 'first_scale=1, last_scale=-1; expected 0 and -1'),
    (dict(last_scale=0), 'last_scale=0'),
    (dict(clip=0.5), 'clip'),
  ):
    with pytest.raises(ValueError, match=words):
      check_loss(**changes)


def test_a_policy_of_more_than_one_picture_is_refused():
  several = fake_run.policy(spans=toys.spans(('text', 2), ('image', toys.SCALES)))
  with pytest.raises(ValueError) as e:
    vmr.check(several, **COLLECT, updates=1, reference=False)
  sentence = "objective: vmr needs a policy of one picture by scales, found ['text', 'image']"
  assert str(e.value) == sentence
