"""Cross-entropy of a class: the loss by hand, noise, and what it needs."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import toys
from toys import fake_run

from vargrl.objectives import classify
from vargrl.types import Experience, Judges


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_the_loss_by_hand(smoothing):
  # p = [1/4, 3/4] of the right class 1, and of the wrong class 0: -log 3/4 and -log 1/4.
  logits = jnp.array([[0, math.log(3)]] * 2)
  judges = fake_run.record(Judges, classify=lambda params, image_Byxc: logits)
  batch = Experience(prompt=jnp.array([1, 0]), image=jnp.zeros((2, 1, 1, 3)))
  value, metrics = classify.loss(judges, {'policy': None}, {}, batch, smoothing=smoothing)
  both = -(math.log(3 / 4) + math.log(1 / 4)) / 2
  assert toys.mean(value) == pytest.approx(both, rel=1e-5)  # smoothing changes rows, not their sum
  assert toys.mean(metrics['accuracy']) == 0.5
  one = Experience(prompt=jnp.array([1, 1]), image=batch.image)
  value, _ = classify.loss(judges, {'policy': None}, {}, one, smoothing=smoothing)
  expected = -(1 - smoothing) * math.log(3 / 4) + smoothing * both
  assert toys.mean(value) == pytest.approx(expected, rel=1e-5)


def test_noise_is_added_to_the_pixels():
  batch = {'label': np.zeros(64), 'image': np.ones((64, 4, 4, 3), np.float32)}
  clean = toys.run(classify.collect(noise=0.0), batch).experience.image
  np.testing.assert_array_equal(clean, batch['image'])
  noisy = toys.run(classify.collect(noise=0.5), batch).experience.image
  assert float((noisy - 1).std()) == pytest.approx(0.5, rel=0.1)


def test_settings_that_mean_nothing_are_refused():
  judges = fake_run.record(Judges, classify=lambda params, image_Byxc: image_Byxc)
  check = lambda noise=0.1, judges=judges: classify.check(
    judges, noise=noise, updates=1, reference=False
  )
  check()
  with pytest.raises(ValueError, match='objective.collect.noise: -0.1 found, a number at least 0'):
    check(-0.1)
  with pytest.raises(ValueError, match='policy: not a classifier, as objectives.classify trains'):
    check(judges=fake_run.record(Judges))
  classify.check_loss(smoothing=0.1, reference=False)
  for smoothing in (-0.1, 1.0):
    with pytest.raises(
      ValueError, match=f'smoothing: {smoothing} found, a number at least 0 and below 1'
    ):
      classify.check_loss(smoothing=smoothing, reference=False)
