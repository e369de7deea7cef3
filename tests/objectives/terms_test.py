"""Settings of a loss by segment: what an action weighs, and what else holds for it."""

import jax.numpy as jnp
import numpy as np
import pytest
from toys import spans

from vargrl.objectives import terms as settings
from vargrl.types import bounds

VAR = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SCALARS = dict(
  weight=1.0,
  clip=0.2,
  clip_high=0.3,
  penalty=0.0,
  estimator='exact',
  level='token',
  scale_weight_power=0.0,
  first_scale=0,
  last_scale=-1,
)
ALL = (('.*', {}),)


def terms(at, length=None, segments=ALL, **changes):
  length = at[-1].stop if length is None else length
  return settings.terms(at, length, segments=segments, **SCALARS | changes)


def weights(scales, **changes):
  return terms(spans(('image', scales)), **changes).weight_A


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


@pytest.mark.parametrize('power', TOKEN)
def test_weights_by_scale_are_the_table_of_the_paper(power):
  weight_L = weights(VAR, scale_weight_power=power, last_scale=9)
  assert weight_L.shape == (680,) and weight_L.dtype == np.float32
  assert weight_L.sum() == pytest.approx(1, abs=1e-6)
  parts = [weight_L[a:b] for a, b in bounds(VAR)]
  assert all(p.min() == p.max() for p in parts)
  found = [(p[0], p.sum()) for p in parts]
  table = [tuple(map(float, x)) for x in zip(TOKEN[power].split(), SHARE[power].split())]
  # Half a unit of the last printed digit, and a little for a rounding of the rounded.
  assert np.all(abs(np.array(found) - np.array(table)) <= [0.5001e-4, 0.5001e-3])


def test_half_a_power_is_the_published_weight_of_scales_that_are_no_squares():
  weight_L = np.concatenate([np.full(n, n**-0.5) for n in (1, 4, 6)])
  found = weights((1, (2, 2), (3, 2)), scale_weight_power=0.5)
  np.testing.assert_allclose(found, weight_L / weight_L.sum(), rtol=1e-6)


def test_scales_outside_first_to_last_weigh_nothing():
  # 4 tokens of scale 2, and 9 of scale 3: at power 1 each scale has half of the weight.
  scales = (1, 2, 3, 4)
  weight_L = weights(scales, scale_weight_power=1, first_scale=1, last_scale=2)
  np.testing.assert_allclose(weight_L, [0] + [1 / 8] * 4 + [1 / 18] * 9 + [0] * 16, rtol=1e-6)
  last, all_named = weights(scales, last_scale=-1), weights(scales, last_scale=3)
  np.testing.assert_array_equal(last, all_named)
  for first, last in ((2, 1), (0, 4), (-1, 2), (0, -2)):
    with pytest.raises(ValueError, match=f'first_scale={first}, last_scale={last} with 4 scales'):
      weights(scales, first_scale=first, last_scale=last)


TWO = spans(('text', 3), ('image', (1, 2)))


def test_each_segment_has_the_settings_of_the_first_pattern_that_matches_it():
  changed = dict(weight=0.5, clip=0.1, clip_high=0.1, penalty=0.01, estimator='k2')
  table = (('^text', changed | dict(level='sequence')), ('.*', dict(scale_weight_power=1.0)))
  t = terms(TWO, segments=table)
  assert t.level == ('sequence', 'token') and t.estimator == ('k2', 'exact')
  low, high, penalty = (np.array(x, np.float32) for x in ((0.1, 0.2), (0.1, 0.3), (0.01, 0)))
  for found, (text, image) in ((t.low_A, low), (t.high_A, high), (t.penalty_A, penalty)):
    np.testing.assert_array_equal(found, [text] * 3 + [image] * 5)
  # A third of a half each; and each scale half of the picture's weight.
  np.testing.assert_allclose(t.weight_A, [1 / 6] * 3 + [1 / 2] + [1 / 8] * 4, rtol=1e-6)


def test_without_a_table_of_its_own_each_segment_weighs_1():
  t = terms(TWO)
  assert t.weight_A[:3].sum() == pytest.approx(1) and t.weight_A[3:].sum() == pytest.approx(1)


def test_the_first_scales_alone_have_all_of_the_weight():
  at = spans(('image', (1, 2, 3)))
  t = terms(at, 5, scale_weight_power=1)
  np.testing.assert_allclose(t.weight_A, [1 / 2] + [1 / 8] * 4, rtol=1e-6)
  assert t.spans[0].parts == ('scale_0', 'scale_1') and t.spans[0].stop == 5
  with pytest.raises(ValueError, match='image: 3 actions of a row, expected whole scales'):
    terms(at, 3)
  assert [span.name for span in terms(TWO, 3).spans] == ['text']


@pytest.mark.parametrize(
  'segments, sentence',
  [
    ((('text', {}),), "no pattern covers the segment 'image', one of ['text'] expected to"),
    ((('.*', {}), ('text', {})), "the pattern 'text' decides no segment of ['text', 'image']"),
    ((('.*', {}), ('audio', {})), "the pattern 'audio' decides no segment of"),
    ((('.*', dict(clipp=0.1)),), "'.*' has 'clipp', expected some of ['clip', 'clip_high',"),
  ],
)
def test_a_table_that_leaves_out_or_does_nothing_is_refused(segments, sentence):
  with pytest.raises(ValueError) as e:
    terms(TWO, segments=segments)
  assert str(e.value).startswith(f'objective.loss.segments: {sentence}') and '\n' not in str(
    e.value
  )


MASK = jnp.array([[[1.0, 1, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]])


def test_weights_of_a_mask_sum_to_one_again():
  t = terms(spans(('image', (1, 2))), scale_weight_power=1)  # 1/2, four of 1/8
  np.testing.assert_array_equal(settings.masked_weights(t, None), t.weight_A[None, None])
  expected = [[[2 / 3, 1 / 6, 1 / 6, 0, 0], [0, 0, 0, 0, 1], [0] * 5]]
  np.testing.assert_allclose(settings.masked_weights(t, MASK), expected, rtol=1e-6)


def test_weights_of_a_mask_sum_to_the_weight_of_each_segment_of_a_row():
  t = terms(TWO, segments=(('text', dict(weight=0.25)), ('image', dict(weight=2.0))))
  text = jnp.array([[[1.0, 1, 0], [0, 0, 0], [1, 1, 1]]])
  found = settings.masked_weights(t, jnp.concatenate([text, MASK], -1))
  expected = np.array([[0.25, 2], [0, 2], [0.25, 0]])
  np.testing.assert_allclose(found[0, :, :3].sum(-1), expected[:, 0], rtol=1e-6)
  np.testing.assert_allclose(found[0, :, 3:].sum(-1), expected[:, 1], rtol=1e-6)
  np.testing.assert_allclose(found[0, 0], [1 / 8] * 2 + [0] + [2 / 3] * 3 + [0] * 2, rtol=1e-6)


def check(at=TWO, segments=ALL, reference=True, **changes):
  settings.check(at, segments=segments, reference=reference, **SCALARS | changes)


def test_settings_that_cannot_learn_are_refused_with_their_segment():
  check(penalty=0.1)
  check(estimator='k1', reference=False)
  for changes, sentence in (
    (dict(penalty=0.1, estimator='k1'), r'objective.loss \(text\): estimator=k1 has no gradient'),
    (dict(penalty=0.1, reference=False), r'\(text\): penalty=0.1 without a reference'),
    (dict(level='image'), r"\(text\): level='image', expected one of"),
    (dict(estimator='k4'), r"\(text\): estimator='k4', expected one of"),
    (dict(clip=0.4), r'\(text\): clip=0.4, clip_high=0.3; expected 0 <= clip <= clip_high'),
    (dict(clip=-0.1), r'\(text\): clip=-0.1'),
    (dict(penalty=-1.0), r'\(text\).penalty: -1.0 found, a number at least 0'),
    (dict(last_scale=2), 'first_scale=0, last_scale=2 with 2 scales'),
    (dict(scale_weight_power=-1.0), 'scale_weight_power: -1.0 found, a number at least 0'),
    (dict(weight=0.0), 'segments: every weight is 0, expected one that is not'),
  ):
    with pytest.raises(ValueError, match=sentence) as e:
      check(**changes)
    assert '\n' not in str(e.value)
  with pytest.raises(ValueError, match=r"objective.loss \(image\): level='row'"):
    check(segments=(('text', {}), ('image', dict(level='row'))))
  with pytest.raises(ValueError, match=r'objective.loss \(image\).weight: -1.0 found'):
    check(segments=(('text', {}), ('image', dict(weight=-1.0))))
