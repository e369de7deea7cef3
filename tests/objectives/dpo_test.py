import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from vargrl.objectives import dpo
from vargrl.types import Experience

LOSS = dict(kind='sigmoid', beta=0.5, smoothing=0.0, alpha=0.0)
softplus = lambda x: math.log1p(math.exp(x))  # -log sigmoid(-x)


def by_hand(**changes):
  """logp - reference: chosen [0.1, 0.2, 0.3], sum 0.6, mean 0.2; rejected [-0.1, 0, -0.2], sum
  -0.3, mean -0.1. The margin is 0.9 of sums and 0.3 of means."""
  models = toys.said([-1.9, -1.8, -1.7], [-1.1, -1, -1.2])
  reference = jnp.array([[[-2.0, -2, -2], [-1, -1, -1]]])
  value, metrics = dpo.loss(
    models, {'policy': None}, {}, Experience(reference=reference), **LOSS | changes
  )
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


def pairs(P=4):
  """Pairs, and the reference's log-probabilities as collect gives them: of params(0)."""
  made = toys.experience(P, 2)
  models = toys.Models(
    init=None, config=None, scales=toys.SCALES, logprobs=toys.logprobs,
    encode=lambda frozen, image: made.tokens[:, image[0, 0, 0, 0].astype(int)],
  )  # fmt: skip
  frozen = {'reference': toys.params()['policy']}
  data = {
    'label': made.label,
    'chosen': jnp.zeros((P, 1, 1, 1)),
    'rejected': jnp.ones((P, 1, 1, 1)),
  }
  return made, dpo.collect(models)({}, frozen, data, None, 0).batch


def test_collect_encodes_chosen_first_and_adds_the_reference():
  made, batch = pairs()
  np.testing.assert_array_equal(batch.tokens, made.tokens)
  expected = toys.logprobs(toys.params()['policy'], {}, made).logp
  np.testing.assert_allclose(batch.reference, expected, rtol=1e-6)


@pytest.mark.parametrize('kind, start', [('sigmoid', math.log(2)), ('sigmoid_norm', math.log(2)),
                                         ('hinge', 1.0), ('ipo', 1.0)])  # fmt: skip
def test_a_step_from_the_reference_raises_the_chosen_and_lowers_the_rejected(kind, start):
  params, (_, batch) = toys.params(), pairs(P=1)
  value = lambda p: dpo.loss(toys.MODELS, p, {}, batch, **LOSS | dict(kind=kind))[0].total
  assert float(value(params)) == pytest.approx(start, abs=1e-6)
  stepped = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(value)(params))
  moved = toys.logprobs(stepped['policy'], {}, batch).logp - batch.reference
  chosen, rejected = moved.sum(-1)[0]
  assert chosen > 0.01 and rejected < -0.01


def test_settings_that_make_no_sense_are_refused():
  dpo.check_loss(toys.MODELS, **LOSS, reference=True)
  for changes, words in (
    (dict(kind='cubic'), 'kind'),
    (dict(beta=0.0), 'beta'),
    (dict(smoothing=0.5), 'smoothing'),
    (dict(reference=False), 'reference'),
  ):
    with pytest.raises(ValueError, match=words):
      dpo.check_loss(toys.MODELS, **LOSS | dict(reference=True) | changes)
