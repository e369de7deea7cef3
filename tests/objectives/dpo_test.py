"""DPO on given pairs: the loss by hand, and the pairs of pictures, of texts and of both."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from toys import fake_run

from vargrl.objectives import dpo
from vargrl.types import Experience, Scores, Tokenizer

LOSS = dict(kind='sigmoid', beta=0.5, smoothing=0.0, scale_weight_power=0.0)
LOSS |= dict(segments=(('.*', {}),))
COLLECT = dict(flip=0.0, flip_scales=0, same_flips=True)
softplus = lambda x: math.log1p(math.exp(x))  # -log sigmoid(-x)


def by_hand(at=None, loss_mask=None, **changes):
  """logp - ref_logp: chosen [0.1, 0.2, 0.3], sum 0.6, mean 0.2; rejected [-0.1, 0, -0.2], sum
  -0.3, mean -0.1. The margin is 0.9 of sums and 0.3 of means."""
  policy = toys.fixed([-1.9, -1.8, -1.7], [-1.1, -1, -1.2], at=at)
  batch = Experience(ref_logp=jnp.array([[[-2.0, -2, -2], [-1, -1, -1]]]), loss_mask=loss_mask)
  value, metrics = dpo.loss(policy, {'policy': None}, {}, batch, **LOSS | changes)
  return toys.mean(value), {k: toys.mean(v) for k, v in metrics.items()}


@pytest.mark.parametrize(
  'changes, expected',
  [
    (dict(), softplus(-0.45)),  # beta 0.5 times 0.9
    (dict(smoothing=0.1), 0.9 * softplus(-0.45) + 0.1 * softplus(0.45)),
    (dict(kind='sigmoid_norm'), softplus(-0.15)),  # 0.5 times 0.3
    (dict(kind='hinge'), 0.55),  # 1 - 0.45
    (dict(kind='hinge', beta=2.0), 0.0),  # relu(1 - 1.8)
    (dict(kind='ipo'), 0.49),  # (0.3 - 1 / (2 * 0.5))^2
  ],
)
def test_each_kind_by_hand(changes, expected):
  assert by_hand(**changes)[0] == pytest.approx(expected, abs=1e-6)


def test_the_metrics_by_hand():
  _, metrics = by_hand()
  expected = {'rewards/margins': 0.45, 'rewards/accuracies': 1.0, 'rewards/chosen': 0.3}
  expected |= {'rewards/rejected': -0.15, 'logps/chosen': -5.4, 'logps/rejected': -3.3}
  expected |= {'loss': softplus(-0.45)}
  assert metrics == pytest.approx(expected, abs=1e-6)


TWO = toys.spans(('text', 2), ('image', (1,)))


def test_segments_have_their_own_weight():
  # Text 0.3 and -0.1, picture 0.3 and -0.2: margins 0.4 and 0.5 of sums, 0.2 and 0.5 of means.
  weights = lambda text, image: (('text', dict(weight=text)), ('image', dict(weight=image)))
  for text, image in ((1.0, 1.0), (0.5, 2.0), (0.0, 1.0)):
    table = weights(text, image)
    margin = by_hand(TWO, segments=table)[1]['rewards/margins']
    assert margin == pytest.approx(0.5 * (0.4 * text + 0.5 * image), abs=1e-6)
    margin = by_hand(TWO, segments=table, kind='sigmoid_norm')[1]['rewards/margins']
    assert margin == pytest.approx(0.5 * (0.2 * text + 0.5 * image), abs=1e-6)
  # What weighs nothing is in no sum of log-probabilities.
  assert by_hand(TWO, segments=weights(0.0, 1.0))[1]['logps/chosen'] == pytest.approx(-1.7)


def test_the_actions_of_a_mask_count_alone():
  mask = jnp.array([[[0.0, 0, 1], [1, 0, 1]]])
  # Sums 0.3 and -0.1 - 0.2; means over the segments 0.3 and -0.1 - 0.2.
  _, metrics = by_hand(TWO, loss_mask=mask)
  assert metrics['rewards/chosen'] == pytest.approx(0.15, abs=1e-6)
  assert metrics['rewards/rejected'] == pytest.approx(-0.15, abs=1e-6)
  assert metrics['logps/rejected'] == pytest.approx(-2.3, abs=1e-6)
  assert by_hand(TWO, loss_mask=mask, kind='hinge')[0] == pytest.approx(1 - 0.3, abs=1e-6)
  assert by_hand(TWO, loss_mask=mask, kind='ipo')[0] == pytest.approx(0.4**2, abs=1e-6)


def test_a_pair_of_which_neither_is_better_has_no_weight():
  policy = toys.fixed([0, 0], [0, 0])
  batch = Experience(ref_logp=jnp.zeros((1, 2, 2)), row_mask=jnp.zeros((1, 2)))
  value, _ = dpo.loss(policy, {'policy': None}, {}, batch, **LOSS)
  assert float(value.count) == 0 and float(value.total) == 0


FROZEN = {'reference': toys.params()['policy']}


def pairs(P=4):
  """Rows and the Experience of them as pairs, with the log-probabilities of params(0)."""
  made = toys.experience(P, 2)
  t_PRL = made.data['image']['tokens']
  encode = lambda frozen, image: t_PRL[:, image[0, 0, 0, 0].astype(int)]
  tokenizer = fake_run.record(Tokenizer, encode=encode)
  data = {'chosen': jnp.zeros((P, 1, 1, 1)), 'rejected': jnp.ones((P, 1, 1, 1))}
  collect = dpo.collect(toys.POLICY, tokenizer, **COLLECT)
  return made, toys.run(collect, {'label': made.prompt} | data, frozen=FROZEN).experience


def test_collect_encodes_chosen_first_and_adds_the_reference():
  made, batch = pairs()
  np.testing.assert_array_equal(batch.data['image']['tokens'], made.data['image']['tokens'])
  np.testing.assert_allclose(batch.ref_logp, toys.logp(FROZEN['reference'], made), rtol=1e-6)
  assert batch.loss_mask is None and batch.old_logp is None


@pytest.mark.parametrize(
  'kind, start',
  [('sigmoid', math.log(2)), ('sigmoid_norm', math.log(2)), ('hinge', 1.0), ('ipo', 1.0)],
)
def test_a_step_from_the_reference_raises_the_chosen_and_lowers_the_rejected(kind, start):
  params, (_, batch) = toys.params(), pairs(P=1)
  value = lambda p: dpo.loss(toys.SCORED, p, {}, batch, **LOSS | dict(kind=kind))[0].total
  assert float(value(params)) == pytest.approx(start, abs=1e-6)
  stepped = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(value)(params))
  chosen, rejected = (toys.logp(stepped['policy'], batch) - batch.ref_logp).sum(-1)[0]
  assert chosen > 0.01 and rejected < -0.01


# Pairs of bits: a picture of two scales, whose bits are the signs of its pixels; maybe text before.

BITS = 2


def answers(*segments):
  """A policy of bits and text whose log-probabilities are its text tokens and shown bits; 0 ends a
  text."""

  def score(policy, frozen, prompt_P, data_PR, reference=None):
    assert reference is None and policy is frozen['reference']
    shown = lambda x: x['input_tokens'].sum(-1) if 'input_tokens' in x else x['tokens']
    logp = jnp.concatenate([shown(data_PR[name]) for name, _ in segments], -1)
    return Scores(logp.astype(jnp.float32), None, None)

  def mask(data_PR):
    one = {name: data_PR[name]['tokens'] for name, _ in segments}
    one = {k: x > 0 if k == 'text' else jnp.ones(x.shape[:3], bool) for k, x in one.items()}
    return jnp.concatenate(list(one.values()), -1).astype(jnp.float32)

  return fake_run.policy(
    dict(scales=toys.SCALES, bits=BITS),
    spans=toys.spans(*segments, choices=BITS),
    texts=tuple(name for name, _ in segments if name != 'image'),
    prompt=lambda batch: batch['label'],
    score=score,
    mask=mask,
    reference=lambda params, frozen: frozen['reference'],
  )


def encode_with_flips(frozen, image, flips):
  tokens = (image.reshape(len(image), 5, BITS) > 0).astype(jnp.int32)
  return tokens, tokens ^ flips


BSQ = fake_run.record(Tokenizer, encode_with_flips=encode_with_flips)
P = 6
PAIRS = {
  'label': jnp.arange(P),
  'chosen': jnp.ones((P, 5, 1, BITS)),
  'rejected': -jnp.ones((P, 5, 1, BITS)),
  'chosen_text': jnp.full((P, 2), 7),
  'rejected_text': jnp.full((P, 2), 8),
}


def collected(*segments, tokenizer=BSQ, **changes):
  options = dict(flip=0.3, flip_scales=2, same_flips=True)
  batch = {k: changes.pop(k, v) for k, v in PAIRS.items()}
  collect = dpo.collect(answers(*segments), tokenizer, **options | changes)
  return toys.run(collect, batch, frozen={'reference': 1.0}, rng=1).experience


BOTH = (('text', 3), ('image', toys.SCALES))


def test_a_pair_has_the_same_flips_and_its_texts_are_filled_up():
  out = collected(*BOTH)
  tokens, shown = (np.asarray(out.data['image'][k]) for k in ('tokens', 'input_tokens'))
  assert (tokens[:, 0] == 1).all() and (tokens[:, 1] == 0).all()
  flips = tokens != shown
  assert flips.any() and (flips[:, 0] == flips[:, 1]).all()
  np.testing.assert_array_equal(out.data['text']['tokens'][0], [[7, 7, 0], [8, 8, 0]])
  np.testing.assert_array_equal(out.loss_mask[0], np.tile([1, 1, 0, 1, 1, 1, 1, 1], (2, 1)))
  ref_logp = np.concatenate([out.data['text']['tokens'], shown.sum(-1)], -1)
  np.testing.assert_array_equal(out.ref_logp, ref_logp)


def test_without_the_same_flips_each_of_the_four_has_its_own():
  own = collected(*BOTH, same_flips=False)
  tokens, shown = (np.asarray(own.data['image'][k]) for k in ('tokens', 'input_tokens'))
  flips = tokens != shown
  assert (flips[:, 0] != flips[:, 1]).any()
  assert (own.ref_logp[..., 3:] != shown.sum(-1)).any((0, 2)).all()  # what the reference was shown
  np.testing.assert_array_equal(own.ref_logp[..., :3], own.data['text']['tokens'])


def test_pairs_of_text_alone_need_no_tokenizer():
  out = collected(('text', 2), tokenizer=None)
  assert out.data.keys() == {'text'} and out.ref_logp.shape == (P, 2, 2)
  np.testing.assert_array_equal(out.data['text']['tokens'][3], [[7, 7], [8, 8]])


def test_a_text_longer_than_its_segment_is_refused():
  with pytest.raises(ValueError, match='data.max_answer: 2 tokens, expected at most 1'):
    collected(('text', 1), ('image', toys.SCALES))


def test_pictures_may_be_given_as_tokens():
  given = jnp.asarray(np.random.default_rng(0).integers(0, 2, (2, P, 5, BITS)))
  out = collected(('image', toys.SCALES), chosen=given[0], rejected=given[1])
  np.testing.assert_array_equal(out.data['image']['tokens'], given.swapaxes(0, 1))
  assert 'input_tokens' not in out.data['image']
  with pytest.raises(ValueError, match='data: 4 tokens an image found, 5 in the model'):
    collected(('image', toys.SCALES), chosen=given[0, :, :4], rejected=given[1])


def test_a_data_set_must_have_what_the_segments_are():
  assert dpo.features(answers(('text', 3))) == ('label', 'chosen_text', 'rejected_text')
  assert dpo.features(answers(('image', (1,)))) == ('label', 'chosen', 'rejected')
  both = ('label', 'chosen', 'rejected', 'chosen_text', 'rejected_text')
  assert dpo.features(answers(*BOTH)) == both


def test_settings_that_make_no_sense_are_refused():
  check = lambda policy=toys.SCORED, **changes: dpo.check_loss(
    policy, **LOSS | dict(reference=True) | changes
  )
  check()
  for changes, words in (
    (dict(kind='cubic'), "objective.loss.kind: 'cubic', expected one of"),
    (dict(beta=0.0), 'objective.loss.beta: 0.0 found, a number above 0 expected'),
    (dict(smoothing=0.5), 'objective.loss.smoothing: 0.5 found, a number at least 0 and below 0.5'),
    (dict(reference=False), 'dpo needs a reference'),
    (dict(scale_weight_power=-1.0), 'scale_weight_power: -1.0'),
    (dict(segments=(('.*', dict(weight=0.0)),)), 'segments: every weight is 0'),
    (dict(segments=(('text', {}),)), "no pattern covers the segment 'image'"),
    (dict(segments=(('.*', dict(clip=0.1)),)), "'.*' has 'clip', expected some of"),
    (dict(segments=(('.*', dict(weight=-1.0)),)), 'weight: -1.0 found, a number at least 0'),
  ):
    with pytest.raises(ValueError, match=words) as e:
      check(**changes)
    assert '\n' not in str(e.value)


def test_plans_and_flips_that_make_no_sense_are_refused():
  options = dict(updates=1, reference=True)
  check = lambda policy, tokenizer, **changes: dpo.check(
    policy, tokenizer, **COLLECT | options | changes
  )
  check(answers(*BOTH), BSQ, flip=0.1, flip_scales=1)
  check(answers(('text', 3)), None)
  for segments in ((('image', (1,)), ('text', 3)), (('image_1', (1,)),), (*BOTH, ('text_1', 2))):
    with pytest.raises(ValueError, match='rollout.plan: segments .*, expected text'):
      check(answers(*segments), BSQ)
  for changes, words in (
    (dict(flip=1.5), 'flip: 1.5 found, a number at least 0 and at most 1'),
    (dict(flip_scales=-1), 'flip_scales: -1 found, a number at least 0'),
  ):
    with pytest.raises(ValueError, match=words):
      check(answers(*BOTH), BSQ, **changes)
  for tokenizer in (None, toys.TOKENIZER):
    with pytest.raises(ValueError, match='flip: 0.1 with a tokenizer that is not of bits'):
      check(answers(('text', 3)), tokenizer, flip=0.1)
