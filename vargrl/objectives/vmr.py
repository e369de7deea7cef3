"""VMR, the value as middle return (https://arxiv.org/abs/2601.02256), on top of GRPO.

The scales of an image are split in two. A prefix step trains the first `split` of them: each of a
prompt's prefixes is continued K times, and what it is worth is the soft value of its continuations'
rewards. A suffix step trains the others: the rows of a group go on from one prefix, and the reward
is their own. Both have their own group advantages; the fine scales, which have most of the tokens,
no longer speak for the coarse ones."""

from functools import partial

import jax

from vargrl.objectives import group, reduce
from vargrl.types import offsets

FEATURES, loss = group.FEATURES, group.loss


def check(
  models, *, split, continuations, eta, prefix_steps, suffix_steps, mask, rewards, pool, **options
):
  group.check(**options)
  count = len(models.scales)
  if not 1 <= split < count:
    raise ValueError(
      f'objective.collect.split: {split} of {count} scales, expected 1 to {count - 1}'
    )
  if continuations < 1:
    raise ValueError(
      f'objective.collect.continuations: {continuations} of each prefix, expected at least 1'
    )
  if not eta > 0:
    raise ValueError(f'objective.collect.eta: {eta}, expected a positive number')
  if min(prefix_steps, suffix_steps) < 0 or prefix_steps + suffix_steps < 1:
    raise ValueError(
      f'objective.collect: prefix_steps={prefix_steps}, suffix_steps={suffix_steps}; expected '
      'neither below 0 and not both 0'
    )


def check_loss(models, *, first, last, **options):
  group.check_loss(models, first=first, last=last, **options)
  if (first, last) != (0, len(models.scales) - 1):
    raise ValueError(
      f'objective.loss: first={first}, last={last}; expected 0 and {len(models.scales) - 1}, '
      'all scales: objective.collect.split says which are trained when'
    )


def collect(
  models,
  *,
  rollouts,
  split,
  continuations,
  eta,
  prefix_steps,
  suffix_steps,
  old,
  std,
  eps,
  kl_reward,
  combine,
  mask,
  rewards,
  pool,
):
  """prompts -> Experience, in turn of `prefix_steps` prefix steps and `suffix_steps` suffix steps.

  Prefix step: P x `rollouts` prefixes, `continuations` images of each, V = eta log mean exp(reward
  / eta) of those with a verdict in the place of the reward; the tokens of the prefixes alone, so
  teacher forcing is shorter too. Suffix step: `rollouts` images from one prefix of each prompt, all
  tokens, the mask leaves those of the suffix. The reward of row 0 of a prefix is what GRPO would
  have seen with the same key. Other keys: see grpo.collect; kl_reward takes the tokens of the
  Experience."""
  at = offsets(models.scales)[split]

  @jax.jit
  def prefixes(policy, frozen, prompt_P, rng):
    keys_PG = models.keys(rng, group.count(prompt_P), rollouts)
    out = models.branch(policy, frozen, prompt_P, keys_PG, split, continuations)
    return group.images(models, out), jax.tree.map(lambda x: x[:, :, 0, :at], out)

  @jax.jit
  def suffixes(policy, frozen, prompt_P, rng):
    keys_PG = models.keys(rng, group.count(prompt_P), 1)
    out = models.branch(policy, frozen, prompt_P, keys_PG, split, rollouts)
    return group.images(models, out), jax.tree.map(lambda x: x[:, 0], out)

  value = jax.jit(partial(reduce.soft_value, eta=eta))
  plans = {
    'prefix': (group.Plan(prefixes, value), {'vmr/prefix': 1.0}),
    'suffix': (
      group.Plan(suffixes, value=lambda r_PRK: r_PRK[..., 0], start=at),
      {'vmr/prefix': 0.0},
    ),
  }
  when = lambda step: 'prefix' if step % (prefix_steps + suffix_steps) < prefix_steps else 'suffix'
  return group.collector(
    models,
    plans,
    when,
    old=old,
    std=std,
    eps=eps,
    kl_reward=kl_reward,
    combine=combine,
    mask=mask,
    rewards=rewards,
  )
