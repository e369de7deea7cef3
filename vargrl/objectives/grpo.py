"""GRPO (https://arxiv.org/abs/2402.03300) and its corrections, for any policy that has
log-probabilities: text, pictures, or both in turn.

A step: (1) every prompt is answered by R rollouts; (2) the rewards judge the samples; (3) a row's
advantage is how much better than its group it is; (4) updates raise the log-probability of what
rows with a positive advantage did, within a trust region, held by a KL penalty.
"""

import jax
import jax.numpy as jnp

from vargrl.objectives import collect as groups
from vargrl.objectives import surrogate
from vargrl.types import Pass

features, check_loss, loss = groups.features, surrogate.check_loss, surrogate.loss


def passes(policy, collect):
  """Forward passes of a step, see types.Pass."""
  R = collect.rollouts
  return {'': {'rollout': [Pass('policy', R, sampled=True)]} | groups.passes(collect, R)}


def check(policy, *, mask, rewards, pool, **options):
  groups.check(**options)
  if mask and (len(policy.spans) > 1 or not policy.spans[0].parts):
    raise ValueError(
      f'objective.collect.mask: {dict(mask)}, expected {{}} for a policy of the segments '
      f'{[s.name for s in policy.spans]}'
    )


def collect(
  policy,
  tokenizer,
  scorer,
  *,
  rollouts,
  old_logp,
  std,
  eps,
  kl_reward,
  reward_mix,
  resample,
  mask,
  rewards,
  pool,
):
  """prompts -> Experience of P x R rollouts with their group advantages.

  scorer: the Rewards that `rewards` and `pool` configure. old_logp: whose log-probabilities the
  ratio is against: 'trainer' recomputes them, 'sampler' trusts the rollout's, 'current' takes the
  present policy's (one update per batch). std: what centred rewards are divided by, see
  reduce.advantages. kl_reward: nats of logp - ref_logp, summed over the actions, times this, are
  taken from the reward. reward_mix: 'sum' adds the rewards by weight, 'normalize' divides each by
  its group's deviation before; `std` then applies to the sum. resample: as long as some group's
  rewards are all equal, up to so many times, the batch is drawn and rewarded again, and such groups
  take the new rows (https://arxiv.org/abs/2503.14476). mask: the pixels that the reward is about,
  {} for all."""

  @jax.jit
  def sample(weights, frozen, prompt_P, rng):
    key_P, keys_PR = policy.keys(rng, groups.count(prompt_P), rollouts)
    out = policy.generate(weights, frozen, prompt_P, key_P, keys_PR)
    return policy.latents(out.data, 2), out

  kind = groups.StepKind(sample, value=lambda r_PRK: jnp.nanmean(r_PRK, -1))
  return groups.make_collect(
    policy,
    tokenizer,
    scorer,
    {'': kind},
    lambda step: '',
    old_logp=old_logp,
    std=std,
    eps=eps,
    kl_reward=kl_reward,
    reward_mix=reward_mix,
    resample=resample,
    mask=mask,
    rewards_config=rewards,
  )
