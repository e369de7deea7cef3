"""A picture drawn on canvases that do not see each other, over a context that stays as it is.

Data of a row: {'tokens', 'step' int32 [L]}: the canvas that each token was drawn on, which shows
the tokens of earlier steps. With one shared canvas ('remask') a random set of places, the same
for all rows of a prompt, has step 0 and is scored; the others have step -1 and are shown."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import toy_model

from vargrl.rollout import sampling

fold_in = jax.random.fold_in

TEXT, ENDS, CHUNK = False, True, 1  # ENDS: of a shared canvas, not all actions count
FROM_MODEL, SHARED, PACKED_ONLY = (), (), ()


@dataclasses.dataclass(frozen=True)
class Config:
  """noise: of the confidence that decides which places are drawn next. estimator: 'trajectory'
  or 'remask'."""

  length: int
  steps: int
  noise: float
  estimator: str


def length(c):
  return c.length


def parts(c):
  return (), np.zeros(c.length, np.int32)


def choices(c):
  return 1


def mask(c, data):
  return data['step'] >= 0, jnp.array(True)


def actions(c, data):
  return data['tokens']


def latents(c, data):
  return data['tokens'][None]


def soft(c, logits_LV, data):
  soft_LV = toy_model.straight_through(logits_LV, data['tokens'])
  return jnp.where(data['step'][:, None] < 0, jax.lax.stop_gradient(soft_LV), soft_LV)


def canvas(net, data, shown_BL, position, kept):
  t_BL = jnp.where(shown_BL, data['tokens'][None], net.model.c.codes)
  x_BLD = net.embed('codes_VD', t_BL) + net.params['begin_D'][None, None]
  return toy_model.canvases(x_BLD, position, kept)


def inputs(net, c, data, position, followed):
  steps = c.steps if c.estimator == 'trajectory' else 1
  shown_BL = data['step'][None] < jnp.arange(steps)[:, None]
  blocks = [canvas(net, data, shown_BL, position, False)]
  if followed:
    blocks.append(canvas(net, data, jnp.ones((1, c.length), bool), position, True))
  return blocks, position + c.length


def features(c, hidden, data):
  return hidden[jnp.maximum(data['step'], 0), jnp.arange(c.length)]


def outputs(net, c, features):
  return features @ net.params['code_head_DV']


def score(c, logits_LV, t_L, ref_logits_LV=None):
  return sampling.scores(logits_LV, t_L, ref_logits_LV)


def corrupt(c, data, key):
  """The data with one canvas on which a random set of places is masked."""
  share = jnp.cos(np.pi / 2 * jax.random.uniform(key))
  order_L = jax.random.permutation(fold_in(key, 1), c.length)
  masked_L = order_L < jnp.maximum(c.length * share, 1)
  return data | {'step': masked_L.astype(jnp.int32) - 1}


def sample(net, c, context, key, alive, followed):
  ends = c.length * (1 - np.cos(np.pi / 2 * np.arange(1, c.steps + 1) / c.steps))

  def step(state, at):
    (t_L, step_L, _), (i, count) = state, at
    shown_1L = (step_L < i)[None]
    block = canvas(net, {'tokens': t_L}, shown_1L, context.position, False)
    logits_LV = outputs(net, c, net.forward(context, [block])[0][0])
    new_L, logp_L = sampling.draw(fold_in(key, i), logits_LV, top_k=0, top_p=0.0)
    noise_L = c.noise * jax.random.gumbel(fold_in(key, c.steps + i), (c.length,))
    rank_L = jnp.argsort(jnp.argsort(-jnp.where(shown_1L[0], jnp.inf, logp_L + noise_L)))
    now_L = ~shown_1L[0] & (rank_L < count)
    drawn = jnp.where(alive, new_L, 0), i, logp_L
    return tuple(jnp.where(now_L, a, b) for a, b in zip(drawn, state)), None

  state = jnp.zeros(c.length, jnp.int32), jnp.full(c.length, c.steps), jnp.zeros(c.length)
  steps = jnp.arange(c.steps), np.ceil(ends - 1e-9).astype(int)
  (t_L, step_L, sampler_L), _ = jax.lax.scan(step, state, steps)
  data, logp_L = {'tokens': t_L, 'step': step_L}, sampler_L
  if c.estimator == 'remask':
    data = corrupt(c, data, context.group_key)
    blocks, _ = inputs(net, c, data, context.position, False)
    read = features(c, net.forward(context, blocks)[0], data)
    logp_L = score(c, outputs(net, c, read), data['tokens']).logp
  if followed:
    context = net.append(context, *inputs(net, c, data, context.position, True))
  return data, logp_L, sampler_L, context
