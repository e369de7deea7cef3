"""Next-scale sampling and its log-probabilities, for one prompt and one key, vmapped to P x R.

A prompt is a class or any pytree that the policy reads, a token an index or e bits, of which each
is drawn on its own: rollout/bits.py has the sampler of these. `rollout` prefills once and decodes;
vmap over the R keys of a group leaves the prefix unbatched, so it is computed and stored once per
prompt; vmap over P makes the rest. `logprobs` follows the same law, and `branch` once more: what K
continuations have in common is computed once for each rollout."""

import dataclasses
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.models import decoder
from vargrl.models.layers import cache as caches
from vargrl.parallel import rows
from vargrl.parallel.rules import shard
from vargrl.rollout import groups
from vargrl.rollout import sampling as sample
from vargrl.rollout.groups import in_chunks, spread
from vargrl.rollout.groups import keys as keys  # build.py looks for it in a rollout
from vargrl.types import Rollout, leading, sizes

RECORDS = ('cond', 'guided', 'guided_stopgrad')
SAME = ('scales', 'vocab', 'channels')  # what policy and tokenizer must have in common


def check(c):
  """ValueError where a sampler's words are not known."""
  groups.check_weights(c)
  if c.record not in RECORDS:
    raise ValueError(f'rollout: record={c.record!r}, expected one of {RECORDS}')


@dataclasses.dataclass(frozen=True)
class Config:
  """The sampler, and the policy whose log-probabilities count.

  guidance: rises linearly from 0 at the first scale to this at the last; 0 means no second branch.
  record: 'cond' (the conditional branch alone), 'guided' (what is sampled, gradient through both
  branches), 'guided_stopgrad' (the same, no gradient through the unconditional branch). weights:
  while tokens are drawn, 'gathered' once over the mesh's fsdp axis, or left 'sharded' and gathered
  layer by layer for each scale, where a device has no room for all of them. The tokens are the
  same."""

  guidance: float
  temperature: float
  top_k: int
  top_p: float
  record: str
  weights: str = 'sharded'
  wide: ClassVar = 1  # so many times groups.CHUNK positions have logits at once

  def __post_init__(self):
    check(self)
    if self.temperature <= 0:
      raise ValueError(f'rollout: temperature={self.temperature}, expected a positive number')
    if self.guidance < 0 or self.top_k < 0 or not 0 <= self.top_p <= 1:
      raise ValueError(
        f'rollout: guidance={self.guidance}, top_k={self.top_k}, top_p={self.top_p}; '
        'expected guidance >= 0, top_k >= 0, 0 <= top_p <= 1'
      )

  @property
  def paired(self):
    return self.guidance > 0

  @property
  def records_pair(self):
    return self.paired and self.record != 'cond'

  def strengths(self, count):
    """How far each scale's logits go beyond the conditional ones: the ramp of
    FoundationVision/VAR.
    """
    return [self.guidance * i / max(count - 1, 1) for i in range(count)]

  def temperatures(self, count):
    return [self.temperature] * count


# What https://github.com/FoundationVision/VAR samples with: 'var' for its published FID (README,
# 'Sampling & Zero-shot Inference'), 'var-demo' in demo_sample.ipynb.
PRESETS = {
  'var': Config(guidance=1.5, temperature=1.0, top_k=900, top_p=0.96, record='cond'),
  'var-demo': Config(guidance=4.0, temperature=1.0, top_k=900, top_p=0.95, record='cond'),
}


def labels(model, prompt, paired):
  """One prompt -> prompt_B: itself, or the guidance pair (prompt, unconditional)."""
  if not paired:
    return jax.tree.map(lambda x: x[None], prompt)
  return jax.tree.map(lambda *pair: jnp.stack(pair), prompt, model.unconditional(prompt))


def token(x):
  """What is known of every token [L], or of every bit [L, e]: summed over the bits."""
  return x if x.ndim == 1 else x.sum(-1)


def along(x_L, logits):
  """Numbers of positions as what logits [L, V] or [L, e, 2] can be multiplied by."""
  return x_L.reshape(-1, *[1] * (logits.ndim - 1))


def mix(logits_BLV, strength):
  """The guidance pair's logits -> guided logits_LV; a single row is returned as it is."""
  return (
    logits_BLV[0] if len(logits_BLV) == 1 else sample.guide(logits_BLV[0], logits_BLV[1], strength)
  )


def rollout(model, tokenizer, c, params, vq_params, prompt, key):
  """One prompt (for VAR a class, int32 scalar), one key -> Rollout, each field [L]."""
  begun = begin(model, tokenizer, c, params, prompt)
  return proceed(model, tokenizer, c, params, vq_params, begun, key, range(len(model.c.scales)))[1]


def begin(model, tokenizer, c, params, prompt):
  """What is known before the first scale is drawn: (its logits_BLV, cache, z_BhwC). B is 1, or 2
  for the guidance pair."""
  # VAR's ramp starts at 0: the first scale is never guided, but its pair fills the cache.
  logits_BLV, cache = model.apply(
    {'params': params}, labels(model, prompt, c.paired), method='prefill'
  )
  return logits_BLV, cache, tokenizer.zeros(1)


def proceed(model, tokenizer, c, params, vq_params, known, key, scales):
  """(what is known before the next scale is drawn, Rollout of the tokens of `scales`, a range)."""
  (logits_BLV, cache, z_BhwC), out, count = known, [], len(model.c.scales)
  for i in scales:
    strength, temperature = c.strengths(count)[i], c.temperatures(count)[i]
    guided_LV = mix(logits_BLV, strength) / temperature
    t_L, sampler_L = sample.draw(
      jax.random.fold_in(key, i), guided_LV, top_k=c.top_k, top_p=c.top_p
    )
    record_LV = guided_LV if c.record != 'cond' else logits_BLV[0] / temperature
    out.append((t_L, token(sample.select(record_LV, t_L)), token(sampler_L)))
    z_BhwC, next_BLC = tokenizer.apply({'params': vq_params}, z_BhwC, t_L[None], i, method='step')
    if next_BLC is None:
      break
    if c.paired:
      next_BLC = next_BLC.repeat(2, 0)
    logits_BLV, cache = model.apply({'params': params}, next_BLC, cache, i + 1, method='extend')
  return (logits_BLV, cache, z_BhwC), Rollout(*(jnp.concatenate(x) for x in zip(*out)))


def fork(model, tokenizer, c, params, vq_params, prompt, key, *, split, K, spread_K):
  """One prompt, one key -> Rollout [K, L]: scales 0 .. split - 1 are drawn once, the others K
  times.

  The first continuation is what `rollout` draws with this key. Up to the logits of scale number
  `split` all is computed once, and vmap leaves its cache unbatched: one copy, which K rows attend
  to. spread_K: see `spread`."""
  count = len(model.c.scales)
  begun = begin(model, tokenizer, c, params, prompt)
  (logits_BLV, cache, z_BhwC), head = proceed(
    model, tokenizer, c, params, vq_params, begun, key, range(split)
  )
  known = logits_BLV, caches.fork(cache), z_BhwC
  others = [
    jax.random.fold_in(key, count + k) for k in range(1, K)
  ]  # count: no scale has such a key
  rest = lambda key: proceed(
    model, tokenizer, c, params, vq_params, known, key, range(split, count)
  )[1]
  return jax.tree.map(
    lambda a_L, b_KL: jnp.concatenate([jnp.broadcast_to(a_L, (K, *a_L.shape)), b_KL], 1),
    head,
    jax.vmap(rest, **spread_K)(jnp.stack([key, *others])),
  )


def score(
  model,
  tokenizer,
  c,
  params,
  vq_params,
  prompt,
  tokens_L,
  keep_X2=None,
  shown_L=None,
  reference=None,
):
  """One prompt, one row of tokens -> Scores, each field [L], from one teacher-forced pass over
  them.

  The tokens may be those of the first few scales alone: no other is then computed. Logits are made,
  used and (in the backward pass) made again for at most groups.CHUNK tokens of each row at a time:
  all L x V of them, of policy and reference, never exist at once. shown_L: the tokens that the
  model sees of coarser scales, None: tokens_L. reference: parameters of the same model, or None.
  """
  stop = jax.lax.stop_gradient
  params = decoder.with_head(model.c, params)
  # Where the rows are computed: a part of a batch lies as the batch did, and the compiler would
  # move logits to it.
  prompt, tokens_L = jax.tree.map(lambda x: shard(x, ''), prompt), shard(tokens_L, 'L')
  shown_L = tokens_L if shown_L is None else shard(shown_L, 'L')
  inputs_1LC = stop(tokenizer.apply({'params': vq_params}, shown_L[None], method='embed'))
  prompt_B = labels(model, prompt, c.records_pair)
  still = 1 if c.records_pair and c.record == 'guided_stopgrad' else 0

  def hidden(params, keep_X2, still):
    """(x_BLD, head_B2D); the last `still` rows have no gradient."""
    n = 2 if c.records_pair else 1
    keep = None if keep_X2 is None else keep_X2[None].repeat(n, 0)
    return model.apply(
      {'params': params}, prompt_B, inputs_1LC.repeat(n, 0), keep, still, method='forward'
    )

  def logits_of(params, x_BLD, head_B2D, strength_L, temperature, still):
    one = lambda params, part: model.apply(
      {'params': params}, x_BLD[part], head_B2D[part], method='logits'
    )
    n = len(x_BLD) - still
    logits = (
      [one(params, slice(n)), one(stop(params), slice(n, None))]
      if still
      else [one(params, slice(None))]
    )
    logits = jnp.concatenate(logits)
    if np.ndim(temperature):
      temperature = along(temperature, logits[0])
    return mix(logits, along(strength_L, logits[0])) / temperature

  scales, count = leading(model.c.scales, len(tokens_L)), len(model.c.scales)
  by_token = lambda values: np.repeat(np.float32(values[: len(scales)]), sizes(scales))
  temperatures = c.temperatures(count)
  ours, theirs = hidden(params, keep_X2, still), None
  if reference is not None:
    reference = stop(decoder.with_head(model.c, reference))
    theirs = stop(hidden(reference, None, 0))

  def scores_of(x, t_L, strength_L, temperature=temperatures[0]):
    """x: the positions of a chunk, of `ours` and then of `theirs`."""
    logits_LV = logits_of(params, x[0], ours[1], strength_L, temperature, still)
    ref_LV = (
      None
      if theirs is None
      else stop(logits_of(reference, x[1], theirs[1], strength_L, temperature, 0))
    )
    out = sample.scores(logits_LV, t_L, ref_LV)
    return jax.tree.map(token, out).replace(hit=out.hit if out.hit.ndim == 1 else out.hit.mean(-1))

  given = [by_token(c.strengths(count))] + (
    [] if len(set(temperatures)) == 1 else [by_token(temperatures)]
  )
  x = [hidden[0] for hidden in (ours, theirs) if hidden is not None]
  return in_chunks(scores_of, x, tokens_L, *given, wide=c.wide)


def laid(model, tokenizer, c, params, vq_params):
  """The weights of policy and tokenizer where `c.weights` wants them."""
  return groups.laid(c, model, params, model.c.dtype), groups.laid(c, tokenizer, vq_params)


def generate(model, tokenizer, c, params, vq_params, prompt_P, keys_PR):
  """Rollout of P prompts x R keys, each field [P, R, L]. Equal rows whatever the mesh."""
  params, vq_params = laid(model, tokenizer, c, params, vq_params)
  p, r, _ = spread(*keys_PR.shape)
  one = partial(rollout, model, tokenizer, c, params, vq_params)
  return jax.vmap(lambda prompt, keys_R: jax.vmap(lambda key: one(prompt, key), **r)(keys_R), **p)(
    prompt_P, keys_PR
  )


def branch(model, tokenizer, c, params, vq_params, prompt_P, keys_PG, split, K):
  """Rollout [P, G, K, L]: for each key the first `split` scales once, and K continuations of them.

  Continuation 0 is the row that `generate` draws with the same key; the others have keys of their
  own."""
  count = len(model.c.scales)
  if not 0 < split < count or K < 1:
    raise ValueError(
      f'branch: split={split}, K={K} with {count} scales; expected 1 <= split <= {count - 1} and '
      'K >= 1'
    )
  params, vq_params = laid(model, tokenizer, c, params, vq_params)
  one = partial(fork, model, tokenizer, c, params, vq_params, split=split, K=K)
  p, g, k = spread(*keys_PG.shape, K)
  return jax.vmap(
    lambda prompt, keys_G: jax.vmap(lambda key: one(prompt, key, spread_K=k), **g)(keys_G), **p
  )(prompt_P, keys_PG)


def logprobs(
  model,
  tokenizer,
  c,
  params,
  vq_params,
  prompt_P,
  tokens_PRL,
  keep_PRX2=None,
  reference=None,
  shown_PRL=None,
):
  """Scores of P x R rows of tokens under the policy of record, each field [P, R, L]."""
  p, r, _ = spread(*tokens_PRL.shape[:2])
  one = partial(score, model, tokenizer, c, params, vq_params, reference=reference)
  group = lambda prompt, *given_R: jax.vmap(partial(one, prompt), **r)(*given_R)  # None has no rows
  return jax.vmap(group, **p)(prompt_P, tokens_PRL, keep_PRX2, shown_PRL)


def decode(tokenizer, vq_params, tokens_BL):
  """t_BL -> image_Byxc in [-1, 1]."""
  # P x R rows of which R is spread are, as B rows, in no order that the compiler knows: it would
  # decode all everywhere.
  return shard(
    tokenizer.apply({'params': vq_params}, rows.shard_rows(tokens_BL), method='decode'), 'Byxc'
  )
