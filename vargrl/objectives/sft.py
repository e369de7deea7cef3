"""Cross-entropy of given data: pretraining on images, and supervised tuning of any policy.

Rows are one picture and its prompt (VAR, Infinity), or packed: several dialogues of text and
pictures (vargrl/data/dialogue/train.py; https://arxiv.org/abs/2504.02949).
"""

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.io import numbers
from vargrl.metrics import average
from vargrl.objectives import prepare, reduce
from vargrl.objectives import terms as settings
from vargrl.types import Experience, Pass


def passes(policy, collect):
  """Forward passes of a step, see types.Pass."""
  return {'': {'update': [Pass('policy', 1, learned=True)]}}


def is_packed(policy):
  """Whether rows are packed dialogues: of any policy that reads and says text."""
  return bool(policy.texts)


def features(policy):
  """What a batch of data must have, besides what prompts are made of."""
  if not is_packed(policy):
    return ('image', *(() if policy.features else ('label',)))
  return ('loss_mask', *(('image',) if prepare.has_images(policy) else ()))


def check(
  policy,
  tokenizer,
  *,
  prompt_drop,
  condition_drop,
  drop_path,
  flip,
  flip_scales,
  updates,
  reference,
):
  for name, value in (('prompt_drop', prompt_drop), ('condition_drop', condition_drop)):
    numbers.check_number(f'objective.collect.{name}', value, least=0, most=1)
  numbers.check_number('objective.collect.drop_path', drop_path, least=0, below=1)
  if is_packed(policy) and prompt_drop:
    raise ValueError(
      f'objective.collect.prompt_drop: {prompt_drop}, expected 0.0: prompts of dialogues are '
      'dropped '
      'by data.prompt_drop'
    )
  if prompt_drop and policy.unconditional is None:
    raise ValueError(
      f'objective.collect.prompt_drop: {prompt_drop}, expected 0.0 for a policy without an '
      'unconditional prompt'
    )
  if condition_drop and not (is_packed(policy) and prepare.has_images(policy)):
    raise ValueError(
      f'objective.collect.condition_drop: {condition_drop}, expected 0.0 for a policy whose '
      'pictures '
      'have no condition besides the text before them'
    )
  prepare.check_flips(tokenizer, flip=flip, flip_scales=flip_scales)


def check_loss(policy, *, scale_weight_power, segments, reference):
  table = settings.by_segment(
    policy.spans, segments, dict(weight=1.0, scale_weight_power=scale_weight_power)
  )
  for span, s in zip(policy.spans, table):
    numbers.check_number(f'objective.loss ({span.name}).weight', s['weight'], least=0)
    picture_weights(span, s)
  if not any(s['weight'] for s in table):
    raise ValueError('objective.loss.segments: every weight is 0, expected one that is not')


def collect(policy, tokenizer, *, prompt_drop, condition_drop, drop_path, flip, flip_scales):
  """Data -> Experience: tokens, and everything random drawn here, as data.

  prompt_drop: share of prompts replaced by the unconditional one. condition_drop: share of the
  pictures of packed rows that are drawn without the decoder's condition, which is what the released
  code drops. drop_path, flip, flip_scales: see prepare.py. Of packed rows loss_mask holds, of all
  that counts in the whole batch, the share of each token and picture: sums over them are means.
  """
  flips = dict(flip=flip, flip_scales=flip_scales)

  def one_picture(params, frozen, batch, rng):
    drop_key, path_key, flip_key = jax.random.split(rng, 3)
    data = prepare.encode(policy, tokenizer, frozen, batch['image'], flip_key, **flips)
    B = len(batch['image'])
    data |= prepare.sample_drop_path(path_key, drop_path, B, policy.config.depth)
    prompt_P = prepare.drop_prompts(policy, drop_key, policy.prompt(batch), prompt_drop)
    (span,) = policy.spans
    data_PR = {span.name: jax.tree.map(lambda x: x[:, None], data)}
    rows = prepare.target_rows(policy, data_PR, jax.random.fold_in(rng, 3))
    return Experience(prompt=prompt_P, **rows)

  def packed(params, frozen, batch, rng):
    drop_key, path_key, flip_key = jax.random.split(rng, 3)
    B = len(batch['tokens'])
    share = lambda x: x * (B / jnp.maximum(x.sum(), 1))
    data = {'text': {'tokens': batch['tokens'][:, None]}}
    weights = [share(batch['loss_mask'])]
    if prepare.has_images(policy):
      I = batch['image'].shape[1]
      flat = batch['image'].reshape(B * I, *batch['image'].shape[2:])
      found = prepare.encode(policy, tokenizer, frozen, flat, flip_key, **flips)
      data['image'] = jax.tree.map(lambda x: x.reshape(B, 1, -1, *x.shape[2:]), found)
      paths = prepare.sample_drop_path(path_key, drop_path, B * I, policy.config.depth)
      data['image'] |= jax.tree.map(lambda x: x.reshape(B, 1, I, *x.shape[1:]), paths)
      dropped_BI = jax.random.uniform(drop_key, (B, I)) < condition_drop
      data['image']['drop_condition'] = dropped_BI[:, None]
      drawn_BI = share((batch['image_start'] >= 0).astype(jnp.float32))
      weights.append(jnp.repeat(drawn_BI, data['image']['tokens'].shape[2] // I, 1))
    prompt_P = policy.prompt(batch)
    return Experience(prompt=prompt_P, data=data, loss_mask=jnp.concatenate(weights, 1)[:, None])

  return prepare.one_program(jax.jit(packed if is_packed(policy) else one_picture))


def picture_weights(span, s):
  """float32 numpy: weights of a span's actions that sum to 1 over each picture; 1 for each token of
  a text."""
  power = s['scale_weight_power']
  w = settings.part_weights(span, scale_weight_power=power, first_scale=0, last_scale=-1)
  if not span.picture:
    return w.astype(np.float32)
  return (w / w.sum() * settings.picture_count(span)).astype(np.float32)


def loss(policy, params, frozen, batch, *, scale_weight_power, segments):
  """Mean nats of a choice (a token, or a bit of one): of each segment times its weight, tokens of a
  picture weighed by scale; scale_weight_power = 0 weighs all alike, 0.5 as Infinity does."""
  scores = policy.score(params['policy'], frozen, batch.prompt, batch.data)
  scalars = dict(weight=1.0, scale_weight_power=scale_weight_power)
  table = settings.by_segment(policy.spans, segments, scalars)
  alone, total, out = len(policy.spans) == 1, 0.0, {}
  for span, s in zip(policy.spans, table):
    at = slice(span.start, span.stop)
    nll = -scores.logp[..., at] / span.choices
    weight = jnp.asarray(picture_weights(span, s))[None, None]
    counted = None
    if batch.loss_mask is not None:
      weight = weight * batch.loss_mask[..., at]
      counted = (batch.loss_mask[..., at] > 0).astype(jnp.float32)
    value = (nll * weight).sum(-1)
    total += value if s['weight'] == 1 else s['weight'] * value
    name = (lambda what: what) if alone else (lambda what, span=span: f'{what}/{span.name}')
    if not alone:
      out[name('loss')] = average(value)
    out[name('accuracy')] = average(scores.accuracy[..., at], counted)
    out[name('entropy')] = average(scores.entropy[..., at] / span.choices, counted)
    for label, part in reduce.metric_groups([span._replace(start=0, stop=len(span.part_A))]):
      if span.parts:
        mask = None if counted is None else counted[..., part]
        out[f'nll/{label}'] = average(nll[..., part], mask)
  value = average(total)
  return value, out | {'loss': value}
