"""Cross-entropy of one picture and its prompt: what is drawn at random is data, and the loss by
hand.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import toys
from toys import fake_run

from vargrl.objectives import sft
from vargrl.types import Scores, Tokenizer

LOSS = dict(scale_weight_power=0.0, segments=(('.*', {}),))
COLLECT = dict(prompt_drop=0.0, condition_drop=0.0, drop_path=0.0, flip=0.0, flip_scales=0)
SCALES, BITS = (1, (2, 2), (3, 2)), 4


def loss(policy, **changes):
  value, metrics = sft.loss(policy, {'policy': None}, {}, toys.rows([[[0]]], [0]), **LOSS | changes)
  return toys.mean(value), {k: toys.mean(v) for k, v in metrics.items()}


def test_the_loss_is_the_mean_negative_log_likelihood():
  # [1, 2, 3] and [2, 2, 5]: (6 + 9) / 6 = 2.5; scales of one token: 1.5, 2 and 4.
  value, metrics = loss(toys.fixed([-1, -2, -3], [-2, -2, -5]))
  assert value == metrics['loss'] == pytest.approx(2.5)
  assert [metrics[f'nll/scale_{i}'] for i in range(3)] == pytest.approx([1.5, 2, 4])
  assert metrics['entropy'] == metrics['accuracy'] == 0
  weighed, _ = loss(toys.fixed([-1, -2, -3]), segments=(('image', dict(weight=3.0)),))
  assert weighed == pytest.approx(6)


def test_of_bits_the_loss_is_a_mean_over_bits_and_half_a_power_is_the_published_weight():
  logp, ones = -jnp.arange(1.0, 12.0)[None, None], jnp.ones((1, 1, 11))
  score = lambda policy, frozen, prompt_P, data_PR: Scores(logp, BITS * ones, 0.5 * ones)
  at = toys.spans(('image', SCALES), choices=BITS)
  value, metrics = loss(fake_run.policy(spans=at, score=score))
  assert value == pytest.approx(6 / BITS)
  assert metrics['entropy'] == 1 and metrics['accuracy'] == 0.5
  assert metrics['nll/scale_1'] == pytest.approx(3.5 / BITS)
  weight = np.concatenate([np.full(n, n**-0.5) for n in (1, 4, 6)])
  expected = float((weight / weight.sum() * np.arange(1, 12)).sum()) / BITS
  value, _ = loss(fake_run.policy(spans=at, score=score), scale_weight_power=0.5)
  assert value == pytest.approx(expected, rel=1e-5)


def labels(prompt_drop=0.0, drop_path=0.0, B=64):
  """The Experience of pictures whose tokens are their number, and labels."""
  image = jnp.arange(B)
  policy = fake_run.policy(
    dict(depth=3),
    spans=toys.SPANS,
    prompt=lambda batch: batch['label'],
    unconditional=lambda prompt_P: jnp.full_like(prompt_P, toys.CLASSES),
  )
  encode = lambda frozen, x: jnp.repeat(x[:, None], toys.L, 1)
  tokenizer = fake_run.record(Tokenizer, encode=encode)
  options = COLLECT | dict(prompt_drop=prompt_drop, drop_path=drop_path)
  batch = {'image': image, 'label': image % toys.CLASSES}
  return toys.run(sft.collect(policy, tokenizer, **options), batch).experience


def test_dropped_labels_become_the_unconditional_class():
  label = np.arange(64) % toys.CLASSES
  np.testing.assert_array_equal(labels(0.0).prompt, label)
  np.testing.assert_array_equal(labels(1.0).prompt, toys.CLASSES)
  half = np.asarray(labels(0.5).prompt)
  dropped = half == toys.CLASSES
  assert 16 < dropped.sum() < 48
  np.testing.assert_array_equal(half[~dropped], label[~dropped])
  tokens = labels(0.5).data['image']['tokens']
  assert tokens.shape == (64, 1, toys.L)
  np.testing.assert_array_equal(tokens[:, 0, 0], np.arange(64))


def test_drop_path_rises_from_nothing_to_its_rate_and_keeps_the_mean():
  assert 'drop_path' not in labels(0.0).data['image']
  factors = np.asarray(labels(drop_path=0.5, B=2000).data['image']['drop_path'])
  assert factors.shape == (2000, 1, 3, 2)
  np.testing.assert_array_equal(factors[:, :, 0], 1)
  for layer, kept in ((1, 0.75), (2, 0.5)):
    assert set(np.unique(factors[:, :, layer])) == {np.float32(0), np.float32(1 / kept)}
    assert factors[:, :, layer].mean() == pytest.approx(1, abs=0.1)
  # Branches are drawn apart.
  assert 0.3 < (factors[:, 0, 2, 0] == factors[:, 0, 2, 1]).mean() < 0.7


def encode_with_flips(frozen, image, flips):
  tokens = jnp.broadcast_to((jnp.arange(11) % 2)[None, :, None], flips.shape)
  return tokens, tokens ^ flips


BSQ = fake_run.record(Tokenizer, encode_with_flips=encode_with_flips)


def bits(B=400, **changes):
  """The Experience of pictures of bits and their text features, all 1, or -1 of none."""
  policy = fake_run.policy(
    dict(depth=3, scales=SCALES, bits=BITS),
    spans=toys.spans(('image', SCALES), choices=BITS),
    prompt=lambda batch: {'text': batch['text']},
    unconditional=lambda prompt: {'text': -prompt['text']},
  )
  options = COLLECT | dict(flip=0.3, flip_scales=3) | changes
  batch = {'image': jnp.zeros((B, 2, 2, 3)), 'text': jnp.ones((B, 2, 3))}
  return toys.run(sft.collect(policy, BSQ, **options), batch).experience


def flipped(**changes):
  """int [B, L, e]: the bits that differ from those shown."""
  image = bits(**changes).data['image']
  return np.asarray(image['tokens'] ^ image['input_tokens'])[:, 0]


def test_each_scale_of_each_image_has_its_own_share_of_flipped_bits():
  flips = flipped()
  assert flips.shape == (400, 11, BITS) and set(np.unique(flips)) == {0, 1}
  assert flips.mean() == pytest.approx(0.15, abs=0.02)
  fine = flips[:, 5:].mean((1, 2))  # 24 bits each
  assert fine.max() > 0.3 and (fine == 0).mean() > 0.05
  assert np.corrcoef(fine, flips[:, 1:5].mean((1, 2)))[0, 1] < 0.2  # drawn apart
  assert not flipped(flip=0.0).any()
  few = flipped(flip_scales=2)
  assert few[:, :5].any() and not few[:, 5:].any()


def test_dropped_prompts_become_the_unconditional_one():
  text = np.asarray(bits(prompt_drop=0.25).prompt['text'])
  assert text.shape == (400, 2, 3) and (text == text[:, :1, :1]).all()
  assert (text[:, 0, 0] == -1).mean() == pytest.approx(0.25, abs=0.06)
  assert (np.asarray(bits().prompt['text']) == 1).all()


def test_a_data_set_must_have_pictures_and_labels_unless_prompts_have_features():
  assert sft.features(fake_run.policy(spans=toys.SPANS)) == ('image', 'label')
  assert sft.features(fake_run.policy(spans=toys.SPANS, features={'text': None})) == ('image',)


@pytest.mark.parametrize(
  'change, words',
  [
    (dict(flip=1.5), 'flip: 1.5 found, a number at least 0 and at most 1'),
    (dict(flip_scales=-1), 'flip_scales: -1 found, a number at least 0'),
    (dict(prompt_drop=2.0), 'prompt_drop: 2.0 found, a number at least 0 and at most 1'),
    (dict(condition_drop=-1.0), 'condition_drop: -1.0 found, a number at least 0 and at most 1'),
    (dict(condition_drop=0.1), 'condition_drop: 0.1, expected 0.0 for a policy whose pictures'),
    (dict(drop_path=1.0), 'drop_path: 1.0 found, a number at least 0 and below 1'),
    (dict(flip=0.1, tokenizer=toys.TOKENIZER), 'flip: 0.1 with a tokenizer that is not of bits'),
  ],
)
def test_what_means_nothing_is_refused(change, words):
  options = COLLECT | dict(updates=1, reference=False, tokenizer=BSQ) | change
  tokenizer = options.pop('tokenizer')
  with pytest.raises(ValueError, match=words):
    sft.check(fake_run.policy(spans=toys.SPANS), tokenizer, **options)


def test_weights_that_mean_nothing_are_refused():
  check = lambda **changes: sft.check_loss(toys.SCORED, **LOSS | dict(reference=False) | changes)
  check()
  for changes, words in (
    (dict(scale_weight_power=-1.0), 'scale_weight_power: -1.0 found, a number at least 0'),
    (dict(segments=(('.*', dict(weight=-1.0)),)), r'objective.loss \(image\).weight: -1.0 found'),
    (dict(segments=(('.*', dict(weight=0.0)),)), 'objective.loss.segments: every weight is 0'),
    (dict(segments=(('.*', dict(clip=0.1)),)), "'.*' has 'clip', expected some of"),
    (dict(segments=(('text', {}),)), "no pattern covers the segment 'image'"),
  ):
    with pytest.raises(ValueError, match=words):
      check(**changes)
