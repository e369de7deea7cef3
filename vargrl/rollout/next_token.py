"""Next-token sampling and its log-probabilities, for one prompt and one key, vmapped to P x R.

`rollout` prefills once and decodes; vmap over the R keys of a group leaves the prompt's cache
unbatched, so it is computed and stored once per prompt; vmap over P makes the rest. `logprobs`
follows the same law."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from vargrl.models import qwen2
from vargrl.models.layers import cache as caches
from vargrl.models.layers import einsum
from vargrl.models.layers.einsum import used
from vargrl.models.qwen2 import Model
from vargrl.parallel.rules import shard
from vargrl.rollout import groups
from vargrl.rollout import sampling as sample
from vargrl.rollout.groups import keys as keys  # build.py looks for it in a rollout
from vargrl.types import Prompt, Rollout

AXES = ('prompts', 'rollouts')  # of the vmaps


@dataclasses.dataclass(frozen=True)
class Config:
  """The sampler. length: at most so many new tokens. stop: tokens that end a row, of which they are
  a part.

  The most likely token always: top_k=1. weights: as in rollout/next_scale.py.
  """

  temperature: float
  top_k: int
  top_p: float
  length: int
  stop: tuple[int, ...]
  weights: str = 'sharded'

  def __post_init__(self):
    groups.check_weights(self)
    if self.temperature <= 0:
      raise ValueError(f'rollout: temperature={self.temperature}, expected a positive number')
    if self.top_k < 0 or not 0 <= self.top_p <= 1 or self.length < 1:
      raise ValueError(
        f'rollout: top_k={self.top_k}, top_p={self.top_p}, length={self.length}; expected top_k '
        '>= 0, '
        '0 <= top_p <= 1, length >= 1'
      )


def rollout(model: Model, c: Config, params, prompt: Prompt, key, axes=()):
  """One prompt, one key -> Rollout, each field [length]. axes: names of the vmaps around; see
  `proceed`.
  """
  return proceed(model, c, params, begin(model, params, prompt), key, axes)[1]


def embedded(model, params, prompt):
  """x_1SD of a prompt's tokens and images."""
  x_1SD = model.apply({'params': params}, shard(prompt.tokens, 'L')[None], method='embed')
  return (
    x_1SD
    if prompt.place is None
    else qwen2.with_images(x_1SD, prompt.place[None], prompt.image[None])
  )


def begin(model, params, prompt):
  """What is known before the next token is drawn: (x_11D of the last one, cache, position of the
  next one).
  """
  return read(model, params, prompt, embedded(model, params, prompt))[0]


def read(model, params, prompt, x_1SD):
  """(what is known before the next token is drawn, what the model makes of each token x_1SD)."""
  seen_S = jnp.arange(len(prompt.tokens)) < prompt.length
  position_S = jnp.arange(len(prompt.tokens)) if prompt.position is None else prompt.position.max(0)
  position = None if prompt.position is None else prompt.position[:, None]
  x_1SD, cache = model.apply({'params': params}, x_1SD, position, seen_S[None], method='prefill')
  x_11D = jax.lax.dynamic_slice_in_dim(x_1SD, prompt.length - 1, 1, 1)
  return (x_11D, cache, jnp.where(seen_S, position_S, -1).max() + 1), x_1SD


def proceed(model, c, params, known, key, axes=(), alive=True, states=False):
  """(what is known after the row's last token, Rollout of it, x_1LD that the model makes of its
  tokens or None).

  A row that has ended waits for the others, one that is not `alive` from the first token on. The
  loop goes on as long as any row of the vmaps `axes` does: were this asked of each row, vmap would
  copy every cache at every step, to keep those of rows that have ended."""
  x_11D, cache, start = known
  weights, base = {'params': params}, jnp.zeros(c.length)
  out = Rollout(base.astype(jnp.int32), base, base, base)
  made = jnp.zeros((1, c.length, x_11D.shape[-1]), x_11D.dtype) if states else None

  def step(state):
    i, _, alive, x_11D, cache, out, made = state
    logits_1V = model.apply(weights, x_11D, method='logits')[0] / c.temperature
    t_1, sampler_1 = sample.draw(
      jax.random.fold_in(key, i), logits_1V, top_k=c.top_k, top_p=c.top_p
    )
    new = Rollout(t_1[0], sample.select(logits_1V, t_1)[0], sampler_1[0], jnp.float32(1))
    out = jax.tree.map(lambda all_L, x: all_L.at[i].set(jnp.where(alive, x, 0)), out, new)
    y_11D = model.apply(weights, out.tokens[i][None, None], method='embed')
    y_11D, cache = model.apply(weights, y_11D, (start + i)[None, None], cache, method='extend')
    x_11D = jnp.where(alive, y_11D, x_11D)
    if states:
      made = jax.lax.dynamic_update_slice_in_dim(made, y_11D, i, 1)
    for token in c.stop:
      alive &= t_1[0] != token
    return i + 1, anyone(alive, axes), alive, x_11D, cache, out, made

  state = (
    jnp.int32(0),
    anyone(alive, axes),
    jnp.asarray(alive),
    x_11D,
    caches.room(cache, c.length),
    out,
    made,
  )
  *_, x_11D, cache, out, made = jax.lax.while_loop(
    lambda state: (state[0] < c.length) & state[1], step, state
  )
  known = x_11D, caches.fork(cache, out.mask[None] > 0), start + out.mask.sum().astype(jnp.int32)
  return known, out, made


def anyone(alive, axes):
  return jax.lax.pmax(jnp.asarray(alive, jnp.int32), axes) > 0 if axes else jnp.asarray(alive)


def score(model: Model, c: Config, params, prompt: Prompt, tokens_L, reference=None):
  """One prompt, one row of tokens -> Scores, each field [L], from one teacher-forced pass over
  them.

  Logits exist for at most groups.CHUNK tokens of each row at a time. What a row's end leaves unused
  is scored too: the rollout's mask says so. reference: parameters of the same model, or None."""
  tokens_L, params = shard(tokens_L, 'L'), qwen2.with_head(model.c, params)
  if reference is not None:
    reference = jax.lax.stop_gradient(qwen2.with_head(model.c, reference))

  def hidden(params):
    x_11D, cache, start = begin(model, params, prompt)
    x_1LD = model.apply({'params': params}, tokens_L[None, :-1], method='embed')
    position_1L = (start + jnp.arange(len(tokens_L) - 1))[None]
    if not position_1L.size:
      return x_11D
    x_1LD = model.apply({'params': params}, x_1LD, position_1L, None, cache, method='forward')
    return jnp.concatenate([x_11D, x_1LD], 1)

  def logits(params, x_1LD):
    return model.apply({'params': params}, x_1LD, method='logits')[0] / c.temperature

  def scores(x, t_L):
    ref_LV = None if reference is None else jax.lax.stop_gradient(logits(reference, x[1]))
    return sample.scores(logits(params, x[0]), t_L, ref_LV)

  x = [hidden(params)] + ([] if reference is None else [jax.lax.stop_gradient(hidden(reference))])
  return groups.in_chunks(scores, x, tokens_L)


def generate(model, c, params, prompt_P, keys_PR):
  """Rollout of P prompts x R keys, each field [P, R, length]. Equal rows whatever the mesh."""
  # Cast once, not at every token; the barrier, or a compiler may think otherwise.
  params = jax.lax.optimization_barrier(used(params, model.c.dtype, (*einsum.USED, 'tokens')))
  params = groups.laid(c, model, params)
  p, r, _ = groups.spread(*keys_PR.shape)
  one = partial(rollout, model, c, params, axes=AXES)
  return jax.vmap(
    lambda prompt, keys_R: jax.vmap(lambda key: one(prompt, key), axis_name=AXES[1], **r)(keys_R),
    axis_name=AXES[0],
    **p,
  )(prompt_P, keys_PR)


def logprobs(model, c, params, prompt_P, tokens_PRL, reference=None):
  """Scores of P x R rows of tokens at the sampling temperature, each field [P, R, L]; a prompt is
  computed once.
  """
  p, r, _ = groups.spread(*tokens_PRL.shape[:2])
  one = partial(score, model, c, params, reference=reference)
  return jax.vmap(
    lambda prompt, tokens_RL: jax.vmap(lambda t: one(prompt, t), **r)(tokens_RL), **p
  )(prompt_P, tokens_PRL)
