"""Cross-entropy of a class: trains the small classifiers that serve as rewards and critics."""

import jax
import jax.numpy as jnp

from vargrl.metrics import average
from vargrl.types import Collect, Collected, Experience

FEATURES = ('label', 'image')  # what a batch of data must have


def check(models, *, noise, updates, reference):
  if noise < 0:
    raise ValueError(f'objective.collect.noise: {noise}, expected at least 0')


def check_loss(models, *, smoothing, reference):
  if not 0 <= smoothing < 1:
    raise ValueError(f'objective.loss.smoothing: {smoothing}, expected 0 to 1')


def collect(models, *, noise):
  """images and labels -> Experience. noise: std added to the pixels, so that the classifier's
  verdict does not hang on details that a decoder never draws."""

  def prepare(batch, rng):
    image = batch['image'] + noise * jax.random.normal(rng, batch['image'].shape)
    return Experience(label=batch['label'], image=image)

  def run(params, frozen, batch, rng, step, phase):
    return Collected(prepare(batch, rng), {})

  def programs(call, params, frozen, batch, rng):
    return [('', call('', jax.jit(prepare), batch, rng))]

  return Collect(run, programs)


def loss(models, params, frozen, batch, *, smoothing):
  """smoothing: share of the target spread over all classes."""
  logits_BV = models.classify(params['policy'], batch.image)
  logp_BV = jax.nn.log_softmax(logits_BV, -1)
  chosen_B = jnp.take_along_axis(logp_BV, batch.label[:, None], -1)[:, 0]
  value = average(-(1 - smoothing) * chosen_B - smoothing * logp_BV.mean(-1))
  return value, {'loss': value, 'accuracy': average(logits_BV.argmax(-1) == batch.label)}
