"""Cross-entropy of given tokens: pretraining on images, and supervised tuning."""

import jax
import jax.numpy as jnp

from vargrl.metrics import average
from vargrl.objectives import reduce
from vargrl.types import Collect, Collected, Experience, bounds

FEATURES = ('label', 'image')  # what a batch of data must have


def check(models, *, label_drop, drop_path, updates, reference):
  if not 0 <= label_drop <= 1:
    raise ValueError(f'objective.collect.label_drop: {label_drop}, expected 0 to 1')
  if not 0 <= drop_path < 1:
    raise ValueError(f'objective.collect.drop_path: {drop_path}, expected 0 <= drop_path < 1')


def collect(models, *, label_drop, drop_path):
  """images and labels -> Experience: tokens, and everything random drawn here, as data.

  label_drop: share of labels replaced by the unconditional class. drop_path: rate of the last
  layer, rising linearly from 0 at the first (https://arxiv.org/abs/1603.09382), both branches drawn
  apart."""
  layers = models.config.depth

  @jax.jit
  def prepare(frozen, batch, rng):
    tokens_BL = models.encode(frozen, batch['image'])
    drop_key, keep_key = jax.random.split(rng)
    B = len(tokens_BL)
    dropped_B = jax.random.uniform(drop_key, (B,)) < label_drop
    label_B = jnp.where(dropped_B, models.classes, batch['label'])
    return Experience(
      label=label_B, tokens=tokens_BL[:, None], keep=kept(keep_key, drop_path, B, layers)
    )

  def run(params, frozen, batch, rng, step, phase):
    return Collected(prepare(frozen, batch, rng), {})

  def programs(call, params, frozen, batch, rng):
    return [('', call('prepare', prepare, frozen, batch, rng))]

  return Collect(run, programs)


def kept(key, drop_path, B, layers):
  """Drop-path factors [B, 1, X, 2], None where nothing is dropped."""
  if not drop_path:
    return None
  kept_11X1 = 1 - jnp.linspace(0, drop_path, layers)[None, None, :, None]
  return (jax.random.uniform(key, (B, 1, layers, 2)) < kept_11X1) / kept_11X1


def loss(models, params, frozen, batch, *, alpha):
  """Mean over rows of the weighted sum over tokens; alpha = 0 weighs every token 1 / L."""
  return of_scores(models, models.logprobs(params['policy'], frozen, batch), alpha)


def of_scores(models, scores, alpha):
  weight_L = reduce.token_weights(models.scales, alpha=alpha, first=0, last=len(models.scales) - 1)
  value = average((-scores.logp * weight_L[None, None]).sum(-1))
  metrics = {'loss': value, 'accuracy': average(scores.hit), 'entropy': average(scores.entropy)}
  for i, (a, b) in enumerate(bounds(models.scales)):
    metrics[f'nll/scale_{i}'] = average(-scores.logp[..., a:b])
  return value, metrics
