"""GRPO (https://arxiv.org/abs/2402.03300) and its corrections, for any policy that has
log-probabilities.

One group = the R rollouts of a prompt. One trajectory = one image; every token shares its
advantage."""

import jax
import jax.numpy as jnp

from vargrl.objectives import group

FEATURES, check_loss, loss = group.FEATURES, group.check_loss, group.loss


def check(models, *, mask, rewards, pool, **options):
  group.check(**options)


def collect(models, *, rollouts, old, std, eps, kl_reward, combine, mask, rewards, pool):
  """prompts -> Experience of P x R rollouts with their group advantages.

  old: whose log-probabilities the ratio is against: 'trainer' recomputes them, 'sampler' trusts the
  rollout's, 'now' takes the present policy's (one update per batch). kl_reward: nats of logp - ref,
  summed over the tokens, times this, are taken from the reward. combine: 'sum' adds the rewards by
  weight, 'normalize' divides each by its group's deviation before; `std` then applies to the sum.
  mask: the pixels that the reward is about (models.mask), {} for all. `rewards` and `pool` made
  models.score."""

  @jax.jit
  def sample(policy, frozen, prompt_P, rng):
    out = models.generate(
      policy, frozen, prompt_P, models.keys(rng, group.count(prompt_P), rollouts)
    )
    return group.images(models, out), out

  plan = group.Plan(sample, value=lambda r_PRK: jnp.nanmean(r_PRK, -1))
  return group.collector(
    models,
    {'': (plan, {})},
    lambda step: '',
    old=old,
    std=std,
    eps=eps,
    kl_reward=kl_reward,
    combine=combine,
    mask=mask,
    rewards=rewards,
  )
