"""Cross-entropy of a class: trains the small classifiers that serve as rewards and critics."""

import jax
import jax.numpy as jnp

from vargrl.io import numbers
from vargrl.metrics import average
from vargrl.objectives.prepare import one_program
from vargrl.types import Experience


def passes(policy, collect):
  """{}: what trains no policy is counted from its program, see training/flops.py."""
  return {}


def features(policy):
  """What a batch of data must have."""
  return ('label', 'image')


def check(judges, *, noise, updates, reference):
  if judges.classify is None:
    raise ValueError('policy: not a classifier, as objectives.classify trains')
  numbers.check_number('objective.collect.noise', noise, least=0)


def check_loss(*, smoothing, reference):
  numbers.check_number('objective.loss.smoothing', smoothing, least=0, below=1)


def collect(*, noise):
  """images and labels -> Experience. noise: std added to the pixels, so that the classifier's
  verdict does not hang on details that a decoder never draws."""

  def prepare(params, frozen, batch, rng):
    image = batch['image'] + noise * jax.random.normal(rng, batch['image'].shape)
    return Experience(prompt=batch['label'], image=image)

  return one_program(prepare)


def loss(judges, params, frozen, batch, *, smoothing):
  """smoothing: share of the target spread over all classes."""
  logits_BV = judges.classify(params['policy'], batch.image)
  logp_BV = jax.nn.log_softmax(logits_BV, -1)
  chosen_B = jnp.take_along_axis(logp_BV, batch.prompt[:, None], -1)[:, 0]
  value = average(-(1 - smoothing) * chosen_B - smoothing * logp_BV.mean(-1))
  return value, {'loss': value, 'accuracy': average(logits_BV.argmax(-1) == batch.prompt)}
