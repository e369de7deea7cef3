import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from vargrl.objectives import classify
from vargrl.types import Experience, Models


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_the_loss_by_hand(smoothing):
  # p = [1/4, 3/4] of the right class 1, and of the wrong class 0: -log 3/4 and -log 1/4.
  logits = jnp.array([[0, math.log(3)]] * 2)
  models = Models(init=None, config=None, classify=lambda *_: logits)
  batch = Experience(label=jnp.array([1, 0]), image=jnp.zeros((2, 1, 1, 3)))
  value, metrics = classify.loss(models, {'policy': None}, {}, batch, smoothing=smoothing)
  both = -(math.log(3 / 4) + math.log(1 / 4)) / 2
  assert toys.mean(value) == pytest.approx(both, rel=1e-5)  # smoothing changes rows, not their sum
  assert toys.mean(metrics['accuracy']) == 0.5
  one = Experience(label=jnp.array([1, 1]), image=batch.image)
  value, _ = classify.loss(models, {'policy': None}, {}, one, smoothing=smoothing)
  expected = -(1 - smoothing) * math.log(3 / 4) + smoothing * both
  assert toys.mean(value) == pytest.approx(expected, rel=1e-5)


def test_noise_is_added_to_the_pixels():
  batch = {'label': np.zeros(64), 'image': np.ones((64, 4, 4, 3), np.float32)}
  clean = classify.collect(None, noise=0.0)({}, {}, batch, jax.random.key(0), 0).batch.image
  np.testing.assert_array_equal(clean, batch['image'])
  noisy = classify.collect(None, noise=0.5)({}, {}, batch, jax.random.key(0), 0).batch.image
  assert float((noisy - 1).std()) == pytest.approx(0.5, rel=0.1)
