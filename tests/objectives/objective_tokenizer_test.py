import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from vargrl.models.judges import critics
from vargrl.objectives import tokenizer
from vargrl.types import Experience, Models

# The tokenizer multiplies by a gain, the critic's verdict is its weight times a pixel.
IMAGE = jnp.full((2, 2, 2, 3), 0.5)
BATCH = Experience(image=IMAGE)
PARAMS = {'policy': jnp.array(0.8), 'critic': jnp.array(0.4)}
OFF = dict(l1=0.0, l2=0.0, quantizer=0.0, perceptual=0.0, adversarial=0.0)


def reconstruct(gain, image):
  t_BL = jnp.zeros((len(image), 3), jnp.int32)
  return gain * image, gain * jnp.array([1.0, 3]), t_BL


def distance(frozen, a, b):
  return critics.perceptual([a, a**2], [b, b**2])


MODELS = Models(
  init=None, config=None, reconstruct=reconstruct, perceptual=distance,
  critic=lambda weight, image: weight * image.mean(-1, keepdims=True),
)  # fmt: skip


def loss(params=PARAMS, **changes):
  value, metrics = tokenizer.loss(MODELS, params, {}, BATCH, **OFF | changes)
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
