"""The clipped surrogate of GRPO and VMR with its penalty: the loss by hand, and its gradient."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from vargrl.objectives import surrogate, terms
from vargrl.types import Experience

LOSS = dict(level='token', clip=0.2, clip_high=0.3, penalty=0.0, estimator='exact')
LOSS |= dict(scale_weight_power=0.0, first_scale=0, last_scale=-1, segments=(('.*', {}),))


def gradient(params, batch, frozen=None, **changes):
  def value(params):
    average = surrogate.loss(toys.SCORED, params, frozen or {}, batch, **LOSS | changes)[0]
    return average.total / average.count

  return jax.jit(jax.grad(value))(params)['policy']['table']


# Ratios [[0.5, 1, 1.5], [0.5, 1, 1.5]], advantages 1 and -1, a third of the weight on each token.
# Gains [-0.5, 0, 0.3] and [0.2, 0, -0.5] (see reduce_test), those of a ratio of 1 taken off; 0.1
# times the KL [0.3, 0.6, 0.9] and [0, 0, 0.3] is added. Row 0: 0.2 / 3 + 0.1 * 0.6 = 0.126667. Row
# 1: 0.3 / 3 + 0.1 * 0.1 = 0.11.
RATIO = np.array([[0.5, 1, 1.5], [0.5, 1, 1.5]])
KL = jnp.array([[[0.3, 0.6, 0.9], [0, 0, 0.3]]])


def by_hand(row_mask=(1, 1), loss_mask=None, kl_mask=None, at=None, **changes):
  policy = toys.fixed([0, 0, 0], [0, 0, 0], at=at, penalty=KL, ref_logp=jnp.zeros((1, 2, 3)))
  old_logp = jnp.asarray(-np.log(RATIO), jnp.float32)[None]
  advantage, row_mask = jnp.array([[1.0, -1]]), jnp.array([row_mask], jnp.float32)
  batch = Experience(old_logp=old_logp, advantage=advantage, row_mask=row_mask)
  batch = batch.replace(loss_mask=loss_mask, kl_mask=kl_mask)
  options, frozen = LOSS | dict(penalty=0.1) | changes, {'reference': object()}
  value, metrics = surrogate.loss(policy, {'policy': None}, frozen, batch, **options)
  return toys.mean(value), {k: toys.mean(v) for k, v in metrics.items() if v.count}


def test_the_loss_by_hand():
  value, metrics = by_hand()
  assert value == pytest.approx((0.126667 + 0.11) / 2, abs=1e-6)
  expected = {
    'loss': value,
    'ratio': 1.0,
    'entropy': 0.0,
    'ratio/abs_log': (math.log(2) + math.log(1.5)) / 3,
    'clip_ratio/low_mean': 1 / 6,
    'clip_ratio/high_mean': 1 / 6,
    'kl': (1.8 + 0.3) / 2,
    'kl/scale_0': 0.15,
    'kl/scale_2': 0.6,
    'ratio_dev/scale_0': 0.5,
    'ratio_dev/scale_1': 0.0,
    'ratio_dev/scale_2': 0.5,
    'clip/scale_0': 0.5,  # the second row's, below
    'clip/scale_1': 0.0,
    'clip/scale_2': 0.5,  # the first row's, above
  }
  assert {k: metrics[k] for k in expected} == pytest.approx(expected, abs=1e-6)


def test_a_row_without_a_verdict_is_not_in_the_loss():
  value, metrics = by_hand(row_mask=(1, 0))
  assert value == pytest.approx(0.126667, abs=1e-6)
  assert metrics['kl'] == pytest.approx(1.8)
  assert metrics['clip_ratio/low_mean'] == 0
  assert metrics['clip_ratio/high_mean'] == pytest.approx(1 / 3)


def test_scales_that_are_left_out_are_not_in_the_loss():
  # Tokens 0 and 1, half each. Row 0: 0.5 / 2 + 0.1 * 0.45 = 0.295. Row 1: -0.2 / 2 = -0.1.
  value, metrics = by_hand(last_scale=1)
  assert value == pytest.approx((0.295 - 0.1) / 2, abs=1e-6)
  assert metrics['ratio'] == pytest.approx(0.75)
  assert metrics['clip_ratio/low_mean'] == pytest.approx(1 / 4)
  assert metrics['clip_ratio/high_mean'] == 0


def test_the_ratio_of_a_sequence_is_the_geometric_mean():
  # (0.5 * 1 * 1.5)^(1/3) = 0.908560 in both rows, not clipped: the gains cancel, the KL is left.
  value, metrics = by_hand(level='sequence')
  assert value == pytest.approx((0.06 + 0.01) / 2, abs=1e-6)
  assert metrics['ratio'] == pytest.approx(0.75 ** (1 / 3), rel=1e-5)


def test_a_mask_says_which_tokens_are_pushed_and_all_are_held():
  # Two of three tokens, half the weight each; the KL's weights are a third each as before.
  # Row 0: (0.5 - 0.3) / 2 + 0.1 * 0.6 = 0.16. Row 1: 0.5 / 2 + 0.1 * 0.1 = 0.26.
  mask = jnp.array([[[1.0, 0, 1], [0, 1, 1]]])
  value, metrics = by_hand(loss_mask=mask)
  assert value == pytest.approx((0.16 + 0.26) / 2, abs=1e-6)
  expected = {
    'ratio': (0.5 + 1.5 + 1 + 1.5) / 4,
    'clip_ratio/low_mean': 0,
    'clip_ratio/high_mean': 1 / 4,
    'kl': (1.2 + 0.3) / 2,
    'kl/image': (1.8 + 0.3) / 2,
    'kl/scale_0': 0.3,
    'kl/scale_1': 0.0,
    'clip/scale_0': 0.0,
    'clip/scale_2': 0.5,
  }
  assert {k: metrics[k] for k in expected} == pytest.approx(expected, abs=1e-6)
  # A mean ratio is one over the mask: (0.5 * 1.5)^(1/2) and (1 * 1.5)^(1/2), the first not clipped.
  _, metrics = by_hand(loss_mask=mask, level='sequence')
  assert metrics['ratio'] == pytest.approx((0.75**0.5 + 1.5**0.5) / 2, rel=1e-5)
  # A scale that no row has in its mask has no metrics.
  _, metrics = by_hand(loss_mask=jnp.array([[[1.0, 0, 1], [1, 0, 1]]]))
  assert 'kl/scale_0' in metrics and not [k for k in metrics if k.endswith('scale_1')]


def test_what_is_not_held_has_no_kl():
  """The last token alone is held, with all of the weight: 0.1 times 0.9 and 0.3 in the place of 0.6
  and 0.1.
  """
  value, _ = by_hand(kl_mask=jnp.array([[[0.0, 0, 1]]]).repeat(2, 1))
  assert value == pytest.approx((0.2 / 3 + 0.09 + 0.3 / 3 + 0.03) / 2, abs=1e-6)


TWO = toys.spans(('text', 1), ('image', (1, 1)))


def test_two_segments_have_their_own_clip_penalty_estimator_and_level():
  """Text: ratio 0.5, unclipped, gains -0.5 and 0.5; weight 2; penalty 0.4 of k2, of d = 0: nothing.
  Picture: mean ratio 1.5^(1/2) = 1.224745, clipped to 1.1 and not; 0.1 of the KL's means 0.75,
  0.15."""
  table = (
    ('text', dict(weight=2.0, clip=0.6, clip_high=0.6, penalty=0.4, estimator='k2')),
    ('image', dict(clip=0.1, clip_high=0.1, level='sequence')),
  )
  value, metrics = by_hand(at=TWO, segments=table)
  rows = [2 * 0.5 - 0.1 + 0.075, 2 * -0.5 + 0.224745 + 0.015]
  assert value == pytest.approx(sum(rows) / 2, abs=1e-6)
  expected = {'ratio_dev/text': 0.5, 'ratio_dev/scale_0': 0.224745, 'ratio_dev/scale_1': 0.224745}
  expected |= {'clip/text': 0.0, 'clip/scale_0': 0.5, 'kl/text': 0.15, 'kl/scale_1': 0.6}
  assert {k: metrics[k] for k in expected} == pytest.approx(expected, abs=1e-6)


def test_a_segment_is_held_by_its_own_estimator_alone():
  """k2 of the text, d = 0.5 and -1: 0.125 and 0.5; of the picture the KL, half a weight each."""
  policy = toys.fixed(
    [0, 0, 0], [0, 0, 0], at=TWO, penalty=KL, ref_logp=jnp.array([[[-0.5, 9, 9], [1, 9, 9]]])
  )
  batch = Experience(advantage=jnp.zeros((1, 2)), row_mask=jnp.ones((1, 2)))
  table = (('text', dict(estimator='k2', penalty=0.2)), ('image', dict(penalty=0.1)))
  frozen, options = {'reference': object()}, LOSS | dict(segments=table)
  value, _ = surrogate.loss(policy, {'policy': None}, frozen, batch, **options)
  rows = [0.2 * 0.125 + 0.1 * 0.75, 0.2 * 0.5 + 0.1 * 0.15]
  assert toys.mean(value) == pytest.approx(sum(rows) / 2, abs=1e-6)


def test_a_row_that_ended_in_its_text_has_the_loss_of_its_text():
  mask = jnp.array([[[1.0, 0, 0], [1, 1, 1]]])
  table = (('text', dict(weight=0.5)), ('image', {}))
  value, _ = by_hand(at=TWO, loss_mask=mask, kl_mask=mask, segments=table)
  # Row 0: half of 0.5 + 0.1 * 0.3. Row 1: half of -0.2, and 0.5 / 2 + 0.1 * 0.15 of the picture.
  rows = [0.5 * (0.5 + 0.03), 0.5 * -0.2 + 0.25 + 0.015]
  assert value == pytest.approx(sum(rows) / 2, abs=1e-6)


@pytest.mark.parametrize('level', terms.LEVELS)
def test_a_token_outside_of_the_mask_has_no_gradient(level):
  params, batch = toys.params(), toys.experience(3, 4)
  mask = np.random.default_rng(0).integers(0, 2, (3, 4, toys.L)).astype(np.float32)
  mask[..., 3] = 0
  grads = gradient(
    params, batch.replace(loss_mask=jnp.asarray(mask)), level=level, scale_weight_power=0.7
  )
  per_position = np.asarray(abs(grads)).max((0, 2))
  assert per_position[3] == 0 and (per_position[[0, 1, 2, 4]] > 1e-4).all()
  ones = gradient(
    params, batch.replace(loss_mask=jnp.ones((3, 4, toys.L))), level=level, scale_weight_power=0.7
  )
  none = gradient(params, batch, level=level, scale_weight_power=0.7)
  np.testing.assert_allclose(ones, none, rtol=1e-5, atol=1e-7)


def leading(batch, n):
  """The first n tokens of its rows."""
  cut = jax.tree.map(lambda x: x[:, :, :n], (batch.data, batch.old_logp))
  return batch.replace(data=cut[0], old_logp=cut[1])


def test_the_first_scales_alone_are_a_loss_of_their_tokens():
  params, batch = toys.params(), toys.experience(3, 4)
  head = leading(batch, 1)
  found = gradient(params, head, scale_weight_power=0.7)
  only = gradient(params, batch, scale_weight_power=0.7, last_scale=0)
  np.testing.assert_allclose(found, only, atol=1e-7)
  value, metrics = surrogate.loss(toys.SCORED, params, {}, head, **LOSS)
  assert 'entropy/scale_0' in metrics and 'entropy/scale_1' not in metrics
  assert float(metrics['ratio'].count) == 12
  with pytest.raises(ValueError, match='image: 3 actions of a row, expected whole scales'):
    surrogate.loss(toys.SCORED, params, {}, leading(batch, 3), **LOSS)


@pytest.mark.parametrize('level', terms.LEVELS)
def test_of_the_policy_that_sampled_the_ratio_is_1_to_the_bit_and_the_loss_0(level):
  params, batch = toys.params(), toys.experience(3, 4)
  for old_logp in (toys.logp(params['policy'], batch), None):
    same = batch.replace(old_logp=old_logp)
    value, metrics = surrogate.loss(toys.SCORED, params, {}, same, **LOSS | dict(level=level))
    assert float(value.total) == 0 and toys.mean(metrics['ratio']) == 1
    assert toys.mean(metrics['ratio/abs_log']) == 0
    assert toys.mean(metrics['ratio_dev/scale_1']) == 0


def test_a_clip_of_a_millionth_lets_ratios_move_so_far():
  """The surrogate's part of the gradient is there within the clip, and gone beyond."""
  params, batch = toys.params(), toys.experience(3, 4)
  now = toys.logp(params['policy'], batch)
  options = dict(clip=1e-6, clip_high=1e-6)
  batch = batch.replace(advantage=abs(batch.advantage))
  whole = gradient(params, batch.replace(old_logp=now))
  assert float(abs(whole).max()) > 0.01
  for gap, share in ((4e-7, 1), (4e-6, 0)):
    # So far is a few steps of float32 of a log-probability: what counts is the ratio that results.
    old_logp = now - gap
    assert float(abs(jnp.expm1(now - old_logp) / gap - 1).max()) < 0.7
    found = gradient(params, batch.replace(old_logp=old_logp), **options)
    np.testing.assert_allclose(found, share * whole, atol=1e-6)


@pytest.mark.parametrize('old_logp', ['trainer', 'current'])
@pytest.mark.parametrize('level', terms.LEVELS)
def test_the_first_gradient_is_that_of_the_log_likelihood_weighted_by_advantages(old_logp, level):
  """-(1 / B) sum_i A_i sum_l w_l grad logp_il, whatever the clip and the level.

  A mean ratio gives each of its tokens the same gradient, so that of a level other than 'token' has
  the weights of its group averaged; with a power of 0 these are all equal."""
  params, batch = toys.params(), toys.experience(3, 4)
  now = toys.logp(params['policy'], batch)
  batch = batch.replace(old_logp=now if old_logp == 'trainer' else None)

  def likelihood(params):
    logp = toys.logp(params['policy'], batch)
    return -(batch.advantage[..., None] * logp / toys.L).sum() / 12

  expected = jax.grad(likelihood)(params)['policy']['table']
  found = gradient(params, batch, level=level)
  np.testing.assert_allclose(found, expected, atol=1e-7)
  assert float(abs(expected).max()) > 0.01


def test_token_weights_scale_the_gradient_of_their_scale():
  params, batch = toys.params(), toys.experience(3, 4).replace(old_logp=None)
  even = gradient(params, batch, scale_weight_power=0.0)
  found = gradient(params, batch, scale_weight_power=1.0)
  # Each scale has half of the weight: 1/2 in place of 1/5, and 1/8 in place of 1/5.
  factor_L = np.array([5 / 2] + [5 / 8] * 4)[None, :, None]
  np.testing.assert_allclose(found, even * factor_L, atol=1e-7)


def test_without_advantages_and_without_kl_there_is_no_gradient():
  batch = toys.experience(3, 4)
  grads = gradient(toys.params(), batch.replace(advantage=jnp.zeros((3, 4))))
  np.testing.assert_array_equal(grads, 0)


def test_a_row_without_a_verdict_has_no_influence_on_the_gradient():
  frozen = {'reference': toys.params(1)['policy']}
  batch = toys.experience(2, 4, masked=3)
  tokens = batch.data['image']['tokens'].at[0, :3].set(0)
  garbage = batch.replace(data={'image': {'tokens': tokens}})
  garbage = garbage.replace(old_logp=batch.old_logp.at[0, :3].set(-1e4))
  a = gradient(toys.params(), batch, frozen, penalty=0.1)
  b = gradient(toys.params(), garbage, frozen, penalty=0.1)
  np.testing.assert_allclose(a, b, atol=1e-8)
  assert float(abs(a).max()) > 0.01


def test_settings_that_cannot_learn_are_refused():
  """By segment: see terms_test."""
  policy = toys.fixed([0, 0, 0], at=TWO)
  check = lambda **changes: surrogate.check_loss(policy, **LOSS | dict(reference=False) | changes)
  check()
  check(segments=(('text', {}), ('image', dict(weight=0.0))))
  for changes, words in (
    (dict(penalty=0.1), r'objective.loss \(text\): penalty=0.1 without a reference'),
    (dict(segments=(('image', {}),)), "no pattern covers the segment 'text'"),
    (dict(segments=(('.*', dict(weight=0.0)),)), 'every weight is 0'),
  ):
    with pytest.raises(ValueError, match=words):
      check(**changes)
