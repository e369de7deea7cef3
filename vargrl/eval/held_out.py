"""The objective's own metrics on a held-out split; every image counts once, nothing is random."""

import functools

from clu.metrics import Average
import jax
import jax.numpy as jnp
import numpy as np

from vargrl.eval import real
from vargrl.metrics import average
from vargrl.parallel import multihost, rows
from vargrl.types import bounds

BATCH = 64  # images on a device at once


def make(built, *, kind, dataset, split, size, crop, dir, limit):
  """The evaluator that yields the metrics of a `kind` of model on a split.

  kind: 'tokenizer' (`mse` of pixels in [-1, 1]; `usage`, the share of the codes that occur, also by
  scale), 'classify' (`accuracy`; `nll` in nats) or 'next_scale' (`nll`, also by scale, and
  `accuracy`, of a token). limit: the first so many images, 0 for all. Raises ValueError for a split
  that is not there or does not fit the model."""
  if kind not in KINDS:
    raise ValueError(f'kind: {kind!r} found, one of {sorted(KINDS)} expected')
  metrics, needed, features = KINDS[kind]
  record, function = needed
  if getattr(getattr(built, record), function, None) is None:
    raise ValueError(f"kind: {kind!r} found, but the run's {record} has no `{function}`")
  read = functools.cache(
    real.images(
      built,
      dataset=dataset,
      split=split,
      size=size,
      crop=crop,
      dir=dir,
      limit=limit,
      features=features,
    )
  )
  measure = jax.jit(
    lambda params, frozen, batch, weight_B: metrics(
      built, params, frozen, *rows.shard_rows((batch, weight_B))
    )
  )

  def evaluate(params, frozen, poll=None):
    images, found = read(), {}
    for row_B, counts_B in rows.batches(len(images['image']), BATCH, poll):
      batch = {name: x[row_B] for name, x in images.items()}
      for name, value in jax.tree.map(
        multihost.to_numpy, measure(params, frozen, batch, counts_B)
      ).items():
        found.setdefault(name, []).append(value)
    for name, values in found.items():
      yield name, merge(values)

  return evaluate


def merge(values):
  """Averages of all calls -> their mean; codes used in each call, [V] -> the share used in any."""
  if not isinstance(values[0], Average):
    return float(np.any(values, 0).mean())
  total, count = (sum(float(getattr(v, part)) for v in values) for part in ('total', 'count'))
  return total / count


def mean_by_row(x, weight_B):
  """Average over the rows that count; within a row first, so that no sum is longer than B."""
  return average(x.reshape(len(x), -1).mean(-1), weight_B)


def used_codes(t_BL, weight_B, vocab):
  """[V]: whether a code occurs in the rows that count."""
  t_BL = jnp.where(weight_B[:, None], t_BL, vocab)  # out of range, and dropped
  return jnp.zeros(vocab, bool).at[t_BL.reshape(-1)].set(True, mode='drop')


def tokenizer(built, params, frozen, batch, weight_B):
  out, _, t_BL = built.tokenizer.reconstruct(params['policy'], batch['image'], None)
  c = built.policy.config
  vocab = c.vocab if t_BL.ndim == 2 else 2 * c.bits  # of bits, the values that each of them has
  if t_BL.ndim == 3:
    t_BL += 2 * jnp.arange(c.bits)[None, None]
  scales = [
    used_codes(t_BL[:, a:b].reshape(len(t_BL), -1), weight_B, vocab) for a, b in bounds(c.scales)
  ]
  return {
    'mse': mean_by_row((out.clip(-1, 1) - batch['image']) ** 2, weight_B),
    'usage': jnp.stack(scales).any(0),
  } | {f'usage/scale_{i}': used_V for i, used_V in enumerate(scales)}


def classify(built, params, frozen, batch, weight_B):
  logp_BV = jax.nn.log_softmax(built.judges.classify(params['policy'], batch['image']), -1)
  chosen_B1 = jnp.take_along_axis(logp_BV, batch['label'][:, None], -1)
  return {
    'accuracy': average(logp_BV.argmax(-1) == batch['label'], weight_B),
    'nll': mean_by_row(-chosen_B1, weight_B),
  }


def next_scale(built, params, frozen, batch, weight_B):
  tokens_BL = built.tokenizer.encode(frozen, batch['image'])
  (span,) = built.policy.spans
  data = {span.name: {'tokens': tokens_BL[:, None]}}
  scores = built.policy.score(params['policy'], frozen, batch['label'], data)
  out = {
    'nll': mean_by_row(-scores.logp, weight_B),
    'accuracy': mean_by_row(scores.accuracy, weight_B),
  }
  for i, (a, b) in enumerate(bounds(built.policy.config.scales)):
    out[f'nll/scale_{i}'] = mean_by_row(-scores.logp[..., a:b], weight_B)
  return out


# name: (metrics, the record and its function that they need, the features that they read)
KINDS = {
  'tokenizer': (tokenizer, ('tokenizer', 'reconstruct'), ('image',)),
  'classify': (classify, ('judges', 'classify'), ('image', 'label')),
  'next_scale': (next_scale, ('policy', 'score'), ('image', 'label')),
}
