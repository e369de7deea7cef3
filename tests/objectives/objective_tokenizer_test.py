"""Training a tokenizer: the terms of the loss by hand, whom each of them moves, what it needs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from toys import fake_run

from vargrl.models.judges import critics
from vargrl.objectives import tokenizer
from vargrl.types import Experience, Judges, Tokenizer

# The tokenizer multiplies by a gain, the critic's verdict is its weight times a pixel.
IMAGE = jnp.full((2, 2, 2, 3), 0.5)
BATCH = Experience(image=IMAGE, scale_dropout=jnp.ones((2, 3)))
PARAMS = {'policy': jnp.array(0.8), 'critic': jnp.array(0.4)}
OFF = dict(l1=0.0, l2=0.0, quantizer=0.0, perceptual=0.0, adversarial=0.0)


def reconstruct(gain, image, scale_dropout):
  assert scale_dropout is BATCH.scale_dropout
  t_BL = jnp.zeros((len(image), 3), jnp.int32)
  return gain * image, gain * jnp.array([1.0, 3]), t_BL


def distance(frozen, a, b):
  return critics.perceptual([a, a**2], [b, b**2])


TOKENIZER = fake_run.record(Tokenizer, reconstruct=reconstruct)
JUDGES = fake_run.record(
  Judges,
  perceptual=distance,
  critic=lambda weight, image: weight * image.mean(-1, keepdims=True),
)


def loss(params=PARAMS, **changes):
  value, metrics = tokenizer.loss(TOKENIZER, JUDGES, params, {}, BATCH, **OFF | changes)
  return value.total / value.count, metrics


def gradient(**changes):
  return jax.grad(lambda params: loss(params, **changes)[0])(PARAMS)


def test_reconstruction_and_quantizer_terms_by_hand():
  # out = 0.4, the image 0.5: l1 0.1, l2 0.01; the quantizer's rows 0.8 and 2.4, mean 1.6.
  assert float(loss(l1=2.0)[0]) == pytest.approx(0.2, rel=1e-5)
  assert float(loss(l2=2.0)[0]) == pytest.approx(0.02, rel=1e-5)
  assert float(loss(quantizer=2.0)[0]) == pytest.approx(3.2, rel=1e-5)
  value, metrics = loss(l1=1.0, l2=1.0, quantizer=1.0)
  assert float(value) == pytest.approx(0.1 + 0.01 + 1.6, rel=1e-5)
  assert toys.mean(metrics['loss/l1']) == pytest.approx(0.1, rel=1e-5)
  assert toys.mean(metrics['mse']) == pytest.approx(0.01, rel=1e-5)
  assert 'loss/critic' not in metrics and 'loss/perceptual' not in metrics


def test_equal_images_are_at_perceptual_distance_zero():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)), jnp.float32)
  np.testing.assert_array_equal(distance({}, x, x), 0)
  assert np.all(distance({}, x, -x) > 0.1)
  # One channel each, and opposite signs: unit vectors 1 and -1, whose squared distance is 4.
  one = jnp.ones((1, 2, 2, 1))
  np.testing.assert_allclose(critics.perceptual([one, one], [-one, 3 * one]), [4], rtol=1e-5)


def test_the_adversarial_terms_by_hand():
  # real = 0.4 * 0.5 = 0.2, fake = 0.4 * 0.4 = 0.16; the tokenizer's -0.5 * 0.16 = -0.08,
  # the critic's relu(1 - 0.2) + relu(1 + 0.16) = 1.96, whatever the weight of the tokenizer's.
  value, metrics = loss(adversarial=0.5)
  assert toys.mean(metrics['loss/adversarial']) == pytest.approx(-0.08, rel=1e-5)
  assert toys.mean(metrics['loss/critic']) == pytest.approx(1.96, rel=1e-5)
  assert float(value) == pytest.approx(1.88, rel=1e-5)


def test_critic_and_tokenizer_learn_from_their_own_terms_alone():
  grads = gradient(adversarial=0.5)
  # d/dgain of -0.5 * 0.4 * gain * 0.5; the critic's term would add 0.4 * 0.5.
  assert float(grads['policy']) == pytest.approx(-0.1, rel=1e-5)
  # d/dweight of (1 - 0.5 weight) + (1 + 0.4 weight); the tokenizer's term would add -0.5 * 0.4.
  assert float(grads['critic']) == pytest.approx(-0.1, rel=1e-5)


def test_a_critic_that_is_switched_off_does_not_move():
  grads = gradient(l1=1.0, l2=1.0, quantizer=1.0, perceptual=1.0)
  assert float(grads['critic']) == 0 and float(grads['policy']) != 0


def test_collect_hands_on_the_images_and_which_scales_are_dropped():
  dropout = lambda rng, B: jax.random.uniform(rng, (B, 3))
  seen = fake_run.record(
    Tokenizer,
    reconstruct=lambda params, image, none: (0.5 * image, None, none),
    scale_dropout=dropout,
  )
  out = toys.run(tokenizer.collect(seen), {'image': np.asarray(IMAGE)}, {'policy': None}, rng=3)
  np.testing.assert_array_equal(out.experience.image, IMAGE)
  np.testing.assert_array_equal(out.experience.scale_dropout, dropout(jax.random.key(3), 2))
  image, captions = out.images()['reconstruction']
  assert captions == ['image'] * 2 + ['decoded'] * 2
  np.testing.assert_array_equal(image, np.concatenate([IMAGE, 0.5 * IMAGE]))


def check_loss(judges=JUDGES, **changes):
  tokenizer.check_loss(judges, **OFF | dict(reference=False) | changes)


def test_terms_without_their_network_are_refused():
  check_loss(l1=1.0, perceptual=1.0, adversarial=1.0)
  none = fake_run.record(Judges)
  for changes, words in (
    (dict(l1=-1.0), 'objective.loss.l1: -1.0 found, a number at least 0'),
    (dict(judges=none, perceptual=1.0), "perceptual: 1.0 without a section 'perceptual'"),
    (dict(judges=none, adversarial=0.5), "adversarial: 0.5 without a section 'critic'"),
  ):
    with pytest.raises(ValueError, match=words):
      check_loss(**changes)


def test_a_policy_that_is_no_tokenizer_is_refused():
  check = lambda policy, found: tokenizer.check(policy, found, updates=1, reference=False)
  nothing = fake_run.policy()
  check(nothing, TOKENIZER)
  for policy, found in ((nothing, None), (toys.POLICY, TOKENIZER)):
    with pytest.raises(
      ValueError, match='policy: not a tokenizer of tokenizers/, as objectives.tok'
    ):
      check(policy, found)
