"""Rewards that are JAX: brightness and the classifier's."""

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.rewards import brightness, classifier, mix
from vargrl.types import Samples


def linear(params, image_Byxc):
  return image_Byxc.reshape(len(image_Byxc), -1) @ params['w']


def samples(image_Byxc, label_B):
  return Samples(image_Byxc, {}, {'label': label_B})


def images(n):
  return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (n, 2, 2, 3)), jnp.float32)


def test_brightness_is_0_for_black_1_for_white_and_the_mean_between():
  x_Byxc = jnp.array([-1.0, 1.0, 0.0, 0.5])[:, None, None, None] * jnp.ones((1, 2, 2, 3))
  x_Byxc = x_Byxc.at[2, 0, 0, 0].set(0.6)  # one of twelve values: 0.5 + 0.3 / 12
  r_B = brightness.reward({}, samples(x_Byxc, jnp.zeros(4, int)))
  np.testing.assert_allclose(r_B, [0, 1, 0.525, 0.75], rtol=1e-6)


def test_the_mask_of_brightness_is_what_is_brighter_than_its_threshold():
  x_Byxc = jnp.array([[-1.0, 0.0], [0.1, 1.0]])[None, :, :, None] * jnp.ones((2, 2, 2, 3))
  x_Byxc = x_Byxc.at[1, 1, 0, 0].set(-1.0)  # one colour of three: 0.55 - 0.55 / 3
  mask_Byx = brightness.mask(x_Byxc, jnp.zeros(2, int), threshold=0.5)
  assert mask_Byx.dtype == bool
  assert mask_Byx.tolist() == [[[False, False], [True, True]], [[False, False], [False, True]]]


def test_the_classifiers_reward_is_its_log_softmax_at_the_label():
  params = {'w': np.random.default_rng(1).normal(size=(12, 5)).astype(np.float32)}
  x_Byxc, label_B = images(3), np.array([4, 0, 2])
  rewards = {'class': dict(name='rewards.classifier', weight=1.0)}
  knobs = dict(max_failed=0.0, workers=1, timeout=1, retries=0, chunk=1)
  m = mix.make(rewards, bind={'classifier': linear, 'unused': abs}, **knobs)
  r_B, _, _ = m.score({'classifier': params}, samples(x_Byxc, label_B), 1)

  logits_BV = np.asarray(x_Byxc, np.float64).reshape(3, 12) @ np.asarray(params['w'], np.float64)
  p_BV = np.exp(logits_BV) / np.exp(logits_BV).sum(1, keepdims=True)
  np.testing.assert_allclose(r_B, np.log(p_BV[np.arange(3), label_B]), rtol=1e-4)


def test_a_label_that_is_no_class_has_no_reward():
  params = {'w': jnp.ones((12, 5))}
  label_B = jnp.array([0, 5, -1])
  r_B = classifier.reward({'classifier': params}, samples(images(3), label_B), classifier=linear)
  assert np.isnan(r_B).tolist() == [False, True, True]


def test_the_classifiers_weights_are_an_argument_of_the_program_not_a_constant_in_it():
  params = {'w': jnp.full((12, 5), 0.123)}

  def score(frozen, x, label_B):
    return classifier.reward(frozen, samples(x, label_B), classifier=linear)

  jaxpr = jax.make_jaxpr(score)({'classifier': params}, images(3), jnp.arange(3))
  assert not any(np.shape(c) == (12, 5) for c in jaxpr.consts)
