"""VMR, the value as middle return (https://arxiv.org/abs/2601.02256), on top of GRPO.

The scales of an image are split in two. A prefix step trains the first `split` of them: each of a
prompt's prefixes is continued K times, and what it is worth is the soft value of its continuations'
rewards. A suffix step trains the others: the rows of a group go on from one prefix, and the reward
is their own. Both have their own group advantages; the fine scales, which have most of the tokens,
no longer speak for the coarse ones.
"""

from functools import partial

import jax

from vargrl.io import numbers
from vargrl.objectives import collect as groups
from vargrl.objectives import reduce, surrogate
from vargrl.types import Pass, offsets

features, loss = groups.features, surrogate.loss


def passes(policy, collect):
  """Forward passes of a step of either kind, see types.Pass."""
  R, K = collect.rollouts, collect.continuations
  cut = offsets(policy.config.scales)[collect.split]
  draw = lambda heads, tails: [
    Pass('policy', heads, cut, sampled=True),
    Pass('policy', tails, skip=cut, sampled=True),
  ]
  return {
    'prefix': {'rollout': draw(R, R * K)} | groups.passes(collect, R, cut),
    'suffix': {'rollout': draw(1, R)} | groups.passes(collect, R),
  }


def check(
  policy,
  *,
  split,
  continuations,
  eta,
  prefix_steps,
  suffix_steps,
  mask,
  rewards,
  pool,
  **options,
):
  groups.check(**options)
  names = [span.name for span in policy.spans]
  if policy.branch is None:
    raise ValueError(f'objective: vmr needs a policy of one picture by scales, found {names}')
  count = len(policy.config.scales)
  if not 1 <= split < count:
    raise ValueError(
      f'objective.collect.split: {split} of {count} scales, expected 1 to {count - 1}'
    )
  numbers.check_number('objective.collect.continuations', continuations, least=1, whole=True)
  numbers.check_number('objective.collect.eta', eta, above=0)
  for name, steps in (('prefix_steps', prefix_steps), ('suffix_steps', suffix_steps)):
    numbers.check_number(f'objective.collect.{name}', steps, least=0)
  if not prefix_steps + suffix_steps >= 1:
    raise ValueError('objective.collect: prefix_steps and suffix_steps are 0, expected not both')


def check_loss(policy, *, first_scale, last_scale, **options):
  surrogate.check_loss(policy, first_scale=first_scale, last_scale=last_scale, **options)
  if (first_scale, last_scale) not in ((0, -1), (0, len(policy.config.scales) - 1)):
    raise ValueError(
      f'objective.loss: first_scale={first_scale}, last_scale={last_scale}; expected 0 and -1, all '
      'scales: objective.collect.split says which are trained when'
    )


def collect(
  policy,
  tokenizer,
  scorer,
  *,
  rollouts,
  split,
  continuations,
  eta,
  prefix_steps,
  suffix_steps,
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
  """prompts -> Experience, in turn of `prefix_steps` prefix steps and `suffix_steps` suffix steps.

  Prefix step: P x `rollouts` prefixes, `continuations` images of each, V = eta log mean exp(reward
  / eta) of those with a verdict in the place of the reward; the tokens of the prefixes alone, so
  teacher forcing is shorter too. Suffix step: `rollouts` images from one prefix of each prompt, all
  tokens, the mask leaves those of the suffix. The reward of row 0 of a prefix is what GRPO would
  have seen with the same key. Other keys: see grpo.collect; kl_reward takes the tokens of the
  Experience."""
  kinds = step_kinds(policy, rollouts, split, continuations, eta)
  lengths = (('prefix', prefix_steps), ('suffix', suffix_steps))
  kinds = {name: kinds[name] for name, steps in lengths if steps}
  cycle = prefix_steps + suffix_steps
  when = lambda step: 'prefix' if step % cycle < prefix_steps else 'suffix'
  return groups.make_collect(
    policy,
    tokenizer,
    scorer,
    kinds,
    when,
    old_logp=old_logp,
    std=std,
    eps=eps,
    kl_reward=kl_reward,
    reward_mix=reward_mix,
    resample=resample,
    mask=mask,
    rewards_config=rewards,
  )


def step_kinds(policy, rollouts, split, continuations, eta):
  """{'prefix', 'suffix': the collect.StepKind of such steps}."""
  cut = offsets(policy.config.scales)[split]

  @jax.jit
  def prefixes(weights, frozen, prompt_P, rng):
    _, keys_PG = policy.keys(rng, groups.count(prompt_P), rollouts)
    out = policy.branch(weights, frozen, prompt_P, keys_PG, split, continuations)
    return policy.latents(out.data, 3), jax.tree.map(lambda x: x[:, :, 0, :cut], out)

  @jax.jit
  def suffixes(weights, frozen, prompt_P, rng):
    _, keys_PG = policy.keys(rng, groups.count(prompt_P), 1)
    out = policy.branch(weights, frozen, prompt_P, keys_PG, split, rollouts)
    return policy.latents(out.data, 3), jax.tree.map(lambda x: x[:, 0], out)

  value = jax.jit(partial(reduce.soft_value, eta=eta))
  return {
    'prefix': groups.StepKind(prefixes, value, facts={'vmr/prefix': 1.0}),
    'suffix': groups.StepKind(
      suffixes, value=lambda r_PRK: r_PRK[..., 0], start=cut, facts={'vmr/prefix': 0.0}
    ),
  }
