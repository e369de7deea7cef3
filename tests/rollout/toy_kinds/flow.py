"""A picture of latents by Euler steps from noise, random inside a window of steps whose start the
rows of a prompt share. An action is a step of the window.

Data of a row: {'tokens' [L, C]: the latents; 'x', 'eps', 'mean' [A, L, C], 't', 'h' [A]}."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import toy_model

from vargrl.types import Scores

fold_in = jax.random.fold_in

TEXT, ENDS, CHUNK = False, False, 1
FROM_MODEL, SHARED, PACKED_ONLY = (), (), ()


@dataclasses.dataclass(frozen=True)
class Config:
  """window: (its earliest step, the end of its last one, its length). ratio: what stands for a
  log-probability, 'norm': mean(eps (mu - mean)) (RatioNorm, https://arxiv.org/abs/2510.22319);
  'gaussian': the density, averaged; 'match': -mean((v - mean)^2), of data, whose `mean` is the
  velocity of the path."""

  length: int
  steps: int
  window: tuple[int, int, int]
  noise: float
  ratio: str


def length(c):
  return c.window[2]


def parts(c):
  return (), np.zeros(c.window[2], np.int32)


def choices(c):
  return 1


def mask(c, data):
  return jnp.ones(c.window[2], bool), jnp.array(True)


def actions(c, data):
  return {name: x for name, x in data.items() if name != 'tokens'}


def latents(c, data):
  return data['tokens'][None]


def drift(c, x, v, t, h):
  """(mean, deviation) of a step of the SDE with the flow's marginals
  (https://arxiv.org/abs/2505.05470). Finite whatever the data of a dead row are."""
  t = jnp.clip(t, 1 / c.steps / 2, 1.0)
  sigma = c.noise * jnp.sqrt(t / (1 - jnp.where(t == 1, 1 - 1 / c.steps, t)))
  return x - h * (v + sigma**2 / (2 * t) * (x + (1 - t) * v)), sigma * jnp.sqrt(h)


def levels(net, x_BLC, t_B, position, kept):
  time_Bt = jnp.stack([t_B, jnp.sin(np.pi * t_B), jnp.cos(np.pi * t_B)], -1)
  x_BLD = x_BLC @ net.params['latent_CD'] + (time_Bt @ net.params['time_tD'])[:, None]
  return toy_model.canvases(x_BLD, position, kept)


def inputs(net, c, data, position, followed):
  blocks = [levels(net, data['x'], data['t'], position, False)]
  if followed:
    blocks.append(levels(net, data['tokens'][None], jnp.zeros(1), position, True))
  return blocks, position + c.length


def features(c, hidden, data):
  return hidden


def outputs(net, c, features):
  return features @ net.params['velocity_head_DC']


def score(c, v, data, ref_v=None):
  t, h = data['t'][:, None, None], data['h'][:, None, None]

  def logp(v):
    if c.ratio == 'match':
      return -jnp.mean((v - data['mean']) ** 2, (1, 2))
    mu, std = drift(c, data['x'], v, t, h)
    if c.ratio == 'norm':
      return jnp.mean(data['eps'] * (mu - data['mean']), (1, 2))
    std = jnp.maximum(std, 1e-3)
    drawn = data['mean'] + std * data['eps']
    return jax.scipy.stats.norm.logpdf(drawn, mu, std).mean((1, 2))

  zeros = jnp.zeros(len(v))
  if ref_v is None:
    return Scores(logp(v), zeros, zeros)
  return Scores(logp(v), zeros, zeros, jnp.mean((v - ref_v) ** 2, (1, 2)), logp(ref_v))


def corrupt(c, data, key):
  """Places of the straight paths from noise to the latents, with their velocities."""
  A, last = c.window[2], data['tokens']
  t = jax.random.uniform(key, (A,), minval=0.05, maxval=0.95)
  eps, t_A11 = jax.random.normal(fold_in(key, 1), (A, *last.shape)), t[:, None, None]
  x = (1 - t_A11) * last[None] + t_A11 * eps
  return dict(tokens=last, x=x, eps=eps, mean=eps - last[None], t=t, h=jnp.zeros(A))


def sample(net, c, context, key, alive, followed):
  (low, high, A), h = c.window, 1 / c.steps
  first = jax.random.randint(context.group_key, (), low, high - A + 1)
  shape = c.length, net.model.c.channels

  def step(x, i):
    t = jnp.float32(1) - i * jnp.float32(h)
    block = levels(net, x[None], t[None], context.position, False)
    v = outputs(net, c, net.forward(context, [block])[0])[0]
    mean, std = drift(c, x, v, t, h)
    inside = (i >= first) & (i < first + A)
    eps = jax.random.normal(fold_in(key, i), shape)
    after = jnp.where(inside, mean + std * eps, x - h * v)
    return after, dict(x=x, eps=eps, mean=mean, t=t, h=jnp.float32(h), v=v)

  start = jax.random.normal(fold_in(key, c.steps), shape)
  last, steps = jax.lax.scan(step, start, jnp.arange(c.steps))
  data = {name: jax.lax.dynamic_slice_in_dim(x, first, A) for name, x in steps.items()}
  v, data['tokens'] = data.pop('v'), last
  logp_A = score(c, v, actions(c, data)).logp
  if followed:
    context = net.append(context, *inputs(net, c, data, context.position, True))
  return data, logp_A, logp_A, context
