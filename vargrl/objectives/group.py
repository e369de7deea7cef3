"""What the objectives that learn from groups share: sampling, rewards, advantages, the clipped
surrogate.

One group = the R rows of a prompt. Every token of a row that is in the mask shares the row's
advantage."""

from functools import partial
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.metrics import average
from vargrl.objectives import reduce
from vargrl.parallel import multihost
from vargrl.types import Collect, Collected, Experience

OLD = ('trainer', 'sampler', 'now')
FEATURES = ('label',)  # what a batch of data must have, beside what a prompt is made of


def check(*, rollouts, old, std, eps, kl_reward, combine, updates, reference):
  """Refuses a setting that cannot learn, before anything is compiled. updates: per collected
  batch.
  """
  if rollouts < 2:
    raise ValueError(
      f'objective.collect.rollouts: {rollouts} per group, expected at least 2: the '
      'advantage of a group of one is always 0'
    )
  for name, value, known in (
    ('old', old, OLD),
    ('std', std, reduce.STDS),
    ('combine', combine, reduce.COMBINE),
  ):
    if value not in known:
      raise ValueError(f'objective.collect.{name}: {value!r}, expected one of {known}')
  if old == 'now' and updates > 1:
    raise ValueError(
      f"objective.collect.old: 'now' with {updates} updates per batch; expected 1, or 'trainer'"
    )
  for name, value in (('eps', eps), ('kl_reward', kl_reward)):
    if not value >= 0:
      raise ValueError(f'objective.collect.{name}: {value}, expected at least 0')
  if kl_reward and not reference:
    raise ValueError('objective.collect.kl_reward: there is no reference in the config')


def check_loss(models, *, level, clip, clip_high, kl, estimator, alpha, first, last, reference):
  if level not in reduce.LEVELS:
    raise ValueError(f'objective.loss.level: {level!r}, expected one of {reduce.LEVELS}')
  if not 0 <= clip <= clip_high:
    raise ValueError(
      f'objective.loss: clip={clip}, clip_high={clip_high}; expected 0 <= clip <= clip_high'
    )
  if estimator not in reduce.KL:
    raise ValueError(f'objective.loss.estimator: {estimator!r}, expected one of {reduce.KL}')
  if not kl >= 0:
    raise ValueError(f'objective.loss.kl: {kl}, expected at least 0')
  if kl and estimator == 'k1':
    raise ValueError(
      'objective.loss.estimator: k1 has no gradient in expectation, expected exact, k2, '
      'k3 or k3_is (k1 in the reward is objective.collect.kl_reward)'
    )
  if kl and not reference:
    raise ValueError(f'objective.loss.kl: {kl} without a reference in the config')
  reduce.token_weights(models.scales, alpha=alpha, first=first, last=last)


class Plan(NamedTuple):
  """How the rows of one step are made and what of them is trained.

  sample: (policy, frozen, prompt_P, rng) -> (t_BL to decode, the K images of a row adjacent,
  Rollout [P, R, L] to learn from, of all tokens or the first few scales). start: the first token
  that is trained. value: r_PRK -> value_PR, NaN where there is none."""

  sample: Callable
  value: Callable
  start: int = 0


def collector(models, plans, when, *, old, std, eps, kl_reward, combine, mask, rewards):
  """The Collect that turns prompts to rows with their group advantages.

  plans: {name: (Plan, {metric: number})}; when: step -> name. The others are keys of
  objective.collect, see grpo.collect."""
  logprobs = jax.jit(models.logprobs)
  decode = jax.jit(models.decode)
  advantages = jax.jit(lambda r_PR: reduce.advantages(r_PR, std=std, eps=eps))
  inside = jax.jit(
    partial(trained, models, spatial=bool(mask)), static_argnames=('shape', 'L', 'start')
  )

  def known(prompt_P, out, image_Byxc, label_B, shape, start):
    """The Experience before its rows are judged."""
    L = out.logp.shape[-1]
    mask_PRL = inside(image_Byxc, label_B, shape=shape, L=L, start=start)
    held_PRL = jnp.broadcast_to(from_start(L, start), out.logp.shape) if start else None
    if out.mask is not None:  # what is after the end of a row is nothing
      mask_PRL, held_PRL = (out.mask if x is None else x * out.mask for x in (mask_PRL, held_PRL))
    return Experience(label=prompt_P, tokens=out.tokens, old=out.logp, mask=mask_PRL, held=held_PRL)

  def run(params, frozen, batch, rng, step, phase):
    phase('wait_for_update', params)  # costs nothing: the rewards are waited for in any case
    plan_now, facts = plans[when(step)]
    prompt_P = models.prompt(batch)
    t_BL, out = plan_now.sample(params['policy'], frozen, prompt_P, rng)
    P, R, _ = out.logp.shape
    K = len(t_BL) // (P * R)
    label_B = np.repeat(multihost.to_numpy(batch['label']), R * K)
    image_Byxc = decode(frozen, t_BL)
    phase('rollout', image_Byxc)
    r_B, each, counts = models.score(frozen, image_Byxc, label_B)
    r_B, each, share = judged(models, out, r_B, each)
    phase('reward')
    experience = known(prompt_P, out, image_Byxc, label_B, (P, R, K), plan_now.start)
    mask_PRL = experience.mask
    if old == 'trainer' or kl_reward:
      scores = logprobs(
        params['policy'],
        frozen,
        experience,
        models.reference(params, frozen) if kl_reward else None,
      )
      experience = experience.replace(old=scores.logp if old == 'trainer' else out.logp)
    value_PR = plan_now.value(combined(r_B, each, (P, R, K), combine, rewards, eps))
    if kl_reward:
      gap_PRL = scores.logp - scores.reference
      value_PR -= kl_reward * (gap_PRL if out.mask is None else gap_PRL * out.mask).sum(-1)
    advantage_PR, weight_PR, group = advantages(value_PR)
    metrics = facts | {
      'reward': average(r_B, np.isfinite(r_B)),
      'reward_std': average(group['std_P']),
      'frac_reward_zero_std': average(group['flat_P']),
      'advantage/abs_mean': average(abs(advantage_PR), weight_PR),
      'sampler/logp_gap': average(abs(out.logp - out.sampler), mask_PRL),
    }
    if old == 'trainer':
      metrics['sampler/trainer_gap'] = average(abs(out.logp - experience.old), mask_PRL)
    if K > 1:
      metrics['value'] = average(value_PR, weight_PR)
    if mask:
      metrics['mask_share'] = average(mask_PRL[..., plan_now.start :])
    metrics |= {f'rewards/{k}': average(v, np.isfinite(v)) for k, v in each.items()}
    metrics |= counts | share
    experience = experience.replace(
      advantage=advantage_PR, weight=weight_PR, old=None if old == 'now' else experience.old
    )
    return Collected(experience, metrics, lambda: pictures(image_Byxc, label_B, r_B, models.texts))

  def programs(call, params, frozen, batch, rng):
    found = []
    for name, (one, _) in plans.items():
      tell = lambda what, name=name: f'{what} ({name})' if name else what
      prompt_P = models.prompt(batch)
      t_BL, out = call(tell('rollout'), one.sample, params['policy'], frozen, prompt_P, rng)
      P, R, _ = out.logp.shape
      image_Byxc = call(tell('decode'), decode, frozen, t_BL)
      label_B = call.rows((len(t_BL),), np.int32)
      if models.judge:
        call(tell('rewards'), models.judge, frozen, image_Byxc, label_B)
      shape = P, R, len(t_BL) // (P * R)
      experience = call(
        '',
        jax.jit(partial(known, shape=shape, start=one.start)),
        prompt_P,
        out,
        image_Byxc,
        label_B,
      )
      if old == 'trainer' or kl_reward:
        reference = models.reference(params, frozen) if kl_reward else None
        scores = call(tell('logprobs'), logprobs, params['policy'], frozen, experience, reference)
        experience = experience.replace(old=scores.logp if old == 'trainer' else out.logp)
      advantage_PR, weight_PR, _ = call('', advantages, call.rows((P, R), np.float32))
      found.append(
        (
          name,
          experience.replace(
            advantage=advantage_PR, weight=weight_PR, old=None if old == 'now' else experience.old
          ),
        )
      )
    return found

  return Collect(run, programs)


def combined(r_B, each, shape, combine, rewards, eps):
  """r_PRK: the weighted sum of the rewards as they are, or of each made comparable within its
  prompt.
  """
  P, R, K = shape
  if combine == 'sum':
    return jnp.asarray(r_B).reshape(shape)
  groups = {name: jnp.asarray(x_B).reshape(P, R * K) for name, x_B in each.items()}
  weights = {name: rewards[name]['weight'] for name in each}
  return reduce.normalized_sum(groups, weights, eps=eps).reshape(shape)


def count(prompt_P):
  """How many prompts."""
  return len(jax.tree.leaves(prompt_P)[0])


def judged(models, rollout, r_B, each):
  """(r_B, {name: r_B}, {metric}) of a Rollout's pictures, the K of a row adjacent: NaN for one that
  was not drawn, as its row ended before it, and the share of those that were."""
  if rollout.mask is None or not models.plan:
    return r_B, each, {}
  starts = np.cumsum([0] + [length for _, length in models.plan])
  at = [int(start) for start, (kind, _) in zip(starts, models.plan) if kind == 'bits']
  drawn_B = multihost.to_numpy(rollout.mask[..., np.array(at)]).reshape(-1) > 0
  left = lambda x_B: np.where(drawn_B, x_B, np.nan)
  return (
    left(r_B),
    {name: left(x_B) for name, x_B in each.items()},
    {'drawn': average(drawn_B.astype(np.float32))},
  )


def images(models, rollout):
  """The tokens of a Rollout [.., L] as those of one image after the other, t_BL."""
  return models.drawn(rollout.tokens, rollout.logp.ndim - 1)


def trained(models, image_Byxc, label_B, *, shape, L, start, spatial):
  """mask_PRL of the tokens that share the advantage; None if all do. Pixels of any of a row's K
  images count.
  """
  P, R, K = shape
  if not spatial and not start:
    return None
  mask_PRL = jnp.ones((P, R, L))
  if spatial:
    mask_Byx = models.mask(image_Byxc, label_B)
    mask_Byx = mask_Byx.reshape(P * R, K, *mask_Byx.shape[1:]).any(1)
    mask_PRL = reduce.propagate(mask_Byx, models.scales)[:, :L].reshape(P, R, L)
  return mask_PRL * from_start(L, start)


def from_start(L, start):
  """1 for the tokens from `start` on, [1, 1, L]."""
  return (np.arange(L) >= start).astype(np.float32)[None, None]


def pictures(image_Byxc, label_B, r_B, texts=None):
  """The best and the worst rows of a step, with prompt and reward."""
  order = np.argsort(np.where(np.isfinite(r_B), r_B, -np.inf))[::-1]
  order = order[np.isfinite(r_B[order])]
  said = lambda i: texts(label_B[i : i + 1])[0] if texts else f'class {label_B[i]}'
  caption = lambda i: f'{said(i)}\n{r_B[i]:.3g}'
  n = min(8, len(order))
  return {
    name: (multihost.to_numpy(image_Byxc[rows]), [caption(i) for i in rows])
    for name, rows in {'best': order[:n], 'worst': order[len(order) - n :]}.items()
    if n
  }


def loss(
  models, params, frozen, batch, *, level, clip, clip_high, kl, estimator, alpha, first, last
):
  """The clipped surrogate minus kl times the KL, summed over tokens by weight, averaged over rows.

  The surrogate is of the tokens in `mask`, the KL of those in `held`, of all that have a weight
  without one: what a spatial mask leaves out is not pushed, but held. The weights of either sum to
  1 in each row."""
  scores = models.logprobs(params['policy'], frozen, batch, models.reference(params, frozen))
  L = scores.logp.shape[-1]
  spans = reduce.spans(models, L)
  weight_11L = reduce.weights(models, L, alpha=alpha, first=first, last=last)[None, None]
  push = reduce.masked(weight_11L, batch.mask)
  active = (push > 0).astype(np.float32)
  weight_PR, advantage_PR1 = batch.weight, batch.advantage[..., None]

  old = reduce.stop(scores.logp) if batch.old is None else batch.old
  d_PRL = jnp.clip(scores.logp - old, -20, 20)
  ratio_PRL = jnp.exp(reduce.log_ratio(d_PRL, active, spans, level=level))
  gain_PRL, low_PRL, high_PRL = reduce.clipped(ratio_PRL, advantage_PR1, low=clip, high=clip_high)
  term_PRL = -gain_PRL * push
  # k3_is weighs each token by its own ratio, whatever the level of the surrogate's.
  if kl:
    term_PRL += (
      kl
      * reduce.kl(scores, jnp.exp(d_PRL), estimator=estimator)
      * reduce.masked(weight_11L, batch.held)
    )
  value = average(term_PRL.sum(-1), weight_PR)

  mask_PRL = weight_PR[..., None] * active
  token = lambda x: average(reduce.stop(x), mask_PRL)
  metrics = {
    'loss': value,
    'ratio': token(ratio_PRL),
    'entropy': token(scores.entropy),
    'ratio/abs_log': token(abs(d_PRL)),
    'clip_ratio/low_mean': token(low_PRL),
    'clip_ratio/high_mean': token(high_PRL),
  }
  families = {
    'entropy': scores.entropy,
    'ratio_dev': abs(ratio_PRL - 1),
    'clip': low_PRL | high_PRL,
  }
  inside_PRL = jnp.ones_like(d_PRL) if batch.mask is None else batch.mask
  if scores.kl is not None:
    metrics['kl'] = average(
      reduce.stop((scores.kl * inside_PRL).sum(-1)), weight_PR
    )  # nats of a row, in the mask
    if batch.mask is not None:
      metrics['kl/image'] = average(reduce.stop(scores.kl.sum(-1)), weight_PR)
    families['kl'] = scores.kl
  for name, x_PRL in families.items():
    for span, a, b in spans:  # one without a token in the mask has no value
      metrics[f'{name}/{span}'] = average(
        reduce.stop(x_PRL[..., a:b]), weight_PR[..., None] * inside_PRL[..., a:b]
      )
  return value, metrics
