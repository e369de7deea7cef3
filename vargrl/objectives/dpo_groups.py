"""DPO (https://arxiv.org/abs/2305.18290) on pairs that the policy draws itself, step by step: of
the rows of a prompt the best and the worst, as the rewards say."""

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.metrics import average
from vargrl.objectives import dpo, group
from vargrl.parallel import multihost
from vargrl.types import Collect, Collected, Experience

FEATURES, ROWS, check_loss, loss = group.FEATURES, dpo.ROWS, dpo.check_loss, dpo.loss


def check(models, *, rollouts, rewards, pool, updates, reference):
  if rollouts < 2:
    raise ValueError(
      f'objective.collect.rollouts: {rollouts} per prompt, expected at least 2, of which one is '
      'better'
    )


def collect(models, *, rollouts, rewards, pool):
  """prompts -> Experience of the best and the worst of so many rollouts of each, with the
  reference's log-probabilities; a prompt whose rows are all as good has weight 0. `rewards` and
  `pool` made models.score."""
  decode, logprobs = jax.jit(models.decode), jax.jit(models.logprobs)

  @jax.jit
  def sample(policy, frozen, prompt_P, rng):
    out = models.generate(
      policy, frozen, prompt_P, models.keys(rng, group.count(prompt_P), rollouts)
    )
    return group.images(models, out), out

  @jax.jit
  def pick(prompt_P, out, r_PR):
    known_PR = jnp.isfinite(r_PR)
    best_P = jnp.where(known_PR, r_PR, -jnp.inf).argmax(1)
    worst_P = jnp.where(known_PR, r_PR, jnp.inf).argmin(1)
    at_P2 = jnp.stack([best_P, worst_P], 1)
    rows = lambda x: jnp.take_along_axis(x, at_P2.reshape(*at_P2.shape, *[1] * (x.ndim - 2)), 1)
    r_P2 = jnp.where(known_PR.any(1, keepdims=True), rows(jnp.where(known_PR, r_PR, 0.0)), 0.0)
    weight_P1 = (r_P2[:, :1] > r_P2[:, 1:]).astype(jnp.float32)
    return Experience(
      label=prompt_P,
      tokens=jax.tree.map(rows, out.tokens),
      weight=weight_P1.repeat(2, 1),
      mask=None if out.mask is None else rows(out.mask),
    ), r_P2

  def run(params, frozen, batch, rng, step, phase):
    phase('wait_for_update', params)
    prompt_P = models.prompt(batch)
    t_BL, out = sample(params['policy'], frozen, prompt_P, rng)
    P, R, _ = out.logp.shape
    K = len(t_BL) // (P * R)
    label_B = np.repeat(multihost.to_numpy(batch['label']), R * K)
    image_Byxc = decode(frozen, t_BL)
    phase('rollout', image_Byxc)
    r_B, each, counts = models.score(frozen, image_Byxc, label_B)
    r_B, each, share = group.judged(models, out, r_B, each)
    phase('reward')
    experience, r_P2 = pick(prompt_P, out, jnp.nanmean(jnp.asarray(r_B).reshape(P, R, K), -1))
    scores = logprobs(models.reference(params, frozen), frozen, experience)
    metrics = {
      'reward': average(r_B, np.isfinite(r_B)),
      'pairs': average(experience.weight[:, 0]),
      'pairs/gap': average(r_P2[:, 0] - r_P2[:, 1], experience.weight[:, 0]),
    }
    metrics |= (
      {f'rewards/{k}': average(v, np.isfinite(v)) for k, v in each.items()} | counts | share
    )
    return Collected(
      experience.replace(reference=scores.logp),
      metrics,
      lambda: group.pictures(image_Byxc, label_B, r_B, models.texts),
    )

  def programs(call, params, frozen, batch, rng):
    prompt_P = models.prompt(batch)
    t_BL, out = call('rollout', sample, params['policy'], frozen, prompt_P, rng)
    P, R, _ = out.logp.shape
    image_Byxc = call('decode', decode, frozen, t_BL)
    if models.judge:
      call('rewards', models.judge, frozen, image_Byxc, call.rows((len(t_BL),), np.int32))
    experience, _ = call('', pick, prompt_P, out, call.rows((P, R), np.float32))
    scores = call('logprobs', logprobs, models.reference(params, frozen), frozen, experience)
    return [('', experience.replace(reference=scores.logp))]

  return Collect(run, programs)
