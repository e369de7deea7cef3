import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from vargrl.objectives import group, grpo, reduce
from vargrl.types import Experience, Models, Rollout, Scores

LOSS = dict(level='token', clip=0.2, clip_high=0.3, kl=0.0, estimator='exact', alpha=0.0)
LOSS |= dict(first=0, last=1)


def gradient(params, batch, frozen=None, models=toys.MODELS, **changes):
  def value(params):
    average = grpo.loss(models, params, frozen or {}, batch, **LOSS | changes)[0]
    return average.total / average.count

  return jax.jit(jax.grad(value))(params)


# Ratios [[0.5, 1, 1.5], [0.5, 1, 1.5]], advantages 1 and -1, a third of the weight on each token.
# Gains [0.5, 1, 1.3] and [-0.8, -1, -1.5] (see reduce_test); 0.1 times the KL [0.3, 0.6, 0.9] and
# [0, 0, 0.3] is added. Row 0: -2.8 / 3 + 0.1 * 0.6 = -0.873333. Row 1: 3.3 / 3 + 0.1 * 0.1 = 1.11.
RATIO = np.array([[0.5, 1, 1.5], [0.5, 1, 1.5]])
KL = jnp.array([[[0.3, 0.6, 0.9], [0, 0, 0.3]]])


def by_hand(weight=(1, 1), mask=None, held=None, **changes):
  models = toys.said([0, 0, 0], [0, 0, 0], kl=KL, reference=jnp.zeros((1, 2, 3)))
  old = jnp.asarray(-np.log(RATIO), jnp.float32)[None]
  advantage = jnp.array([[1.0, -1]])
  batch = Experience(old=old, advantage=advantage, weight=jnp.array([weight], jnp.float32))
  batch = batch.replace(mask=mask, held=held)
  options = LOSS | dict(kl=0.1, last=2) | changes
  value, metrics = grpo.loss(models, {'policy': None}, {}, batch, **options)
  return toys.mean(value), {k: toys.mean(v) for k, v in metrics.items() if v.count}


def test_the_loss_by_hand():
  value, metrics = by_hand()
  assert value == pytest.approx((-0.873333 + 1.11) / 2, abs=1e-6)
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
  value, metrics = by_hand(weight=(1, 0))
  assert value == pytest.approx(-0.873333, abs=1e-6)
  assert metrics['kl'] == pytest.approx(1.8)
  assert metrics['clip_ratio/low_mean'] == 0
  assert metrics['clip_ratio/high_mean'] == pytest.approx(1 / 3)


def test_scales_that_are_left_out_are_not_in_the_loss():
  # Tokens 0 and 1, half each. Row 0: -1.5 / 2 + 0.1 * 0.45 = -0.705. Row 1: 1.8 / 2 = 0.9.
  value, metrics = by_hand(last=1)
  assert value == pytest.approx((-0.705 + 0.9) / 2, abs=1e-6)
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
  # Row 0: -(0.5 + 1.3) / 2 + 0.1 * 0.6 = -0.84. Row 1: (1 + 1.5) / 2 + 0.1 * 0.1 = 1.26.
  mask = jnp.array([[[1.0, 0, 1], [0, 1, 1]]])
  value, metrics = by_hand(mask=mask)
  assert value == pytest.approx((-0.84 + 1.26) / 2, abs=1e-6)
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
  _, metrics = by_hand(mask=mask, level='sequence')
  assert metrics['ratio'] == pytest.approx((0.75**0.5 + 1.5**0.5) / 2, rel=1e-5)
  # A scale that no row has in its mask has no metrics.
  _, metrics = by_hand(mask=jnp.array([[[1.0, 0, 1], [1, 0, 1]]]))
  assert 'kl/scale_0' in metrics and not [k for k in metrics if k.endswith('scale_1')]


def test_what_is_not_held_has_no_kl():
  """The last token alone is held, with all of the weight: 0.1 times 0.9 and 0.3 in the place of 0.6
  and 0.1.
  """
  value, _ = by_hand(held=jnp.array([[[0.0, 0, 1]]]).repeat(2, 1))
  assert value == pytest.approx((-2.8 / 3 + 0.09 + 3.3 / 3 + 0.03) / 2, abs=1e-6)


@pytest.mark.parametrize('level', reduce.LEVELS)
def test_a_token_outside_of_the_mask_has_no_gradient(level):
  params, batch = toys.params(), toys.experience(3, 4)
  mask = np.random.default_rng(0).integers(0, 2, (3, 4, toys.L)).astype(np.float32)
  mask[..., 3] = 0
  grads = gradient(params, batch.replace(mask=jnp.asarray(mask)), level=level, alpha=0.7)
  per_position = np.asarray(abs(grads['policy']['table'])).max((0, 2))
  assert per_position[3] == 0 and (per_position[[0, 1, 2, 4]] > 1e-4).all()
  ones = gradient(params, batch.replace(mask=jnp.ones((3, 4, toys.L))), level=level, alpha=0.7)
  none = gradient(params, batch, level=level, alpha=0.7)
  np.testing.assert_allclose(ones['policy']['table'], none['policy']['table'], rtol=1e-5, atol=1e-7)


def test_the_first_scales_alone_are_a_loss_of_their_tokens():
  params, batch = toys.params(), toys.experience(3, 4)
  head = batch.replace(tokens=batch.tokens[..., :1], old=batch.old[..., :1])
  found = gradient(params, head, alpha=0.7)['policy']['table']
  only = gradient(params, batch, alpha=0.7, last=0)['policy']['table']
  np.testing.assert_allclose(found, only, atol=1e-7)
  value, metrics = grpo.loss(toys.MODELS, params, {}, head, **LOSS)
  assert 'entropy/scale_0' in metrics and 'entropy/scale_1' not in metrics
  assert float(metrics['ratio'].count) == 12
  with pytest.raises(ValueError, match='tokens: 3 of the scales'):
    grpo.loss(toys.MODELS, params, {}, batch.replace(tokens=batch.tokens[..., :3]), **LOSS)


# The expected gradient over all images of one scale of four tokens, each weighing its probability.
rng = np.random.default_rng(0)
POLICY, OTHER = (
  {'policy': jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)},
  rng.normal(size=(4, 3)),
)
IMAGES = np.array(list(itertools.product(range(3), repeat=4)))


def four_tokens(policy, frozen, batch, reference):
  logp_LV, ref_LV = jax.nn.log_softmax(policy), jax.nn.log_softmax(jnp.asarray(OTHER, jnp.float32))
  chosen = lambda x_LV: x_LV[np.arange(4), IMAGES][:, None]
  logp, zero = chosen(logp_LV), jnp.zeros((81, 1, 4))
  kl = jnp.broadcast_to((jnp.exp(logp_LV) * (logp_LV - ref_LV)).sum(-1)[None, None], zero.shape)
  return Scores(logp, zero, zero, kl, chosen(ref_LV))


def expected_gradient(estimator, level='token'):
  logp = four_tokens(POLICY['policy'], {}, None, None).logp.sum(-1)
  batch = Experience(advantage=jnp.zeros((81, 1)), weight=jnp.exp(logp))
  models = Models(init=None, config=None, scales=(2,), logprobs=four_tokens)
  changes = dict(kl=1.0, estimator=estimator, last=0, level=level)
  return gradient(POLICY, batch, {'reference': None}, models, **changes)['policy']


def divergence(a, b):
  a, b = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
  return (jnp.exp(a) * (a - b)).sum() / 4


@pytest.mark.parametrize('level', reduce.LEVELS)
@pytest.mark.parametrize('estimator', ['exact', 'k2', 'k3_is'])
def test_the_gradient_of_exact_k2_and_k3_is_is_that_of_the_kl(estimator, level):
  expected = jax.grad(divergence)(POLICY['policy'], OTHER)
  np.testing.assert_allclose(expected_gradient(estimator, level), expected, atol=1e-6)


def test_the_gradient_of_k3_is_that_of_the_reverse_kl():
  expected = jax.grad(divergence, 1)(OTHER, POLICY['policy'])
  np.testing.assert_allclose(expected_gradient('k3'), expected, atol=1e-6)
  exact = jax.grad(divergence)(POLICY['policy'], OTHER)
  assert float(abs(expected - exact).max()) > 0.02  # the theorems can be told apart


def test_the_gradient_of_k1_is_nothing():
  np.testing.assert_allclose(expected_gradient('k1'), np.zeros((4, 3)), atol=1e-6)


def check_loss(**changes):
  grpo.check_loss(toys.MODELS, **LOSS | dict(reference=True) | changes)


def check(**changes):
  options = dict(rollouts=2, old='trainer', std='group', eps=1e-4, kl_reward=0.0)
  options |= dict(combine='sum', mask={}, rewards={}, pool={})
  grpo.check(toys.MODELS, **options | dict(updates=1, reference=True) | changes)


def test_settings_that_cannot_learn_are_refused():
  check_loss(kl=0.1)
  check_loss(kl=0.0, estimator='k1', reference=False)
  for changes, words in (
    (dict(kl=0.1, estimator='k1'), 'k1'),
    (dict(kl=0.1, reference=False), 'reference'),
    (dict(level='image'), 'level'),
    (dict(clip=0.3, clip_high=0.2), 'clip'),
    (dict(estimator='k4'), 'estimator'),
    (dict(last=2), 'last'),
  ):
    with pytest.raises(ValueError, match=words):
      check_loss(**changes)
  check()
  check(old='trainer', updates=4)
  for changes, words in (
    (dict(rollouts=1), 'rollouts'),
    (dict(old='later'), 'old'),
    (dict(old='now', updates=2), 'old'),
    (dict(std='rank'), 'std'),
    (dict(combine='max'), 'combine'),
    (dict(kl_reward=0.1, reference=False), 'kl_reward'),
  ):
    with pytest.raises(ValueError, match=words):
      check(**changes)


@pytest.mark.parametrize('old', ['trainer', 'now'])
@pytest.mark.parametrize('level', reduce.LEVELS)
def test_the_first_gradient_is_that_of_the_log_likelihood_weighted_by_advantages(old, level):
  """-(1 / B) sum_i A_i sum_l w_l grad logp_il, whatever the clip and the level.

  A mean ratio gives each of its tokens the same gradient, so that of a level other than 'token' has
  the weights of its group averaged; with alpha = 0 these are all equal."""
  params, batch = toys.params(), toys.experience(3, 4)
  now = toys.logprobs(params['policy'], {}, batch).logp
  batch = batch.replace(old=now if old == 'trainer' else None)

  def likelihood(params):
    logp = toys.logprobs(params['policy'], {}, batch).logp
    return -(batch.advantage[..., None] * logp / toys.L).sum() / 12

  expected = jax.grad(likelihood)(params)['policy']['table']
  found = gradient(params, batch, level=level)['policy']['table']
  np.testing.assert_allclose(found, expected, atol=1e-7)
  assert float(abs(expected).max()) > 0.01


def test_token_weights_scale_the_gradient_of_their_scale():
  params, batch = toys.params(), toys.experience(3, 4).replace(old=None)
  even = gradient(params, batch, alpha=0.0)['policy']['table']
  found = gradient(params, batch, alpha=1.0)['policy']['table']
  # Each scale has half of the weight: 1/2 in place of 1/5, and 1/8 in place of 1/5.
  factor_L = np.array([5 / 2] + [5 / 8] * 4)[None, :, None]
  np.testing.assert_allclose(found, even * factor_L, atol=1e-7)


def test_without_advantages_and_without_kl_there_is_no_gradient():
  batch = toys.experience(3, 4)
  grads = gradient(toys.params(), batch.replace(advantage=jnp.zeros((3, 4))))
  np.testing.assert_array_equal(grads['policy']['table'], 0)


def test_a_row_without_a_verdict_has_no_influence_on_the_gradient():
  frozen = {'reference': toys.params(1)['policy']}
  batch = toys.experience(2, 4, masked=3)
  garbage = batch.replace(tokens=batch.tokens.at[0, :3].set(0), old=batch.old.at[0, :3].set(-1e4))
  a = gradient(toys.params(), batch, frozen, kl=0.1)['policy']['table']
  b = gradient(toys.params(), garbage, frozen, kl=0.1)['policy']['table']
  np.testing.assert_allclose(a, b, atol=1e-8)
  assert float(abs(a).max()) > 0.01


@pytest.mark.parametrize('old', group.OLD)
def test_collect_scores_decoded_rows_and_records_whose_probabilities_are_old(old):
  """Rewards: the sum of the tokens, and no verdict on the first row."""
  P, R = 2, 4
  params, frozen = toys.params(), {'reference': toys.params(1)['policy']}
  made = toys.experience(P, R)
  known = lambda scores: Rollout(made.tokens, scores.logp - 0.5, scores.logp - 0.75)

  def score(frozen, image_Byxc, label_B):
    r_B = np.array(image_Byxc.sum((1, 2, 3)), np.float32)
    r_B[0] = np.nan
    return r_B, {'sum': r_B}, {'reward/masked': 1}

  models = Models(
    init=None, config=None, scales=toys.SCALES, logprobs=toys.logprobs, score=score,
    keys=lambda rng, P, R: jnp.zeros((P, R)),
    decode=lambda frozen, t_BL: jnp.broadcast_to(t_BL[:, :, None, None], (P * R, 5, 1, 3)) / 3,
    generate=lambda p, f, label, keys: known(toys.logprobs(p, f, made.replace(label=label))),
  )  # fmt: skip
  options = dict(rollouts=R, old=old, std='group', eps=1e-4, kl_reward=0.0, rewards=None, pool=None)
  options |= dict(combine='sum', mask={})
  run = grpo.collect(models, **options)
  batch, metrics, show = run(params, frozen, {'label': made.label}, jax.random.key(0), 0)
  logp = toys.logprobs(params['policy'], {}, made).logp
  if old == 'now':
    assert batch.old is None
  else:
    np.testing.assert_allclose(batch.old, logp - (0.5 if old == 'sampler' else 0), rtol=1e-6)
  r_PR = made.tokens.sum(-1).astype(jnp.float32).at[0, 0].set(np.nan)
  advantage_PR, weight_PR, _ = reduce.advantages(r_PR, std='group', eps=1e-4)
  np.testing.assert_allclose(batch.advantage, advantage_PR, atol=1e-5)
  np.testing.assert_array_equal(batch.weight, weight_PR)
  assert toys.mean(metrics['reward']) == pytest.approx(float(jnp.nanmean(r_PR)), rel=1e-5)
  assert toys.mean(metrics['sampler/logp_gap']) == pytest.approx(0.25, rel=1e-5)
  if old == 'trainer':
    assert toys.mean(metrics['sampler/trainer_gap']) == pytest.approx(0.5, rel=1e-5)
  shown = show()
  assert len(shown['best'][0]) == len(shown['worst'][0]) == 7  # a row without a verdict is neither


def test_the_kl_is_taken_from_the_reward_on_request():
  params, frozen = toys.params(), {'reference': toys.params(1)['policy']}
  made = toys.experience(1, 4)
  scores = toys.logprobs(params['policy'], {}, made, frozen['reference'])
  models = Models(
    init=None, config=None, scales=toys.SCALES, logprobs=toys.logprobs,
    score=lambda frozen, image, label: (np.zeros(4, np.float32), {}, {}),
    keys=lambda rng, P, R: jnp.zeros((P, R)), decode=lambda frozen, t_BL: t_BL[:, :, None, None],
    generate=lambda p, f, label, keys: Rollout(made.tokens, scores.logp, scores.logp),
  )  # fmt: skip
  options = dict(rollouts=4, old='sampler', std='none', eps=0.0, kl_reward=0.5, rewards=None)
  options |= dict(combine='sum', mask={})
  run = grpo.collect(models, **options, pool=None)
  batch, _, _ = run(params, frozen, {'label': made.label}, jax.random.key(0), 0)
  nats = np.asarray((scores.logp - scores.reference).sum(-1))
  np.testing.assert_allclose(batch.advantage, -0.5 * (nats - nats.mean()), atol=1e-5)


def test_rewards_are_normalised_and_tokens_masked_on_request():
  """Rewards 1 2 3 4 and 0 0 0 100, weights 1 and 0.5; the mask is the left half of the image."""
  made = toys.experience(1, 4)
  logp = toys.logprobs(toys.params()['policy'], {}, made).logp
  each = {'a': np.array([1.0, 2, 3, 4], np.float32), 'b': np.array([0.0, 0, 0, 100], np.float32)}
  left = lambda image_Byxc, label_B: jnp.zeros((4, 4, 4), bool).at[:, 1, :2].set(True)
  models = Models(
    init=None, config=None, scales=toys.SCALES, logprobs=toys.logprobs, keys=toys.keys, mask=left,
    score=lambda frozen, image, label: (each['a'] + 0.5 * each['b'], each, {}),
    decode=lambda frozen, t_BL: t_BL[:, :, None, None],
    generate=lambda p, f, label, keys: Rollout(made.tokens, logp, logp),
  )  # fmt: skip
  options = dict(rollouts=4, old='sampler', std='none', eps=0.0, kl_reward=0.0, pool=None)
  options |= dict(rewards={'a': dict(weight=1.0), 'b': dict(weight=0.5)}, combine='normalize')
  run = grpo.collect(models, **options, mask=dict(name='left'))
  batch, metrics, _ = run(toys.params(), {}, {'label': made.label}, jax.random.key(0), 0)
  # Centred [-1.5 -0.5 0.5 1.5] / sqrt(5/3), and [-25 -25 -25 75] / 50.
  expected = np.array([-1.5, -0.5, 0.5, 1.5]) / (5 / 3) ** 0.5 + 0.5 * np.array(
    [-0.5, -0.5, -0.5, 1.5]
  )
  np.testing.assert_allclose(batch.advantage, [expected], atol=1e-5)
  assert toys.mean(metrics['reward']) == pytest.approx(2.5 + 12.5)  # as it is
  # The token of the first scale, and of the second the upper left one.
  np.testing.assert_array_equal(batch.mask, np.broadcast_to([1.0, 1, 0, 0, 0], (1, 4, 5)))
  assert toys.mean(metrics['mask_share']) == pytest.approx(2 / 5)
