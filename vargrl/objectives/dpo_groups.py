"""DPO (https://arxiv.org/abs/2305.18290) on pairs that the policy draws itself, step by step: of
the rows of a prompt the best and the worst, as the rewards say."""

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.metrics import average
from vargrl.objectives import collect as groups
from vargrl.objectives import dpo, scoring
from vargrl.parallel import multihost
from vargrl.types import Collect, Collection, Experience, Pass

features, ROWS_TOGETHER, check_loss, loss = (
  groups.features,
  dpo.ROWS_TOGETHER,
  dpo.check_loss,
  dpo.loss,
)


def passes(policy, collect):
  """Forward passes of a step, see types.Pass."""
  return {
    '': {
      'rollout': [Pass('policy', collect.rollouts, sampled=True)],
      'logprobs': [Pass('reference', 2)],
      'update': [Pass('policy', 2, learned=True)],
    }
  }


def check(policy, *, rollouts, rewards, pool, updates, reference):
  if not rollouts >= 2:
    raise ValueError(
      f'objective.collect.rollouts: {rollouts} per prompt, expected at least 2, of which one is '
      'better'
    )


def best_and_worst_rows(prompt_P, out, r_PR):
  """(Experience of the best and the worst row of each group, their rewards r_P2). A prompt whose
  rows are all as good has row_mask 0."""
  valid_PR = jnp.isfinite(r_PR)
  best_P = jnp.where(valid_PR, r_PR, -jnp.inf).argmax(1)
  worst_P = jnp.where(valid_PR, r_PR, jnp.inf).argmin(1)
  at_P2 = jnp.stack([best_P, worst_P], 1)
  rows = lambda x: jnp.take_along_axis(x, at_P2.reshape(*at_P2.shape, *[1] * (x.ndim - 2)), 1)
  r_P2 = rows(jnp.where(valid_PR, r_PR, 0.0))
  r_P2 = jnp.where(valid_PR.any(1, keepdims=True), r_P2, 0.0)
  mask_P1 = (r_P2[:, :1] > r_P2[:, 1:]).astype(jnp.float32)
  return Experience(
    prompt=prompt_P,
    data=jax.tree.map(rows, out.data),
    row_mask=mask_P1.repeat(2, 1),
    loss_mask=None if out.mask is None else rows(out.mask),
  ), r_P2


def collect(policy, tokenizer, scorer, *, rollouts, rewards, pool):
  """prompts -> Experience of the best and the worst of so many rollouts of each, with the
  reference's log-probabilities. scorer: the Rewards that `rewards` and `pool` configure."""
  decode, score = groups.decode_images(policy, tokenizer), jax.jit(policy.score)
  pick = jax.jit(best_and_worst_rows)

  @jax.jit
  def sample(weights, frozen, prompt_P, rng):
    key_P, keys_PR = policy.keys(rng, groups.count(prompt_P), rollouts)
    out = policy.generate(weights, frozen, prompt_P, key_P, keys_PR)
    return policy.latents(out.data, 2), out

  def run(stage, params, frozen, batch, rng):
    stage.phase('wait_for_update', params)
    prompt_P = policy.prompt(batch)
    tokens_B, out = stage.call('rollout', sample, params['policy'], frozen, prompt_P, rng)
    image = None
    if tokens_B is not None:
      image = stage.call('decode', decode, frozen, tokens_B, prompt_P, rng)
    stage.phase('rollout', out if image is None else image)
    P, R, _ = out.logp.shape
    K = 1 if image is None else len(image) // (P * R)
    label_P = stage.host(lambda: multihost.to_numpy(batch['label']), ((P,), np.int32))
    label_B = stage.host(lambda: np.repeat(label_P, R * K), ((P * R * K,), np.int32))
    scoring.lower(policy, scorer, stage, frozen, image, out, label_B, K)
    judge = lambda: scoring.judge(policy, scorer, frozen, image, out, label_P, (P, R, K))
    r_B, each, facts = stage.host(judge) or (None, {}, {})
    stage.phase('reward')
    mean = lambda: jnp.nanmean(jnp.asarray(r_B).reshape(P, R, K), -1)
    r_PR = stage.host(mean, ((P, R), np.float32))
    experience, r_P2 = stage.call('', pick, prompt_P, out, r_PR)
    scores = stage.call(
      'logprobs',
      score,
      policy.reference(params, frozen),
      frozen,
      experience.prompt,
      experience.data,
    )
    experience = experience.replace(ref_logp=scores.logp)
    if stage.abstract:
      return Collection(experience, {})
    mask_P = experience.row_mask[:, 0]
    metrics = {
      'reward': average(r_B, np.isfinite(r_B)),
      'pairs': average(mask_P),
      'pairs/gap': average(r_P2[:, 0] - r_P2[:, 1], mask_P),
    }
    metrics |= {f'rewards/{k}': average(v, np.isfinite(v)) for k, v in each.items()} | facts
    show = lambda: scoring.best_and_worst(image, label_B, r_B, scorer.captions)
    return Collection(experience, metrics, None if image is None else show)

  return Collect(run, {'': 0})
