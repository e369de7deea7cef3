"""The expected gradient of each estimator of the KL penalty, over all that a policy may draw: one
scale of four tokens, every picture weighing its probability."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from toys import fake_run

from vargrl.objectives import surrogate, terms
from vargrl.types import Experience, Scores

LOSS = dict(level='token', clip=0.2, clip_high=0.3, penalty=1.0, scale_weight_power=0.0)
LOSS |= dict(first_scale=0, last_scale=-1, segments=(('.*', {}),))
rng = np.random.default_rng(0)
POLICY, OTHER = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), rng.normal(size=(4, 3))
IMAGES = np.array(list(itertools.product(range(3), repeat=4)))


def four_tokens(policy, frozen, prompt_P, data_PR, reference):
  logp_LV, ref_LV = jax.nn.log_softmax(policy), jax.nn.log_softmax(reference)
  chosen = lambda x_LV: x_LV[np.arange(4), IMAGES][:, None]
  logp, zero = chosen(logp_LV), jnp.zeros((81, 1, 4))
  kl = jnp.broadcast_to((jnp.exp(logp_LV) * (logp_LV - ref_LV)).sum(-1)[None, None], zero.shape)
  return Scores(logp, zero, zero, kl, chosen(ref_LV))


def expected_gradient(estimator, level='token'):
  policy = fake_run.policy(
    spans=toys.spans(('image', (2,))), score=four_tokens, reference=toys.reference
  )
  frozen = {'reference': jnp.asarray(OTHER, jnp.float32)}
  logp = four_tokens(POLICY, {}, None, None, frozen['reference']).logp.sum(-1)
  batch = Experience(advantage=jnp.zeros((81, 1)), row_mask=jnp.exp(logp))
  options = LOSS | dict(estimator=estimator, level=level)

  def value(params):
    average = surrogate.loss(policy, params, frozen, batch, **options)[0]
    return average.total / average.count

  return jax.jit(jax.grad(value))({'policy': POLICY})['policy']


def divergence(a, b):
  a, b = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
  return (jnp.exp(a) * (a - b)).sum() / 4


@pytest.mark.parametrize('level', terms.LEVELS)
@pytest.mark.parametrize('estimator', ['exact', 'k2', 'k3_is'])
def test_the_gradient_of_exact_k2_and_k3_is_is_that_of_the_kl(estimator, level):
  expected = jax.grad(divergence)(POLICY, OTHER)
  np.testing.assert_allclose(expected_gradient(estimator, level), expected, atol=1e-6)


def test_the_gradient_of_k3_is_that_of_the_reverse_kl():
  expected = jax.grad(divergence, 1)(OTHER, POLICY)
  np.testing.assert_allclose(expected_gradient('k3'), expected, atol=1e-6)
  exact = jax.grad(divergence)(POLICY, OTHER)
  assert float(abs(expected - exact).max()) > 0.02  # the theorems can be told apart


def test_the_gradient_of_k1_is_nothing():
  np.testing.assert_allclose(expected_gradient('k1'), np.zeros((4, 3)), atol=1e-6)
