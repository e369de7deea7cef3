"""How objectives that learn from groups make a batch: rollouts, rewards, advantages.

One group = the R rows of a prompt. Every action of a row that is in the mask shares the row's
advantage. The steps, in order: prompts -> rollout -> pictures decoded -> rewards of the samples ->
a value per row -> maybe groups without variance drawn again -> advantages -> Experience.
"""

from functools import partial
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.io import numbers
from vargrl.metrics import average
from vargrl.objectives import reduce, scoring
from vargrl.parallel import multihost
from vargrl.types import Collect, Collection, Experience, Pass

OLD_LOGP = ('trainer', 'sampler', 'current')


def features(policy):
  """What a batch of data must have, besides what prompts are made of."""
  return ('label',)


def passes(collect, rows, actions=None):
  """Forward passes besides the rollout's, of rows of the first `actions`."""
  again = []
  if collect.old_logp == 'trainer' or collect.kl_reward:
    again.append(Pass('policy', rows, actions))
  if collect.kl_reward:
    again.append(Pass('reference', rows, actions))
  update = [Pass('policy', rows, actions, learned=True), Pass('reference', rows, actions)]
  return {'logprobs': again, 'update': update}


class StepKind(NamedTuple):
  """How the rows of one kind of step are made and what of them is trained.

  sample: (policy, frozen, prompt_P, rng) -> (tokens of all pictures, the K of a row adjacent, or
  None; Rollout [P, R, A] to learn from, of all actions or the first few scales; K). start: the
  first action that is trained. value: r_PRK -> value_PR, NaN where there is none. facts: metrics of
  the kind."""

  sample: Callable
  value: Callable
  start: int = 0
  facts: dict = {}


def check(*, rollouts, old_logp, std, eps, kl_reward, reward_mix, resample, updates, reference):
  """Refuses a setting that cannot learn, before anything is compiled. updates: per collected
  batch.
  """
  if not rollouts >= 2:
    raise ValueError(
      f'objective.collect.rollouts: {rollouts} per group, expected at least 2: the '
      'advantage of a group of one is always 0'
    )
  for name, value, known in (
    ('old_logp', old_logp, OLD_LOGP),
    ('std', std, reduce.STDS),
    ('reward_mix', reward_mix, reduce.REWARD_MIXES),
  ):
    if value not in known:
      raise ValueError(f'objective.collect.{name}: {value!r}, expected one of {known}')
  if old_logp == 'current' and updates != 1:
    raise ValueError(
      f"objective.collect.old_logp: 'current' with {updates} updates per batch; expected 1, or "
      "'trainer'"
    )
  for name, value in (('eps', eps), ('kl_reward', kl_reward), ('resample', resample)):
    numbers.check_number(f'objective.collect.{name}', value, least=0)
  if resample != int(resample):
    raise ValueError(f'objective.collect.resample: {resample}, expected a whole number')
  if kl_reward and not reference:
    raise ValueError('objective.collect.kl_reward: there is no reference in the config')


def count(prompt_P):
  """How many prompts."""
  return len(jax.tree.leaves(prompt_P)[0])


def decode_images(policy, tokenizer):
  """(frozen, tokens_B, prompt_P, rng) -> image_Byxc, jitted; the K R rows of a prompt adjacent."""

  def decode(frozen, tokens_B, prompt_P, rng):
    B = count(tokens_B)
    each = B // count(prompt_P)
    prompts = jax.tree.map(lambda x: jnp.repeat(x, each, 0), prompt_P)
    noise = jax.random.fold_in(rng, 2**30 + 1)  # no key of a row or group is of it
    return tokenizer.decode(frozen, tokens_B, prompts, jax.random.split(noise, B))

  return jax.jit(decode)


def loss_mask(policy, scorer, image_Byxc, label_B, *, shape, A, start, spatial):
  """mask_PRA of the actions that share the advantage; None if all do. Pixels of any of a row's K
  images count."""
  P, R, K = shape
  if not spatial and not start:
    return None
  mask_PRA = jnp.ones((P, R, A))
  if spatial:
    mask_Byx = scorer.mask(image_Byxc, label_B)
    mask_Byx = mask_Byx.reshape(P * R, K, *mask_Byx.shape[1:]).any(1)
    scales = policy.config.scales
    mask_PRA = reduce.pixel_mask_to_tokens(mask_Byx, scales)[:, :A].reshape(P, R, A)
  return mask_PRA * from_start(A, start)


def from_start(A, start):
  """1 for the actions from `start` on, [1, 1, A]."""
  return (np.arange(A) >= start).astype(np.float32)[None, None]


def make_experience(policy, scorer, prompt_P, out, image_Byxc, label_B, *, shape, start, spatial):
  """Experience without advantages (rewards are not known yet)."""
  A = out.logp.shape[-1]
  mask_PRA = loss_mask(
    policy, scorer, image_Byxc, label_B, shape=shape, A=A, start=start, spatial=spatial
  )
  kl_mask = jnp.broadcast_to(from_start(A, start), out.logp.shape) if start else None
  if out.mask is not None:  # what is after the end of a row is nothing
    mask_PRA, kl_mask = (out.mask if x is None else x * out.mask for x in (mask_PRA, kl_mask))
  return Experience(
    prompt=prompt_P, data=out.data, old_logp=out.logp, loss_mask=mask_PRA, kl_mask=kl_mask
  )


def make_collect(policy, tokenizer, scorer, kinds, when, **options):
  """The Collect that turns prompts to rows with their group advantages.

  kinds: {name: StepKind}; when: step -> name. options: keys of objective.collect, see grpo.collect.
  """
  collector = Collector(policy, tokenizer, scorer, kinds, when, **options)
  return Collect(collector.run, {name: step for name, step in variants(kinds, when)}, when)


def variants(kinds, when):
  """[(name of a kind, a step of it)]."""
  steps = {}
  for step in range(10_000):
    steps.setdefault(when(step), step)
    if len(steps) == len(kinds):
      break
  return list(steps.items())


class Collector:
  """The programs and settings behind make_collect."""

  def __init__(
    self,
    policy,
    tokenizer,
    scorer,
    kinds,
    when,
    *,
    old_logp,
    std,
    eps,
    kl_reward,
    reward_mix,
    resample,
    mask,
    rewards_config,
  ):
    self.policy, self.scorer, self.kinds, self.when = policy, scorer, kinds, when
    self.old_logp, self.kl_reward, self.resample = old_logp, kl_reward, resample
    self.reward_mix, self.eps, self.spatial = reward_mix, eps, bool(mask)
    self.rewards_config = rewards_config
    self.score = jax.jit(policy.score)
    self.decode = decode_images(policy, tokenizer)
    self.advantages = jax.jit(partial(reduce.advantages, std=std, eps=eps))
    self.experience = {}  # {(shape, start): the jitted make_experience of it}
    self.merge = jax.jit(merge_groups)

  def run(self, stage, params, frozen, batch, rng):
    """One step: see the head of this file."""
    stage.phase('wait_for_update', params)  # costs nothing: the rewards are waited for in any case
    kind = self.kinds[self.when(stage.number)]
    prompt_P = self.policy.prompt(batch)
    label_P = stage.host(lambda: multihost.to_numpy(batch['label']), ((count(prompt_P),), np.int32))
    image, out, judged = self.draw(stage, kind, params, frozen, prompt_P, label_P, rng)
    again = 0
    for i in range(self.resample):
      flat_P = stage.host(lambda: self.flat_groups(judged.value_PR))
      if flat_P is None or not flat_P.any():
        break
      again += flat_P.sum()
      fresh = self.draw(
        stage, kind, params, frozen, prompt_P, label_P, jax.random.fold_in(rng, 2**30 + i)
      )
      image, out, judged = self.merge_draws(flat_P, (image, out, judged), fresh)
    shape, label_B = self.shape(out, image), self.labels(stage, out, image, label_P)
    experience = stage.call(
      '', self.to_experience(shape, kind.start), prompt_P, out, image, label_B
    )
    experience, facts = self.with_advantages(stage, kind, params, frozen, experience, out, judged)
    if stage.abstract:
      return Collection(experience, {})
    facts |= {'resampled': again / len(label_P)} if self.resample else {}
    captions = self.scorer.captions
    show = image is not None and (
      lambda: scoring.best_and_worst(image, np.asarray(label_B), judged.r_B, captions)
    )
    return Collection(experience, facts, show or None)

  def flat_groups(self, value_PR):
    """numpy bool [P]: groups whose values are all equal, or fewer than two."""
    return multihost.to_numpy(self.advantages(value_PR)[2]['flat_P']) > 0

  def to_experience(self, shape, start):
    """(prompt_P, Rollout, image_Byxc, label_B) -> Experience, jitted once for each kind of step."""
    key = shape, start
    if key not in self.experience:
      options = dict(shape=shape, start=start, spatial=self.spatial)
      make = partial(make_experience, self.policy, self.scorer, **options)
      self.experience[key] = jax.jit(make)
    return self.experience[key]

  def shape(self, out, image):
    """(P, R, K)."""
    P, R, _ = out.logp.shape
    return P, R, 1 if image is None else len(image) // (P * R)

  def labels(self, stage, out, image, label_P):
    """label_B, of each picture or, without pictures, of each row."""
    P, R, K = self.shape(out, image)
    return stage.host(lambda: np.repeat(label_P, R * K), ((P * R * K,), np.int32))

  def draw(self, stage, kind, params, frozen, prompt_P, label_P, rng):
    """(image_Byxc or None, Rollout, scoring.Verdicts) of one draw of all groups."""
    tokens_B, out = stage.call('rollout', kind.sample, params['policy'], frozen, prompt_P, rng)
    image = None
    if tokens_B is not None:
      image = stage.call('decode', self.decode, frozen, tokens_B, prompt_P, rng)
    stage.phase('rollout', out if image is None else image)
    shape = self.shape(out, image)
    label_B = self.labels(stage, out, image, label_P)
    scoring.lower(self.policy, self.scorer, stage, frozen, image, out, label_B, shape[2])

    def score():
      r_B, each, facts = scoring.judge(self.policy, self.scorer, frozen, image, out, label_P, shape)
      mixed = scoring.mix_rewards(r_B, each, shape, self.reward_mix, self.rewards_config, self.eps)
      return scoring.Verdicts(r_B, each, facts, kind.value(mixed))

    abstract = lambda: scoring.Verdicts(None, {}, {}, stage.abstract_rows(shape[:2], np.float32))
    judged = abstract() if stage.abstract else score()
    stage.phase('reward')
    return image, out, judged

  def merge_draws(self, flat_P, old, new):
    """The same of the old draw, the groups flat_P taken from the new one."""
    (image, out, judged), (image_2, out_2, judged_2) = old, new
    P, R, K = self.shape(out, image)
    flat_B = np.repeat(flat_P, R * K)
    out, value_PR = self.merge(flat_P, (out, judged.value_PR), (out_2, judged_2.value_PR))
    if image is not None:
      image = self.merge(flat_B, image, image_2)
    pick = lambda a, b: np.where(flat_B, b, a)
    each = {name: pick(x, judged_2.each[name]) for name, x in judged.each.items()}
    r_B = pick(judged.r_B, judged_2.r_B)
    facts = scoring.merge_metrics(judged.metrics, judged_2.metrics, r_B)
    return image, out, scoring.Verdicts(r_B, each, facts, value_PR)

  def with_advantages(self, stage, kind, params, frozen, experience, out, judged):
    """(the Experience, {metric})."""
    value_PR, scores = judged.value_PR, None
    if self.old_logp == 'trainer' or self.kl_reward:
      reference = self.policy.reference(params, frozen) if self.kl_reward else None
      scores = stage.call(
        'logprobs',
        self.score,
        params['policy'],
        frozen,
        experience.prompt,
        experience.data,
        reference,
      )
    if self.old_logp == 'trainer':
      experience = experience.replace(old_logp=scores.logp)
    if self.kl_reward and not stage.abstract:
      gap = scores.logp - scores.ref_logp
      value_PR -= self.kl_reward * (gap if out.mask is None else gap * out.mask).sum(-1)
    advantage_PR, row_mask, group = stage.call('', self.advantages, value_PR)
    facts = {}
    if not stage.abstract:
      facts = self.metrics(kind, out, experience, judged, value_PR, advantage_PR, row_mask, group)
    old_logp = None if self.old_logp == 'current' else experience.old_logp
    return experience.replace(advantage=advantage_PR, row_mask=row_mask, old_logp=old_logp), facts

  def metrics(self, kind, out, experience, judged, value_PR, advantage_PR, row_mask, group):
    mask_PRA, r_B = experience.loss_mask, judged.r_B
    facts = kind.facts | {
      'reward': average(r_B, np.isfinite(r_B)),
      'reward_std': average(group['std_P']),
      'frac_reward_zero_std': average(group['flat_P']),
      'advantage/abs_mean': average(abs(advantage_PR), row_mask),
      'sampler/logp_gap': average(abs(out.logp - out.sampler_logp), mask_PRA),
    }
    if self.old_logp == 'trainer':
      gap = abs(out.logp - experience.old_logp)
      facts['sampler/trainer_gap'] = average(gap, mask_PRA)
    if len(r_B) > value_PR.size:
      facts['value'] = average(value_PR, row_mask)
    if self.spatial:
      facts['mask_share'] = average(mask_PRA[..., kind.start :])
    facts |= {f'rewards/{k}': average(v, np.isfinite(v)) for k, v in judged.each.items()}
    return facts | judged.metrics


def merge_groups(flat, old, new):
  """Trees that lead with P (or B): the new where `flat` is true."""
  one = lambda a, b: jnp.where(flat.reshape(-1, *[1] * (a.ndim - 1)), b, a)
  return jax.tree.map(one, old, new)
