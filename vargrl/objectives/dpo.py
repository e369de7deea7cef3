"""DPO (https://arxiv.org/abs/2305.18290) on pairs of images: R = 2 rows of a prompt, chosen first.

A data set has them as pictures or, where a policy drew them (vargrl/commands/pairs.py), as tokens.
"""

from functools import partial

import jax
import jax.numpy as jnp

from vargrl.metrics import average
from vargrl.objectives import reduce
from vargrl.types import Collect, Collected, Experience, offsets

KINDS = ('sigmoid', 'sigmoid_norm', 'ipo', 'hinge')
FEATURES = (
  'label',
  'chosen',
  'rejected',
)  # what a batch of data must have, beside what a prompt is made of
ROWS = 2  # of a prompt, never cut


def collect(models):
  """{'chosen', 'rejected', what a prompt is made of} -> Experience with the reference's
  log-probabilities.
  """

  @jax.jit
  def prepare(params, frozen, batch):
    tokens = [tokens_of(models, frozen, batch[name]) for name in ('chosen', 'rejected')]
    experience = Experience(label=models.prompt(batch), tokens=jnp.stack(tokens, 1))
    scores = models.logprobs(models.reference(params, frozen), frozen, experience)
    return experience.replace(reference=scores.logp)

  def run(params, frozen, batch, rng, step, phase):
    return Collected(prepare(params, frozen, batch), {})

  def programs(call, params, frozen, batch, rng):
    return [('', call('prepare', prepare, params, frozen, batch))]

  return Collect(run, programs)


def tokens_of(models, frozen, x):
  """Pictures [P, y, x, c] or tokens [P, L] or [P, L, e] -> t_PL."""
  if x.ndim == 4:
    return models.encode(frozen, x)
  wanted = offsets(models.scales)[-1]
  if x.shape[1] != wanted:
    raise ValueError(f'data: {x.shape[1]} tokens an image found, {wanted} in the model')
  return x


def check_loss(models, *, kind, beta, smoothing, alpha, reference):
  if kind not in KINDS:
    raise ValueError(f'objective.loss.kind: {kind!r}, expected one of {KINDS}')
  if beta <= 0:
    raise ValueError(f'objective.loss.beta: {beta}, expected a positive number')
  if not 0 <= smoothing < 0.5:
    raise ValueError(f'objective.loss.smoothing: {smoothing}, expected 0 <= smoothing < 0.5')
  if not reference:
    raise ValueError('objective: dpo needs a reference in the config')


def loss(models, params, frozen, batch, *, kind, beta, smoothing, alpha):
  """kind: 'sigmoid' sums the log-ratios of all tokens; 'sigmoid_norm' and 'ipo' take their weighted
  mean (https://arxiv.org/abs/2310.12036), for sums over hundreds of tokens saturate; 'hinge' is
  relu(1 - beta margin). alpha weighs scales as in GRPO. Where there is a mask, its tokens alone
  count."""
  scores = models.logprobs(params['policy'], frozen, batch)
  L = scores.logp.shape[-1]
  weight_11L = reduce.weights(models, L, alpha=alpha, first=0, last=len(models.scales) - 1)[
    None, None
  ]
  weight_PRL = reduce.masked(weight_11L, batch.mask)
  mean_PR = ((scores.logp - batch.reference) * weight_PRL).sum(-1)
  size = 1 if kind in ('sigmoid_norm', 'ipo') else L if batch.mask is None else batch.mask.sum(-1)
  chosen_P, rejected_P = (size * mean_PR).T
  margin_P = chosen_P - rejected_P
  if kind == 'ipo':
    each_P = (margin_P - 1 / (2 * beta)) ** 2
  elif kind == 'hinge':
    each_P = jax.nn.relu(1 - beta * margin_P)
  else:
    each_P = -(1 - smoothing) * jax.nn.log_sigmoid(
      beta * margin_P
    ) - smoothing * jax.nn.log_sigmoid(-beta * margin_P)
  weight_P = (
    None if batch.weight is None else batch.weight[:, 0]
  )  # a pair of which neither is better has none
  told, stop = partial(average, weight=weight_P), reduce.stop
  value = told(each_P)
  logp_PR = (scores.logp if batch.mask is None else scores.logp * batch.mask).sum(-1)
  return value, {
    'loss': value,
    'rewards/margins': told(stop(beta * margin_P)),
    'rewards/accuracies': told(stop(margin_P > 0)),
    'rewards/chosen': told(stop(beta * chosen_P)),
    'rewards/rejected': told(stop(beta * rejected_P)),
    'logps/chosen': told(stop(logp_PR[:, 0])),
    'logps/rejected': told(stop(logp_PR[:, 1])),
  }
