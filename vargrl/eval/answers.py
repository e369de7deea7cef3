"""Rewards of answers to held-out dialogues: with a verifiable reward, the share that is right."""

import functools

import numpy as np

from vargrl.data.dialogue import prompts as dialogue_prompts
from vargrl.data.dialogue import tokenizer as tokenizers
from vargrl.eval import rewards as rewards_of
from vargrl.eval.samples import row_keys
from vargrl.objectives import scoring
from vargrl.parallel import multihost, rows
from vargrl.rollout.sampler import make_sampler


def make(
  built,
  *,
  dataset,
  split,
  dir,
  max_records,
  length,
  max_patches,
  prefill_image,
  size,
  crop,
  tokenizer,
  vision,
  per_prompt,
  greedy,
  seed,
  batch,
  rewards,
  pool,
):
  """The evaluator that yields for every reward NAME its mean over the answers as `NAME`, with
  several answers to a prompt the mean of the best one's as `NAME/best`; `length`, the mean number
  of tokens of an answer's text; and `masked`, the share of answers without all verdicts.

  dataset to vision: as in data.dialogue.prompts; all of its records are asked, `per_prompt` answers
  each, by the run's own plan. greedy: the most likely tokens of text in the place of sampled ones.
  seed: of the samples. batch: rows on a device at once. rewards, pool: as in objective.collect.
  Raises ValueError for what the policy, or a reward, cannot do."""
  check(built, per_prompt)
  sees = dict(size=size, crop=crop, tokenizer=tokenizer, vision=vision)
  fits = dict(length=length, max_patches=max_patches, prefill_image=prefill_image)
  prompts, dialogues = dialogue_prompts.load_prompts(
    dataset=dataset, split=split, dir=dir, max_records=max_records, **fits, **sees
  )
  count, policy = len(dialogues), with_settings(built, greedy)
  policy.check_prompt(length)
  prompt_N = policy.prompt(prompts)
  sample = make_sampler(policy, built.tokenizer)
  words = tokenizers.load(tokenizer, images=bool(vision) or bool(size))
  records = lambda labels: [dialogue_prompts.to_record(dialogues[i], i) for i in labels]
  decode = functools.partial(dialogue_prompts.decode_text, words)
  mixed, weights = rewards_of.open_mix(built, rewards, records=records, decode_text=decode, **pool)

  def evaluate(params, frozen, poll=None):
    label_B = np.repeat(np.arange(count, dtype=np.int32), per_prompt)
    keys_B, all_frozen = row_keys(policy, seed, count, per_prompt), frozen | weights()
    ask = functools.partial(judge_answers, policy, mixed, sample, params, all_frozen)
    calls = rows.batches(len(label_B), batch, poll)
    found, lengths, masked = ask(prompt_N, label_B, keys_B, calls)
    yield from summary(found, count, per_prompt)
    if policy.texts:
      yield 'length', float(np.concatenate(lengths).mean())
    yield 'masked', float(np.concatenate(masked).mean())

  evaluate.close = mixed.close
  return evaluate


def judge_answers(policy, mixed, sample, params, frozen, prompt_N, label_B, keys_B, calls):
  """({name: [r_B of each call]}, [tokens of text], [whether masked]) of all answers. calls: of
  rows.batches."""
  found, lengths, masked = {}, [], []
  for row_B, counts_B in calls:
    at_B = label_B[row_B]
    prompt_B = {k: x[at_B] for k, x in prompt_N.items()}
    out, image_Byxc = sample(params, frozen, prompt_B, keys_B[row_B])
    r_B, each_B = rewards_of_rows(policy, mixed, frozen, out, image_Byxc, at_B)
    masked.append(~np.isfinite(r_B[counts_B]))
    lengths.append(text_lengths(policy, out)[counts_B])
    for name, x_B in each_B.items():
      found.setdefault(name, []).append(x_B[counts_B])
  return found, lengths, masked


def summary(found, count, per_prompt):
  """(name, value) of each reward's mean, and of its mean best. found: {name: [r_B of each
  call]}.
  """
  for name, parts in found.items():
    r_PR = np.concatenate(parts).astype(np.float64).reshape(count, per_prompt)
    yield name, float(np.nanmean(r_PR))
    if per_prompt > 1:
      yield f'{name}/best', float(np.nanmean(np.nanmax(r_PR, 1)))


def check(built, per_prompt):
  """Raises ValueError for a policy that answers no dialogues, or no answers at all."""
  if built.policy.generate is None or 'tokens' not in built.policy.features:
    raise ValueError('answers: a policy that reads text expected')
  if not per_prompt >= 1:
    raise ValueError(f'per_prompt: {per_prompt} found, at least 1 expected')


def with_settings(built, greedy):
  """The run's Policy; greedy: with the most likely tokens of text."""
  if not greedy:
    return built.policy
  names = [s.name + ':given' * s.given for s in built.plan]
  return built.policy.with_plan(names, **{name: dict(top_k=1) for name in built.policy.texts})


def rewards_of_rows(policy, mixed, frozen, out, image_Byxc, label_B):
  """(r_B, {name: r_B}) of a Rollout [B, 1, ..], the mean over the pictures of a row; NaN for rows
  without a verdict. image_Byxc: uint8, those of a row adjacent, or None."""
  B = len(label_B)
  K = 1 if image_Byxc is None else len(image_Byxc) // B
  if image_Byxc is not None:
    image_Byxc = image_Byxc.astype(np.float32) / 127.5 - 1
  r, each, _ = scoring.judge(policy, mixed, frozen, image_Byxc, out, label_B, (B, 1, K))
  row_mean = lambda x: np.asarray(x).reshape(B, K).mean(1)
  return row_mean(r), {name: row_mean(x) for name, x in each.items()}


def text_lengths(policy, out):
  """float [B]: how many tokens of text each row of a Rollout [B, 1, ..] has."""
  mask_BA = (
    np.ones(out.logp.shape)[:, 0] if out.mask is None else multihost.to_numpy(out.mask)[:, 0]
  )
  spans = [span for span in policy.spans if span.name in policy.texts]
  return sum((mask_BA[:, s.start : s.stop].sum(1) for s in spans), np.zeros(len(mask_BA)))
