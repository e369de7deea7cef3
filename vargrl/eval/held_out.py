"""The objective's own loss and metrics on a held-out split, without anything random."""
from functools import partial

import jax
import numpy as np

from vargrl.data import source
from vargrl.metrics import average
from vargrl.types import Experience, bounds


def make(models, *, kind, dataset, split, size, crop, dir, limit):
  """kind: 'tokenizer' (mse, usage), 'classify' (accuracy, nll) or 'next_scale' (nll, accuracy, by scale)."""
  kinds = {'tokenizer': tokenizer, 'classify': classify, 'next_scale': next_scale}
  if kind not in kinds: raise ValueError(f'eval.held_out: kind={kind!r}, expected one of {sorted(kinds)}')
  measure, memory = jax.jit(partial(kinds[kind], models)), {}

  def evaluate(params, frozen):
    if not memory:
      memory.update(source.read(dataset=dataset, split=split, size=size, crop=crop, dir=dir, limit=limit))
    totals, n = {}, len(memory['image'])
    for start in range(0, n - n % min(n, 64), min(n, 64)):  # whole batches: one shape, one compile
      part = {k: v[start:start + min(n, 64)] for k, v in memory.items()}
      for name, value in jax.device_get(measure(params, frozen, part)).items():
        totals.setdefault(name, []).append(value)
    for name, values in totals.items():
      yield name, float(np.sum([v.total for v in values]) / np.sum([v.count for v in values]))
  return evaluate


def tokenizer(models, params, frozen, batch):
  out, _, t_BL = models.reconstruct(params['policy'], batch['image'])
  used_V = jax.numpy.zeros(models.config.vocab).at[t_BL.reshape(-1)].set(1)
  return {'mse': average((out.clip(-1, 1) - batch['image']) ** 2), 'usage': average(used_V)}


def classify(models, params, frozen, batch):
  logp_BV = jax.nn.log_softmax(models.classify(params['policy'], batch['image']), -1)
  chosen_B = jax.numpy.take_along_axis(logp_BV, batch['label'][:, None], -1)
  return {'accuracy': average(logp_BV.argmax(-1) == batch['label']), 'nll': average(-chosen_B)}


def next_scale(models, params, frozen, batch):
  tokens_BL = models.encode(frozen, batch['image'])
  scores = models.logprobs(params['policy'], frozen,
                           Experience(label=batch['label'], tokens=tokens_BL[:, None]))
  out = {'nll': average(-scores.logp), 'accuracy': average(scores.hit)}
  for i, (a, b) in enumerate(bounds(models.scales)):
    out[f'nll/scale_{i}'] = average(-scores.logp[..., a:b])
  return out
