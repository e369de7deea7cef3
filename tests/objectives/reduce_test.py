import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import spans

from vargrl.objectives import reduce
from vargrl.objectives.terms import Terms
from vargrl.types import bounds

VAR = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


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


def log_ratio(d_PRA, active, at, *levels):
  """reduce.log_ratio of spans with these levels."""
  one = np.zeros(at[-1].stop, np.float32)
  return reduce.log_ratio(d_PRA, active, Terms(at, one, one, one, one, levels, ()))


SPANS = spans(('image', (1, 2)))


def test_levels_by_hand():
  d_PRL = jnp.array([[[0.1, 0.2, 0.3], [-0.3, 0, 0.6]]])
  one, ones = jnp.ones((1, 1, 3)), spans(('image', (1, 1, 1)))
  np.testing.assert_array_equal(log_ratio(d_PRL, one, ones, 'token'), d_PRL)
  # Means over the row: 0.2 and 0.1; over the two active tokens of the row: 0.25 and 0.3.
  for active_11L, means in ((one, [0.2, 0.1]), (jnp.array([[[0.0, 1, 1]]]), [0.25, 0.3])):
    found = log_ratio(d_PRL, active_11L, ones, 'sequence')
    np.testing.assert_allclose(found, np.repeat(means, 3).reshape(1, 2, 3), rtol=1e-6)
  # Scales of 1 and 4 tokens: (0.1 + 0.2 + 0.3 + 0.4) / 4 = 0.25.
  d_PRL = jnp.array([[[0.5, 0.1, 0.2, 0.3, 0.4]]])
  found = log_ratio(d_PRL, jnp.ones((1, 1, 5)), SPANS, 'scale')
  np.testing.assert_allclose(found, [[[0.5, 0.25, 0.25, 0.25, 0.25]]], rtol=1e-6)


def test_each_segment_has_its_own_level():
  at = spans(('text', 2), ('image', (1, 2)), ('text_1', 2))
  d_PRA = jnp.array([[[0.1, 0.3, 0.5, 0.1, 0.2, 0.3, 0.4, 0.7, 0.9]]])
  active = jnp.ones((1, 1, 9))
  found = log_ratio(d_PRA, active, at, 'sequence', 'scale', 'token')
  np.testing.assert_allclose(found, [[[0.2] * 2 + [0.5] + [0.25] * 4 + [0.7, 0.9]]], rtol=1e-6)
  # A sequence ends with its segment; the one scale of a text is all of it.
  found = log_ratio(d_PRA, active, at, 'scale', 'sequence', 'sequence')
  np.testing.assert_allclose(found, [[[0.2] * 2 + [0.3] * 5 + [0.8] * 2]], rtol=1e-6)


def test_scales_of_several_pictures_of_a_segment_are_apart():
  (span,) = spans(('image', (1, 2)))
  two = (span._replace(stop=10, part_A=np.tile(span.part_A, 2)),)
  d_PRA = jnp.arange(10.0)[None, None]
  found = log_ratio(d_PRA, jnp.ones((1, 1, 10)), two, 'scale')
  np.testing.assert_allclose(found, [[[0] + [2.5] * 4 + [5] + [7.5] * 4]])


def test_means_of_a_mask_are_over_its_tokens():
  d_PRL = jnp.array([[[0.5, 0.1, 0.2, 0.3, 0.4], [0.5, 0.1, 0.2, 0.3, 0.4]]])
  active = jnp.array([[[1.0, 0, 1, 1, 0], [1, 0, 0, 0, 0]]])
  found = log_ratio(d_PRL, active, SPANS, 'scale')
  # Without an active token a scale keeps the mean of all of its own.
  np.testing.assert_allclose(found, [[[0.5] + [0.25] * 4, [0.5] + [0.25] * 4]], rtol=1e-6)
  active = jnp.array([[[1.0, 0, 1, 1, 0], [1, 1, 0, 0, 0]]])
  found = log_ratio(d_PRL, active, SPANS, 'sequence')
  np.testing.assert_allclose(found, np.repeat([1 / 3, 0.3], 5).reshape(1, 2, 5), rtol=1e-6)


def test_what_metrics_tell_apart_has_names_and_places():
  found = dict(reduce.metric_groups(spans(('text', 3), ('image', (1, 2)), ('image_1', (1, 1)))))
  assert found == {
    'text': slice(0, 3),
    'scale_0': slice(3, 4),
    'scale_1': slice(4, 8),
    'image_1/scale_0': slice(8, 9),
    'image_1/scale_1': slice(9, 10),
  }
  (span,) = spans(('image', (1, 2)))
  two = span._replace(start=3, stop=13, part_A=np.tile(span.part_A, 2))
  (_, first), (_, second) = reduce.metric_groups([two])
  np.testing.assert_array_equal(first, [3, 8])
  np.testing.assert_array_equal(second, [4, 5, 6, 7, 9, 10, 11, 12])


def test_a_mask_of_pixels_becomes_one_of_tokens_by_hand():
  # 6 x 6 pixels, 3 x 3 cells of 2 x 2; cells 0 and 1 of 2 cover rows 0 1 and 1 2 of 3.
  mask_Byx = np.zeros((3, 6, 6), bool)
  mask_Byx[0, 0, 5] = True  # cell (0, 2)
  mask_Byx[1, 2, 3] = True  # cell (1, 1), which all four cells of 2 x 2 meet
  found = reduce.pixel_mask_to_tokens(jnp.asarray(mask_Byx), (1, 2, 3))
  corner = [1] + [0, 1, 0, 0] + [0, 0, 1, 0, 0, 0, 0, 0, 0]
  middle = [1] + [1] * 4 + [0, 0, 0, 0, 1, 0, 0, 0, 0]
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, [corner, middle, [1] * 14])  # nothing in it: everything


def test_a_mask_of_pixels_reaches_the_tokens_of_scales_that_are_no_squares():
  mask_Byx = np.zeros((1, 6, 4), bool)
  mask_Byx[0, 4, 3] = True
  found = reduce.pixel_mask_to_tokens(jnp.asarray(mask_Byx), (1, (2, 2), (3, 2)))
  np.testing.assert_array_equal(found, [[1] + [0, 0, 0, 1] + [0, 0, 0, 0, 0, 1]])


def test_a_token_is_in_the_mask_where_its_area_meets_a_finer_token_in_it():
  pixels = np.random.default_rng(0).uniform(size=(4, 32, 32)) < 0.003
  assert pixels.any((1, 2)).all()
  found = reduce.pixel_mask_to_tokens(jnp.asarray(pixels), VAR)
  fine = pixels.reshape(4, 16, 2, 16, 2).any((2, 4))
  for s, (a, b) in zip(VAR, bounds(VAR)):
    # Cell i of s and j of 16 share some of the line, without division: i / s < (j + 1) / 16, ...
    meets = np.array(
      [[i * 16 < (j + 1) * s and j * s < (i + 1) * 16 for j in range(16)] for i in range(s)]
    )
    expected = np.einsum('Byx,hy,wx->Bhw', fine, meets.astype(int), meets.astype(int)) > 0
    np.testing.assert_array_equal(found[:, a:b].reshape(4, s, s), expected)


def test_the_soft_value_by_hand():
  nan = np.nan
  r = jnp.array([[[0.0, np.log(3)], [1000, 1000], [-1000, nan], [nan, nan]]])
  # log((1 + 3) / 2); equal ones are their own value; of those with a verdict; none of none.
  found = reduce.soft_value(r, eta=1.0)
  np.testing.assert_allclose(found[:, :3], [[np.log(2), 1000, -1000]], rtol=1e-6)
  assert np.isnan(found[0, 3])
  # 0.5 log((1 + 9) / 2) at eta 1/2; the mean at a large eta, the best at a small one.
  np.testing.assert_allclose(reduce.soft_value(r, eta=0.5)[0, 0], 0.5 * np.log(5), rtol=1e-6)
  np.testing.assert_allclose(reduce.soft_value(r, eta=1e3)[0, 0], np.log(3) / 2, rtol=1e-2)
  np.testing.assert_allclose(reduce.soft_value(r, eta=1e-3)[0, 0], np.log(3), rtol=1e-2)
  one = jnp.array([[[0.7], [-2.0]]])
  np.testing.assert_allclose(reduce.soft_value(one, eta=0.3), one[..., 0], rtol=1e-6)


def test_rewards_of_any_unit_count_by_their_weight_once_normalised():
  # a: deviation 1. b: centred [-10, -10, 20], deviation sqrt(300): [-0.57735, -0.57735, 1.154701].
  each = {'a': jnp.array([[1.0, 2, 3]]), 'b': jnp.array([[10.0, 10, 40]])}
  found = reduce.normalized_sum(each, {'a': 1.0, 'b': 2.0}, eps=0.0)
  np.testing.assert_allclose(found, [[-2.154701, -1.154701, 3.309401]], rtol=1e-5)
  in_cents = each | {'a': 100 * each['a']}
  np.testing.assert_allclose(
    reduce.normalized_sum(in_cents, {'a': 1.0, 'b': 2.0}, eps=0.0), found, rtol=1e-5
  )
  # A row without one of the verdicts is outside of the others' means too; a flat reward says
  # nothing.
  each = {'a': jnp.array([[1.0, 9, 3]]), 'b': jnp.array([[5.0, np.nan, 5]])}
  found = reduce.normalized_sum(each, {'a': 1.0, 'b': 2.0}, eps=0.0)
  np.testing.assert_allclose(found, [[-(0.5**0.5), np.nan, 0.5**0.5]], rtol=1e-5)


# low 0.2, high 0.3. With A = 1 the gain is min(ratio, 1.3) - 1; with A = -1, 1 - max(ratio, 0.8).
RATIO = jnp.array([[0.5, 1, 1.5], [0.5, 1, 1.5]])
A = jnp.array([[1.0], [-1]])


def test_the_clipped_gain_by_hand():
  gain, low, high = reduce.clip_surrogate(jnp.log(RATIO), A, low=0.2, high=0.3)
  np.testing.assert_allclose(gain, [[-0.5, 0, 0.3], [0.2, 0, -0.5]], rtol=1e-6)
  np.testing.assert_array_equal(low, [[0, 0, 0], [1, 0, 0]])
  np.testing.assert_array_equal(high, [[0, 0, 1], [0, 0, 0]])
  for low, high in ((-0.1, 0.2), (0.3, 0.2), (np.array([0.1, 0.3]), np.array([0.2, 0.2]))):
    with pytest.raises(ValueError, match='clip'):
      reduce.clip_surrogate(jnp.log(RATIO), A, low=low, high=high)


def test_bounds_may_be_of_each_action():
  low, high = np.array([[0.6, 0.2, 0.2]]), np.array([[0.6, 0.3, 0.9]])
  gain, below, above = reduce.clip_surrogate(jnp.log(RATIO), A, low=low, high=high)
  np.testing.assert_allclose(gain, [[-0.5, 0, 0.5], [0.5, 0, -0.5]], rtol=1e-6)
  assert not below.any() and not above.any()


def test_what_is_clipped_has_no_gradient_and_the_rest_has_its_advantage():
  gain = lambda ratio: reduce.clip_surrogate(jnp.log(ratio), A, low=0.2, high=0.3)[0].sum()
  away = RATIO.at[:, 1].set(1.1)  # at 1 both branches of the minimum are equal
  np.testing.assert_allclose(jax.grad(gain)(away), [[1, 1, 0], [0, -1, -1]], atol=1e-6)
  np.testing.assert_allclose(jax.grad(gain)(RATIO)[:, 1], [1, -1])  # and so is their gradient


def test_bounds_of_a_few_millionths_clip_where_they_say():
  """Beside 1, 1e-6 is eight steps of float32, which half of these ratios would be rounded over."""
  change = np.array([0.9, 0.99, 1.01, 1.1, -0.9, -0.99, -1.01, -1.1]) * 1e-6
  log_ratio = jnp.asarray(np.log1p(change), jnp.float32)
  for advantage in (1.0, -1.0):
    clipped = lambda x: reduce.clip_surrogate(x, jnp.float32(advantage), low=1e-6, high=1e-6)
    gain, low, high = clipped(log_ratio)
    outside = advantage * change > 1e-6
    np.testing.assert_array_equal(low | high, outside)
    expected = np.where(outside, 1e-6, advantage * change)
    np.testing.assert_allclose(gain, expected, rtol=1e-5, atol=0)
    slope = jax.grad(lambda x: clipped(x)[0].sum())(log_ratio)
    np.testing.assert_allclose(slope, np.where(outside, 0, advantage), rtol=1e-5)


def test_a_ratio_of_1_gains_nothing_to_the_bit():
  gain, _, _ = reduce.clip_surrogate(jnp.zeros((2, 3)), A * 7.3, low=0.2, high=0.3)
  np.testing.assert_array_equal(gain, 0)
