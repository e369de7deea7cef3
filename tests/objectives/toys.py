"""The smallest policy: a table of logits by class and position, behind the records of a run."""

import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import fake_run  # noqa: E402

from vargrl.training.stage import Stage  # noqa: E402
from vargrl.types import (  # noqa: E402
  Experience,
  Rewards,
  Rollout,
  Scores,
  Span,
  Tokenizer,
  offsets,
  sizes,
)

CLASSES, SCALES, VOCAB = 3, (1, 2), 4
L = 5


def spans(*segments, choices=1):
  """Of a row whose segments are these (name, scales of a picture | number of tokens of a text)."""
  out, start = [], 0
  for name, what in segments:
    count = [what] if isinstance(what, int) else sizes(what)
    parts = () if isinstance(what, int) else tuple(f'scale_{i}' for i in range(len(what)))
    part_A = np.repeat(np.arange(len(count), dtype=np.int32), count)
    each = choices if parts else 1
    stop = start + len(part_A)
    out.append(Span(name, start, stop, parts, part_A, each, picture=bool(parts)))
    start += len(part_A)
  return tuple(out)


def score(policy, frozen, prompt_P, data_PR, reference=None):
  tokens = data_PR['image']['tokens']
  shape = (*tokens.shape, VOCAB)
  some = lambda table: table[prompt_P][:, None, : shape[2]]
  rows = lambda table: jnp.broadcast_to(some(jax.nn.log_softmax(table)), shape)
  chosen = lambda x: jnp.take_along_axis(x, tokens[..., None], -1)[..., 0]
  logp = rows(policy['table'])
  p, hit = jnp.exp(logp), logp.argmax(-1) == tokens
  out = Scores(chosen(logp), -(p * logp).sum(-1), hit.astype(jnp.float32))
  if reference is None:
    return out
  other = jax.lax.stop_gradient(rows(reference['table']))
  return out.replace(penalty=(p * (logp - other)).sum(-1), ref_logp=chosen(other))


def with_logp(policy, prompt_P, tokens):
  """The Rollout of tokens [P, R, L] that the policy has drawn."""
  data = {'image': {'tokens': tokens}}
  logp = score(policy, {}, prompt_P, data).logp
  return Rollout(data, logp, logp)


def generate(policy, frozen, prompt_P, key_P, keys_PR):
  one = lambda label, key: jax.random.categorical(key, policy['table'][label])
  tokens = jax.vmap(lambda label, keys_R: jax.vmap(lambda k: one(label, k))(keys_R))
  return with_logp(policy, prompt_P, tokens(prompt_P, keys_PR))


def branch(policy, frozen, prompt_P, keys_PG, split, copies):
  """Rollout [P, G, K, L]; the tokens of the first `split` scales are drawn once."""
  at = offsets(SCALES)[split]

  def one(label, key):
    logits_LV, keys = policy['table'][label], jax.random.split(key, copies + 1)
    head = jax.random.categorical(keys[0], logits_LV[:at])
    tails = jax.vmap(lambda k: jax.random.categorical(k, logits_LV[at:]))(keys[1:])
    return jnp.concatenate([jnp.broadcast_to(head, (copies, at)), tails], 1)

  t_PGKL = jax.vmap(lambda label, keys_G: jax.vmap(lambda key: one(label, key))(keys_G))(
    prompt_P, keys_PG
  )
  rows = t_PGKL.reshape(len(prompt_P), -1, L)
  logp = with_logp(policy, prompt_P, rows).logp.reshape(t_PGKL.shape)
  return Rollout({'image': {'tokens': t_PGKL}}, logp, logp)


def latents(data, n_leading):
  tokens = data['image']['tokens']
  return tokens.reshape(-1, *tokens.shape[n_leading:])


def reference(params, frozen):
  return frozen.get('reference')


SPANS = spans(('image', SCALES))
# What a loss needs, and what a rollout needs besides.
SCORED = fake_run.policy(spans=SPANS, score=score, reference=reference)
POLICY = fake_run.policy(
  dict(scales=SCALES, classes=CLASSES),
  spans=SPANS,
  score=score,
  reference=reference,
  prompt=lambda batch: jnp.asarray(batch['label']),
  generate=generate,
  branch=branch,
  latents=latents,
)


def draws(tokens, off=0.0, gap=0.0):
  """A policy whose rollouts are these tokens [P, R, L]. off: nats that the sampler says too few of
  an action. gap: nats fewer still of the distribution that it was drawn from."""

  def generate(policy, frozen, prompt_P, key_P, keys_PR):
    assert keys_PR.shape == tokens.shape[:2] and key_P.shape == tokens.shape[:1]
    out = with_logp(policy, prompt_P, tokens)
    return out.replace(logp=out.logp - off, sampler_logp=out.logp - off - gap)

  return dataclasses.replace(POLICY, generate=generate)


def decode(frozen, tokens, prompts, keys_B):
  """Pictures [B, L, 1, 1], the tokens."""
  assert len(prompts) == len(tokens) == len(keys_B)
  return tokens[:, :, None, None]


TOKENIZER = fake_run.record(Tokenizer, decode=decode)


def scorer(function, mask=None):
  """Rewards: function of a picture's tokens [B, L] -> r_B, or {name: r_B}, whose sum they are."""

  def score(frozen, samples, group_size):
    assert len(samples.image_Byxc) % group_size == 0 and not samples.texts
    assert len(samples.record['label']) == len(samples.image_Byxc)
    each = function(np.asarray(samples.image_Byxc)[:, :, 0, 0])
    each = each if isinstance(each, dict) else {'sum': each}
    each = {name: np.asarray(r_B, np.float32) for name, r_B in each.items()}
    return np.sum(list(each.values()), 0), each, {'reward/masked': 1}

  captions = lambda labels: [f'class {label}' for label in labels]
  return fake_run.record(Rewards, score=score, mask=mask, captions=captions)


def run(collect, batch, params=None, frozen=None, step=0, rng=0):
  """The Collection of one step."""
  key = rng if isinstance(rng, jax.Array) else jax.random.key(rng)
  return collect.run(Stage(step), params or {}, frozen or {}, batch, key)


def params(seed=0):
  table = np.random.default_rng(seed).normal(size=(CLASSES + 1, L, VOCAB))
  return {'policy': {'table': jnp.asarray(table, jnp.float32)}}


def experience(P, R, seed=0, masked=0):
  """Random rows, an old policy near params(0), and `masked` rows of the first without a verdict."""
  rng = np.random.default_rng(seed)
  prompt, tokens = rng.integers(0, CLASSES, P), rng.integers(0, VOCAB, (P, R, L))
  batch = rows(tokens, prompt)
  noise = jnp.asarray(rng.normal(size=(P, R, L)) * 0.2, jnp.float32)
  old_logp = logp(params()['policy'], batch) + noise
  row_mask = (np.arange(P * R) >= masked).reshape(P, R).astype(np.float32)
  advantage = jnp.asarray(rng.normal(size=(P, R)), jnp.float32) * row_mask
  return batch.replace(old_logp=old_logp, row_mask=jnp.asarray(row_mask), advantage=advantage)


def rows(tokens, prompt):
  return Experience(prompt=jnp.asarray(prompt), data={'image': {'tokens': jnp.asarray(tokens)}})


def logp(policy, batch):
  return score(policy, {}, batch.prompt, batch.data).logp


def fixed(*numbers, at=None, penalty=None, ref_logp=None):
  """A policy whose rows have these log-probabilities, whatever they are: a value computed by hand.
  at: its spans, one picture of scales of one token if None. It must be asked for the reference's
  scores if it has any, and for none else."""
  logp = jnp.asarray(numbers, jnp.float32)[None]
  at = at or spans(('image', (1,) * logp.shape[-1]))

  def score(policy, frozen, prompt_P, data_PR, reference=None):
    assert reference is (None if penalty is None else frozen['reference'])
    return Scores(logp, jnp.zeros_like(logp), jnp.zeros_like(logp), penalty, ref_logp)

  return fake_run.policy(spans=at, score=score, reference=reference)


def mean(metric):
  return float(metric.total) / float(metric.count)
