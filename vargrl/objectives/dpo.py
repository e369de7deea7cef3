"""DPO (https://arxiv.org/abs/2305.18290) on given pairs: R = 2 rows of a prompt, chosen first.

A data set has pictures or, where a policy drew them (commands/pairs.py), tokens; of a policy that
says text too, the texts of both answers, as in VARGPT-v1.1 (https://arxiv.org/abs/2504.02949).
"""

import jax
import jax.numpy as jnp

from vargrl.io import numbers
from vargrl.metrics import average
from vargrl.objectives import prepare
from vargrl.objectives import terms as settings
from vargrl.types import Experience, Pass

KINDS = ('sigmoid', 'sigmoid_norm', 'ipo', 'hinge')
ROWS_TOGETHER = 2  # of a prompt, which stay together in all parts of a batch
SIDES = ('chosen', 'rejected')


def passes(policy, collect):
  """Forward passes of a step, see types.Pass."""
  return {'': {'prepare': [Pass('reference', 2)], 'update': [Pass('policy', 2, learned=True)]}}


def features(policy):
  """What a batch of data must have, besides what prompts are made of."""
  images = SIDES if prepare.has_images(policy) else ()
  texts = tuple(f'{side}_text' for side in SIDES) if policy.texts else ()
  return ('label', *images, *texts)


def check(policy, tokenizer, *, flip, flip_scales, same_flips, updates, reference):
  names = tuple(span.name for span in policy.spans)
  if names not in (('image',), ('text',), ('text', 'image')):
    raise ValueError(
      f'rollout.plan: segments {names}, expected text (data.max_answer), one image, or both in '
      'this order by objectives.dpo'
    )
  prepare.check_flips(tokenizer, flip=flip, flip_scales=flip_scales)


def collect(policy, tokenizer, *, flip, flip_scales, same_flips):
  """{'chosen', 'rejected'} [P, y, x, c] or tokens [P, L, ..], and for text their tokens
  {'chosen_text', 'rejected_text'} [P, n] -> Experience with the reference's log-probabilities.

  flip, flip_scales: bitwise self-correction, see prepare.bit_flips. same_flips: a pair has the same
  flips, and so have policy and reference: what is compared differs in nothing but pictures and
  weights. Without it each of the four has its own, and labels of its own, as in the released code.
  """
  lengths = {span.name: span.stop - span.start for span in policy.spans}

  def images(frozen, batch, rng, numbers):
    """{'tokens', maybe 'input_tokens'} [P, 2, L, ..]; the flips of chosen and rejected are those of
    these numbers."""
    found = []
    for side, n in zip(SIDES, numbers):
      if batch[side].ndim == 4:
        key = jax.random.fold_in(rng, n)
        options = dict(flip=flip, flip_scales=flip_scales)
        found.append(prepare.encode(policy, tokenizer, frozen, batch[side], key, **options))
      else:
        found.append({'tokens': given_tokens(batch[side], lengths['image'])})
    return jax.tree.map(lambda *pair: jnp.stack(pair, 1), *found)

  def prepared(params, frozen, batch, rng):
    data, theirs = {}, {}
    if 'text' in lengths:
      tokens = jnp.stack([batch[f'{side}_text'] for side in SIDES], 1)
      data['text'] = theirs['text'] = {'tokens': padded(tokens, lengths['text'])}
    if 'image' in lengths:
      data['image'] = images(frozen, batch, rng, (0, 0) if same_flips else (0, 1))
      theirs['image'] = data['image'] if same_flips else images(frozen, batch, rng, (2, 3))
    prompt_P = policy.prompt(batch)
    target_key = jax.random.fold_in(rng, 4)
    theirs = prepare.target_rows(policy, theirs, target_key)['data']
    scores = policy.score(policy.reference(params, frozen), frozen, prompt_P, theirs)
    rows = prepare.target_rows(policy, data, target_key)
    return Experience(prompt=prompt_P, ref_logp=scores.logp, **rows)

  return prepare.one_program(jax.jit(prepared))


def given_tokens(tokens, expected):
  """Tokens of pictures that a data set has, as they are; ValueError for another length."""
  if tokens.shape[1] != expected:
    raise ValueError(f'data: {tokens.shape[1]} tokens an image found, {expected} in the model')
  return tokens


def padded(tokens, length):
  """Texts [P, 2, n] filled up with 0 to the length of their segment."""
  if tokens.shape[-1] > length:
    raise ValueError(
      f'data.max_answer: {tokens.shape[-1]} tokens, expected at most {length} (max_tokens of the '
      'text)'
    )
  return jnp.pad(tokens, ((0, 0), (0, 0), (0, length - tokens.shape[-1])))


def check_loss(policy, *, kind, beta, smoothing, scale_weight_power, segments, reference):
  if kind not in KINDS:
    raise ValueError(f'objective.loss.kind: {kind!r}, expected one of {KINDS}')
  numbers.check_number('objective.loss.beta', beta, above=0)
  numbers.check_number('objective.loss.smoothing', smoothing, least=0, below=0.5)
  if not reference:
    raise ValueError('objective: dpo needs a reference in the config')
  scalars = dict(weight=1.0, scale_weight_power=scale_weight_power)
  settings.by_segment(policy.spans, segments, scalars)  # of the table's settings these alone count
  if not row_weights(policy, scale_weight_power, segments).weight_A.any():
    raise ValueError('objective.loss.segments: every weight is 0, expected one that is not')


def row_weights(policy, scale_weight_power, segments):
  """The Terms of a pair's rows, of which only weights count."""
  return settings.terms(
    policy.spans,
    policy.spans[-1].stop,
    segments=segments,
    weight=1.0,
    scale_weight_power=scale_weight_power,
    first_scale=0,
    last_scale=-1,
    clip=0.0,
    clip_high=0.0,
    penalty=0.0,
    estimator='exact',
    level='token',
  )


def row_sums(log_ratio, terms, mask_PRA, *, mean):
  """[P, R]: the log-ratios of a row's actions by weight. mean: each segment's weighted mean times
  its weight; else its sum, which is that times its number of actions."""
  weight_PRA = settings.masked_weights(terms, mask_PRA)
  if mean:
    return (log_ratio * weight_PRA).sum(-1)
  total = 0.0
  for span in terms.spans:
    at = slice(span.start, span.stop)
    size = span.stop - span.start if mask_PRA is None else mask_PRA[..., at].sum(-1)
    total += size * (log_ratio[..., at] * weight_PRA[..., at]).sum(-1)
  return total


def pair_loss(margin_P, *, kind, beta, smoothing):
  """The loss of each pair, of the margin by which the chosen row's log-ratio is higher."""
  if kind == 'ipo':
    return (margin_P - 1 / (2 * beta)) ** 2
  if kind == 'hinge':
    return jax.nn.relu(1 - beta * margin_P)
  return -(1 - smoothing) * jax.nn.log_sigmoid(beta * margin_P) - smoothing * jax.nn.log_sigmoid(
    -beta * margin_P
  )


def loss(policy, params, frozen, batch, *, kind, beta, smoothing, scale_weight_power, segments):
  """kind: 'sigmoid' sums the log-ratios of all actions; 'sigmoid_norm' and 'ipo' take their
  weighted mean (https://arxiv.org/abs/2310.12036), for sums over hundreds of tokens saturate;
  'hinge' is relu(1 - beta margin). scale_weight_power and segments weigh as in GRPO. Where there is
  a mask, its actions alone count."""
  scores = policy.score(params['policy'], frozen, batch.prompt, batch.data)
  terms, mask = row_weights(policy, scale_weight_power, segments), batch.loss_mask
  counted = settings.masked_weights(terms, mask) > 0
  mean = kind in ('sigmoid_norm', 'ipo')
  chosen_P, rejected_P = row_sums(scores.logp - batch.ref_logp, terms, mask, mean=mean).T
  margin_P = chosen_P - rejected_P
  each_P = pair_loss(margin_P, kind=kind, beta=beta, smoothing=smoothing)
  # A pair of which neither is better has no weight.
  weight_P = None if batch.row_mask is None else batch.row_mask[:, 0]
  of_pairs = lambda x: average(jax.lax.stop_gradient(x), weight_P)
  value = average(each_P, weight_P)
  logp_PR = (scores.logp * counted).sum(-1)
  return value, {
    'loss': value,
    'rewards/margins': of_pairs(beta * margin_P),
    'rewards/accuracies': of_pairs(margin_P > 0),
    'rewards/chosen': of_pairs(beta * chosen_P),
    'rewards/rejected': of_pairs(beta * rejected_P),
    'logps/chosen': of_pairs(logp_PR[:, 0]),
    'logps/rejected': of_pairs(logp_PR[:, 1]),
  }
