"""GRPO (https://arxiv.org/abs/2402.03300) and its corrections, for any policy that has log-probabilities.

One group = the R rollouts of a prompt. One trajectory = one image; every token shares its advantage.
"""
import time

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.metrics import average
from vargrl.objectives import reduce
from vargrl.types import Collected, Experience, bounds

OLD = ('trainer', 'sampler', 'now')
FEATURES = ('label',)  # what a batch of data must have


def check(*, rollouts, old, std, eps, kl_reward, rewards, pool, updates, reference):
  """Refuses a setting that cannot learn, before anything is compiled. updates: per collected batch."""
  if rollouts < 2:
    raise ValueError(f'objective.collect.rollouts: {rollouts} per group, expected at least 2: the '
                     'advantage of a group of one is always 0')
  if old not in OLD: raise ValueError(f'objective.collect.old: {old!r}, expected one of {OLD}')
  if old == 'now' and updates > 1:
    raise ValueError(f'objective.collect.old: \'now\' with {updates} updates per batch; expected 1, or '
                     '\'trainer\'')
  if std not in reduce.STDS:
    raise ValueError(f'objective.collect.std: {std!r}, expected one of {reduce.STDS}')
  for name, value in (('eps', eps), ('kl_reward', kl_reward)):
    if not value >= 0: raise ValueError(f'objective.collect.{name}: {value}, expected at least 0')
  if kl_reward and not reference:
    raise ValueError('objective.collect.kl_reward: there is no reference in the config')


def check_loss(models, *, level, clip, clip_high, kl, estimator, alpha, first, last, reference):
  if level not in reduce.LEVELS:
    raise ValueError(f'objective.loss.level: {level!r}, expected one of {reduce.LEVELS}')
  if not 0 <= clip <= clip_high:
    raise ValueError(f'objective.loss: clip={clip}, clip_high={clip_high}; expected 0 <= clip <= clip_high')
  if estimator not in reduce.KL:
    raise ValueError(f'objective.loss.estimator: {estimator!r}, expected one of {reduce.KL}')
  if not kl >= 0: raise ValueError(f'objective.loss.kl: {kl}, expected at least 0')
  if kl and estimator == 'k1':
    raise ValueError('objective.loss.estimator: k1 has no gradient in expectation, expected exact, k2, '
                     'k3 or k3_is (k1 in the reward is objective.collect.kl_reward)')
  if kl and not reference:
    raise ValueError(f'objective.loss.kl: {kl} without a reference in the config')
  reduce.token_weights(models.scales, alpha=alpha, first=first, last=last)


def collect(models, *, rollouts, old, std, eps, kl_reward, rewards, pool):
  """prompts -> Experience of P x R rollouts with their group advantages.

  old: whose log-probabilities the ratio is against: 'trainer' recomputes them, 'sampler' trusts the
  rollout's, 'now' takes the present policy's (one update per batch). kl_reward: nats of logp - ref,
  summed over the tokens, times this, are taken from the reward. `rewards` and `pool` made models.score.
  """
  generate, logprobs = jax.jit(models.generate), jax.jit(models.logprobs)
  decode = jax.jit(lambda frozen, t_PRL: models.decode(frozen, t_PRL.reshape(-1, t_PRL.shape[-1])))
  advantages = jax.jit(lambda r_PR: reduce.advantages(r_PR, std=std, eps=eps))

  def run(params, frozen, batch, rng):
    clock = [time.perf_counter()]
    tick = lambda x: (jax.block_until_ready(x), clock.append(time.perf_counter()))
    tick(params)  # costs nothing: the rewards are waited for in any case
    label_P = batch['label']
    P, R = len(label_P), rollouts
    out = generate(params['policy'], frozen, label_P, models.keys(rng, P, R))
    label_B = np.repeat(np.asarray(label_P), R)
    image_Byxc = decode(frozen, out.tokens)
    tick(image_Byxc)
    r_B, each, counts = models.score(frozen, image_Byxc, label_B)
    tick(r_B)
    experience = Experience(label=label_P, tokens=out.tokens, old=out.logp)
    if old == 'trainer' or kl_reward:
      scores = logprobs(params['policy'], frozen, experience, models.reference(params, frozen) if kl_reward else None)
      experience = experience.replace(old=scores.logp if old == 'trainer' else out.logp)
    r_PR = jnp.asarray(r_B).reshape(P, R)
    if kl_reward: r_PR -= kl_reward * (scores.logp - scores.reference).sum(-1)
    advantage_PR, weight_PR, facts = advantages(r_PR)
    experience = experience.replace(advantage=advantage_PR, weight=weight_PR,
                                    old=None if old == 'now' else experience.old)
    known = np.isfinite(r_B)
    metrics = {'reward': average(r_B, known), 'reward_std': average(facts['std_P']),
               'frac_reward_zero_std': average(facts['flat_P']),
               'advantage/abs_mean': average(abs(advantage_PR), weight_PR),
               'sampler/logp_gap': average(abs(out.logp - out.sampler))}
    if old == 'trainer':
      metrics['sampler/trainer_gap'] = average(abs(out.logp - experience.old))
    metrics |= {f'rewards/{k}': average(v, np.isfinite(v)) for k, v in each.items()}
    metrics |= counts | dict(zip(('time/wait_for_update', 'time/rollout', 'time/reward'), np.diff(clock)))
    return Collected(experience, metrics, lambda: pictures(image_Byxc, label_B, r_B))
  return run


def pictures(image_Byxc, label_B, r_B):
  """The best and the worst rows of a step, with prompt and reward."""
  image_Byxc = np.asarray(image_Byxc)
  order = np.argsort(np.where(np.isfinite(r_B), r_B, -np.inf))[::-1]
  order = order[np.isfinite(r_B[order])]
  caption = lambda i: f'class {label_B[i]}\n{r_B[i]:.3g}'
  n = min(8, len(order))
  return {name: (image_Byxc[rows], [caption(i) for i in rows])
          for name, rows in {'best': order[:n], 'worst': order[len(order) - n:]}.items() if n}


def loss(models, params, frozen, batch, *, level, clip, clip_high, kl, estimator, alpha, first, last):
  """The clipped surrogate minus kl times the KL, summed over tokens by weight, averaged over rows."""
  scales = models.scales
  scores = models.logprobs(params['policy'], frozen, batch, models.reference(params, frozen))
  weight_11L = reduce.token_weights(scales, alpha=alpha, first=first, last=last)[None, None]
  active_11L = (weight_11L > 0).astype(np.float32)
  weight_PR, advantage_PR1 = batch.weight, batch.advantage[..., None]

  old = reduce.stop(scores.logp) if batch.old is None else batch.old
  d_PRL = jnp.clip(scores.logp - old, -20, 20)
  ratio_PRL = jnp.exp(reduce.log_ratio(d_PRL, active_11L, scales, level=level))
  gain_PRL, low_PRL, high_PRL = reduce.clipped(ratio_PRL, advantage_PR1, low=clip, high=clip_high)
  term_PRL = -gain_PRL
  # k3_is weighs each token by its own ratio, whatever the level of the surrogate's.
  if kl: term_PRL += kl * reduce.kl(scores, jnp.exp(d_PRL), estimator=estimator)
  value = average((term_PRL * weight_11L).sum(-1), weight_PR)

  mask_PRL = weight_PR[..., None] * active_11L
  token = lambda x: average(reduce.stop(x), mask_PRL)
  metrics = {'loss': value, 'ratio': token(ratio_PRL), 'entropy': token(scores.entropy),
             'ratio/abs_log': token(abs(d_PRL)),
             'clip_ratio/low_mean': token(low_PRL), 'clip_ratio/high_mean': token(high_PRL)}
  families = {'entropy': scores.entropy, 'ratio_dev': abs(ratio_PRL - 1)}
  if scores.kl is not None:
    metrics['kl'] = average(reduce.stop(scores.kl.sum(-1)), weight_PR)  # nats of the whole image
    families['kl'] = scores.kl
  for name, x_PRL in families.items():
    for i, (a, b) in enumerate(bounds(scales)):
      metrics[f'{name}/scale_{i}'] = average(reduce.stop(x_PRL[..., a:b].mean(-1)), weight_PR)
  return value, metrics
