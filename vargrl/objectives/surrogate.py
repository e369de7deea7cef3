"""The clipped surrogate with a penalty, for any plan of segments: the loss of GRPO and VMR."""

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.metrics import average
from vargrl.objectives import reduce
from vargrl.objectives import terms as settings


def check_loss(policy, *, segments, reference, **scalars):
  settings.check(policy.spans, segments=segments, reference=reference, weight=1.0, **scalars)


def loss(
  policy,
  params,
  frozen,
  batch,
  *,
  level,
  clip,
  clip_high,
  penalty,
  estimator,
  scale_weight_power,
  first_scale,
  last_scale,
  segments,
):
  """The clipped surrogate minus the penalty, summed over actions by weight, averaged over rows.

  The surrogate is of the actions in loss_mask, the penalty of those in kl_mask, of all that have a
  weight without one: actions outside the spatial mask get no policy gradient but still pay the KL
  penalty. The weights of either sum to each segment's weight in each row. See terms.py for the
  settings, reduce.py for levels and estimators.
  """
  scores = policy.score(
    params['policy'], frozen, batch.prompt, batch.data, policy.reference(params, frozen)
  )
  A = scores.logp.shape[-1]
  t = settings.terms(
    policy.spans,
    A,
    weight=1.0,
    level=level,
    clip=clip,
    clip_high=clip_high,
    penalty=penalty,
    estimator=estimator,
    scale_weight_power=scale_weight_power,
    first_scale=first_scale,
    last_scale=last_scale,
    segments=segments,
  )
  policy_weight = settings.masked_weights(t, batch.loss_mask)
  policy_mask = (policy_weight > 0).astype(np.float32)
  row_mask, advantage_PR1 = batch.row_mask, batch.advantage[..., None]

  old_logp = jax.lax.stop_gradient(scores.logp) if batch.old_logp is None else batch.old_logp
  d_PRA = jnp.clip(scores.logp - old_logp, -20, 20)
  log_ratio = reduce.log_ratio(d_PRA, policy_mask, t)
  low_11A, high_11A, penalty_11A = (x[None, None] for x in (t.low_A, t.high_A, t.penalty_A))
  gain, low, high = reduce.clip_surrogate(log_ratio, advantage_PR1, low=low_11A, high=high_11A)
  term = -gain * policy_weight
  if t.penalty_A.any():
    # k3_is weighs each action by its own ratio, whatever the level of the surrogate's.
    penalties = reduce.penalty(scores, d_PRA, t)
    term += jnp.asarray(penalty_11A) * penalties * settings.masked_weights(t, batch.kl_mask)
  value = average(term.sum(-1), row_mask)
  change = jnp.expm1(log_ratio)
  return value, {'loss': value} | metrics(scores, batch, t, d_PRA, change, low, high, policy_mask)


def metrics(scores, batch, t, d_PRA, change, low, high, policy_mask):
  """What is reported of an update. change: ratio - 1."""
  stop, row_mask = jax.lax.stop_gradient, batch.row_mask
  mask_PRA = row_mask[..., None] * policy_mask
  of_action = lambda x: average(stop(x), mask_PRA)
  out = {
    'ratio': of_action(1 + change),
    'entropy': of_action(scores.entropy),
    'ratio/abs_log': of_action(abs(d_PRA)),
    'clip_ratio/low_mean': of_action(low),
    'clip_ratio/high_mean': of_action(high),
  }
  families = {'entropy': scores.entropy, 'ratio_dev': abs(change), 'clip': low | high}
  inside = jnp.ones_like(d_PRA) if batch.loss_mask is None else batch.loss_mask
  if scores.penalty is not None:
    families['kl'] = scores.penalty
    # Nats of a row, of the actions in the mask.
    out['kl'] = average(stop((scores.penalty * inside).sum(-1)), row_mask)
    if batch.loss_mask is not None:
      out['kl/image'] = average(stop(scores.penalty.sum(-1)), row_mask)
  for name, x_PRA in families.items():
    # one without an action in the mask has no value
    for label, at in reduce.metric_groups(t.spans):
      out[f'{name}/{label}'] = average(stop(x_PRA[..., at]), row_mask[..., None] * inside[..., at])
  return out
