import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.objectives import reduce
from vargrl.types import bounds

VAR = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)

# https://arxiv.org/abs/2601.02256 for VAR's ten scales, as printed: the weight of a token of each
# scale, and the share of each scale.
TOKEN = {
  0: '.0015 .0015 .0015 .0015 .0015 .0015 .0015 .0015 .0015 .0015',
  0.6: '.0224 .0098 .0060 .0043 .0033 .0026 .0019 .0014 .0010 .0008',
  0.7: '.0337 .0128 .0072 .0048 .0035 .0027 .0018 .0013 .0009 .0007',
  0.8: '.0495 .0163 .0085 .0054 .0038 .0028 .0018 .0012 .0008 .0006',
  1: '.1 .025 .0111 .0063 .0040 .0028 .0016 .0010 .0006 .0004',
}
SHARE = {
  0: '.001 .006 .013 .024 .037 .053 .094 .147 .249 .376',
  0.6: '.022 .039 .054 .068 .081 .094 .118 .142 .175 .206',
  0.7: '.034 .051 .065 .077 .088 .099 .117 .134 .157 .178',
  0.8: '.050 .065 .077 .086 .094 .101 .114 .124 .138 .150',
  1: '.1 .1 .1 .1 .1 .1 .1 .1 .1 .1',
}


@pytest.mark.parametrize('alpha', TOKEN)
def test_token_weights_are_the_table_of_the_paper(alpha):
  weight_L = reduce.token_weights(VAR, alpha=alpha, first=0, last=9)
  assert weight_L.shape == (680,) and weight_L.dtype == np.float32
  assert weight_L.sum() == pytest.approx(1, abs=1e-6)
  parts = [weight_L[a:b] for a, b in bounds(VAR)]
  assert all(p.min() == p.max() for p in parts)
  found = [(p[0], p.sum()) for p in parts]
  table = [tuple(map(float, x)) for x in zip(TOKEN[alpha].split(), SHARE[alpha].split())]
  # Half a unit of the last printed digit, and a little for a rounding of the rounded.
  assert np.all(abs(np.array(found) - np.array(table)) <= [0.5001e-4, 0.5001e-3])


def test_scales_outside_first_to_last_weigh_nothing():
  # 4 tokens of scale 2, and 9 of scale 3: at alpha 1 each scale has half of the weight.
  weight_L = reduce.token_weights((1, 2, 3, 4), alpha=1, first=1, last=2)
  np.testing.assert_allclose(weight_L, [0] + [1 / 8] * 4 + [1 / 18] * 9 + [0] * 16, rtol=1e-6)
  for first, last in ((2, 1), (0, 4), (-1, 2)):
    with pytest.raises(ValueError, match='first'):
      reduce.token_weights((1, 2, 3, 4), alpha=0, first=first, last=last)


# r = [[1, 2, 6], [0, 0, 3]]: means 3 and 1, centred [[-2, -1, 3], [-1, -1, 2]],
# squares 14 and 6: std with ddof 1 sqrt(7) = 2.64575 and sqrt(3) = 1.73205;
# of the batch, sqrt((14 + 6) / (6 - 1)) = 2.
@pytest.mark.parametrize(
  'std, expected',
  [
    ('none', [[-2, -1, 3], [-1, -1, 2]]),
    ('batch', [[-1, -0.5, 1.5], [-0.5, -0.5, 1]]),
    ('group', [[-0.755929, -0.377964, 1.133893], [-0.577350, -0.577350, 1.154701]]),
  ],
)
def test_advantages_by_hand(std, expected):
  r_PR = jnp.array([[1.0, 2, 6], [0, 0, 3]])
  advantage_PR, weight_PR, facts = reduce.advantages(r_PR, std=std, eps=0.0)
  np.testing.assert_allclose(advantage_PR, expected, rtol=1e-5)
  np.testing.assert_array_equal(weight_PR, np.ones((2, 3)))
  np.testing.assert_allclose(facts['std_P'], [7**0.5, 3**0.5], rtol=1e-6)
  assert not facts['flat_P'].any()


def test_eps_is_added_to_the_standard_deviation():
  advantage_PR, _, _ = reduce.advantages(jnp.array([[1.0, 2, 3]]), std='group', eps=1.0)
  np.testing.assert_allclose(advantage_PR, [[-0.5, 0, 0.5]])


@pytest.mark.parametrize('std', reduce.STDS)
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_row_without_a_verdict_is_outside_of_everything(std, bad):
  with_bad = jnp.array([[1.0, bad, 2, 6], [0, 3, bad, 0]])
  without = jnp.array([[1.0, 2, 6], [0, 3, 0]])
  a, weight_PR, facts = reduce.advantages(with_bad, std=std, eps=1e-4)
  b, _, facts_without = reduce.advantages(without, std=std, eps=1e-4)
  np.testing.assert_array_equal(weight_PR, [[1, 0, 1, 1], [1, 1, 0, 1]])
  np.testing.assert_array_equal(a[weight_PR == 0], 0)
  np.testing.assert_allclose(a[weight_PR == 1], b.reshape(-1), rtol=1e-6)
  np.testing.assert_allclose(facts['std_P'], facts_without['std_P'], rtol=1e-6)


@pytest.mark.parametrize('std', reduce.STDS)
@pytest.mark.parametrize('eps', [0.0, 1e-4])
def test_a_group_without_a_difference_has_no_advantage(std, eps):
  nan = np.nan
  # In float32, seven times 0.1 or 0.3 over seven is not 0.1 or 0.3; -0.0 equals 0.0.
  flat = [[0.1] * 7, [0.3] * 7, [0.0, -0.0] * 3 + [0], [1e8] * 2 + [nan] * 5]
  flat += [[0.1] * 3 + [nan] * 4, [0.3] + [nan] * 6, [nan] * 7]
  other = [[1.0, 2, 3, 4, 5, 6, 7]]  # the batch's spread is not 0
  advantage_PR, _, facts = reduce.advantages(jnp.array(flat + other), std=std, eps=eps)
  np.testing.assert_array_equal(advantage_PR[:-1], 0)
  np.testing.assert_array_equal(facts['flat_P'], [1] * 7 + [0])
  assert np.all(np.isfinite(advantage_PR)) and np.any(advantage_PR[-1] != 0)


def test_levels_by_hand():
  d_PRL = jnp.array([[[0.1, 0.2, 0.3], [-0.3, 0, 0.6]]])
  one, ones = jnp.ones((1, 1, 3)), (1, 1, 1)
  np.testing.assert_array_equal(reduce.log_ratio(d_PRL, one, ones, level='token'), d_PRL)
  # Means over the row: 0.2 and 0.1; over the two active tokens of the row: 0.25 and 0.3.
  for active_11L, means in ((one, [0.2, 0.1]), (jnp.array([[[0.0, 1, 1]]]), [0.25, 0.3])):
    found = reduce.log_ratio(d_PRL, active_11L, ones, level='sequence')
    np.testing.assert_allclose(found, np.repeat(means, 3).reshape(1, 2, 3), rtol=1e-6)
  # Scales of 1 and 4 tokens: (0.1 + 0.2 + 0.3 + 0.4) / 4 = 0.25.
  d_PRL = jnp.array([[[0.5, 0.1, 0.2, 0.3, 0.4]]])
  found = reduce.log_ratio(d_PRL, jnp.ones((1, 1, 5)), (1, 2), level='scale')
  np.testing.assert_allclose(found, [[[0.5, 0.25, 0.25, 0.25, 0.25]]], rtol=1e-6)
  with pytest.raises(ValueError, match='level'):
    reduce.log_ratio(d_PRL, jnp.ones((1, 1, 5)), (1, 2), level='image')


# low 0.2, high 0.3. With A = 1 the gain is min(ratio, 1.3); with A = -1 it is -max(ratio, 0.8).
RATIO = jnp.array([[0.5, 1, 1.5], [0.5, 1, 1.5]])
A = jnp.array([[1.0], [-1]])


def test_the_clipped_gain_by_hand():
  gain, low, high = reduce.clipped(RATIO, A, low=0.2, high=0.3)
  np.testing.assert_allclose(gain, [[0.5, 1, 1.3], [-0.8, -1, -1.5]], rtol=1e-6)
  np.testing.assert_array_equal(low, [[0, 0, 0], [1, 0, 0]])
  np.testing.assert_array_equal(high, [[0, 0, 1], [0, 0, 0]])
  for low, high in ((-0.1, 0.2), (0.3, 0.2)):
    with pytest.raises(ValueError, match='clip'):
      reduce.clipped(RATIO, A, low=low, high=high)


def test_what_is_clipped_has_no_gradient_and_the_rest_has_its_advantage():
  gain = lambda ratio: reduce.clipped(ratio, A, low=0.2, high=0.3)[0].sum()
  away = RATIO.at[:, 1].set(1.1)  # at 1 both branches of the minimum are equal
  np.testing.assert_allclose(jax.grad(gain)(away), [[1, 1, 0], [0, -1, -1]], atol=1e-6)
  np.testing.assert_allclose(jax.grad(gain)(RATIO)[:, 1], [1, -1])  # and so is their gradient
