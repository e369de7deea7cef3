"""A picture drawn scale by scale, coarse to fine, all tokens of a scale at once: VAR.

Data of a row: {'tokens': int32 [L], L over all scales or the first few; and, if they are given,
'input_tokens': what the model is shown in their place; 'drop_path' [X, 2]; 'drop_condition' bool}.
An action is a token; its log-probability is categorical. Needs of a net: start_image, next_scale,
end_image and image_end_token (where something follows), fork (to branch), image_logits,
tokens_embedded, tokenize, and tokenizer.zeros (vargrl/models/nets/next_scale.py).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.io import numbers as io_numbers
from vargrl.models.layers.masks import scale_index
from vargrl.models.nets.block import Block
from vargrl.rollout import sampling
from vargrl.types import leading, offsets, sizes

LOGP_OF = ('cond', 'guided', 'guided_stopgrad')
TEXT, ENDS = False, False
CHUNK = 1
FROM_MODEL = ('scales',)
SHARED = ('scales', 'vocab', 'channels')  # what policy and tokenizer must have alike
PACKED_ONLY = ()


@dataclasses.dataclass(frozen=True)
class Config:
  """How tokens are sampled, and whose log-probabilities count.

  guidance g: logits are uncond + g (cond - uncond), so that 1 is off
  (https://arxiv.org/abs/2207.12598); a number or one for each scale. guidance_ramp: g rises
  linearly from 1 at the first scale to `guidance` at the last, as in FoundationVision/VAR, whose
  cfg=1.5 is guidance=2.5 here. temperature: a number or one for each scale. top_k, top_p: see
  rollout/sampling.py; 0 is off. logp_of: the guidance branch whose log-probabilities
  count: 'cond' (the conditional one alone), 'guided' (what is
  sampled, gradient through both branches), 'guided_stopgrad' (no gradient through the
  unconditional one). scales: the policy's.
  """

  guidance: float | tuple[float, ...]
  guidance_ramp: bool
  temperature: float | tuple[float, ...]
  top_k: int
  top_p: float
  logp_of: str
  scales: tuple = ()

  def __post_init__(self):
    check(self)
    io_numbers.check_number('rollout.top_k', self.top_k, least=0)

  images = 1

  @property
  def guided(self):
    """Whether sampling needs the unconditional branch."""
    return set(numbers(self.guidance)) != {1}

  @property
  def logp_guided(self):
    """Whether log-probabilities need it too."""
    return self.guided and self.logp_of != 'cond'

  def strengths(self):
    """How far each scale's logits go beyond the conditional ones: g - 1."""
    count = len(self.scales)
    if not self.guidance_ramp:
      return [g - 1 for g in per_scale('guidance', self.guidance, count)]
    if len(numbers(self.guidance)) > 1:
      raise ValueError(f'rollout: guidance={self.guidance} with guidance_ramp, expected one number')
    return [(self.guidance - 1) * i / max(count - 1, 1) for i in range(count)]

  def temperatures(self):
    return per_scale('temperature', self.temperature, len(self.scales))


def check(c):
  """ValueError for settings that no sampler of pictures can have."""
  if c.logp_of not in LOGP_OF:
    raise ValueError(f'rollout: logp_of={c.logp_of!r}, expected one of {LOGP_OF}')
  for name, least in (('guidance', 0), ('temperature', 1e-6)):
    for x in numbers(getattr(c, name)):
      io_numbers.check_number(f'rollout.{name}', x, least=least)
  io_numbers.check_number('rollout.top_p', c.top_p, least=0, most=1)
  if c.scales:
    c.strengths(), c.temperatures()


def numbers(x):
  return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def per_scale(name, x, count):
  """One number for each scale."""
  found = numbers(x) if len(numbers(x)) > 1 else numbers(x) * count
  if len(found) != count:
    raise ValueError(f'rollout: {name}={x}, {len(found)} numbers, expected one or {count} (scales)')
  return list(found)


# What https://github.com/FoundationVision/VAR samples with: 'var' for its published FID (README,
# 'Sampling & Zero-shot Inference'), 'var-demo' in demo_sample.ipynb.
COMMON = dict(guidance_ramp=True, temperature=1.0, top_k=900, logp_of='cond')
PRESETS = {
  'var': Config(guidance=2.5, top_p=0.96, **COMMON),
  'var-demo': Config(guidance=5.0, top_p=0.95, **COMMON),
}


def length(c):
  return c.images * offsets(c.scales)[-1]


def parts(c):
  """(names of the scales, the scale of each action)."""
  names = tuple(f'scale_{i}' for i in range(len(c.scales)))
  return names, np.tile(scale_index(c.scales), c.images)


def choices(c):
  """How many draws an action is made of."""
  return 1


def mask(c, data):
  """(mask_L, whether the row goes on): all of a picture counts."""
  return jnp.ones(len(data['tokens']), bool), jnp.array(True)


def latents(c, data):
  """The tokens that the tokenizer decodes, [images, L, ..]."""
  return data['tokens'].reshape(c.images, -1, *data['tokens'].shape[1:])


def inputs(net, c, data, position, followed):
  """([Block of the picture, and of the token that ends it if something follows], position
  after).
  """
  shown = data.get('input_tokens', data['tokens'])
  shown = shown.reshape(c.images, -1, *shown.shape[1:])
  x_ILC = net.tokens_embedded(shown)
  L = shown.shape[1]
  options = {name: data[name] for name in ('drop_path', 'drop_condition') if name in data}
  options |= {
    'guided': c.logp_guided,
    'detached': c.logp_guided and c.logp_of == 'guided_stopgrad',
  }
  level_L = scale_index(leading(c.scales, L))
  valid_L, position_L = jnp.ones(L, bool), position + jnp.arange(L)
  blocks = [Block(x_ILC, position_L, valid_L, options, level_L=level_L, expert='image')]
  if followed:
    end = jnp.array([net.image_end_token])
    position_1 = position_L[-1:] + 1
    blocks.append(Block(end, position_1, jnp.ones(1, bool), level_L=np.zeros(1), expert='end'))
    L += 1
  return blocks, position + L


def settings(c, L):
  """{'strength', 'temperature'} of each of L actions, float32 numpy."""
  scales = leading(c.scales, L // c.images)
  one = lambda x: np.tile(np.repeat(np.float32(x[: len(scales)]), sizes(scales)), c.images)
  return {'strength': one(c.strengths()), 'temperature': one(c.temperatures())}


def features(c, hidden, data):
  """{'y' [L, B, D]: what the head reads, 'strength' [L], 'temperature' [L]}."""
  return {'y': jnp.moveaxis(hidden, 0, 1)} | settings(c, len(data['tokens']))


def outputs(net, c, features):
  """float32 logits, [L, V] or [L, e, 2], of the policy of record at the sampling temperature."""
  n_detached = int(c.logp_guided and c.logp_of == 'guided_stopgrad')
  logits = net.image_logits(jnp.moveaxis(features['y'], 0, 1), n_detached)
  along = lambda x: x.reshape(-1, *[1] * (logits.ndim - 2))
  return guided_logits(logits, along(features['strength'])) / along(features['temperature'])


def guided_logits(logits_BLV, strength):
  """The guidance pair's logits -> guided ones; a single row is returned as it is."""
  if len(logits_BLV) == 1:
    return logits_BLV[0]
  return sampling.guide(logits_BLV[0], logits_BLV[1], strength)


def actions(c, data):
  return data['tokens']


def score(c, logits, tokens, ref_logits=None):
  return sampling.scores(logits, tokens, ref_logits)


def draw_scales(net, c, state, z_BhwC, key, numbers, reduce=lambda x: x):
  """(the ImageState and z_BhwC before the next scale, (tokens, logp, sampler_logp)) of the scales
  `numbers`, a range. reduce: of what is known of every bit of a token, see bits.py."""
  strengths, temperatures, out = c.strengths(), c.temperatures(), []
  for i in numbers:
    guided = guided_logits(state.logits_BLV, strengths[i]) / temperatures[i]
    tokens, sampler_logp = sampling.draw(
      jax.random.fold_in(key, i), guided, top_k=c.top_k, top_p=c.top_p
    )
    of_policy = guided if c.logp_of != 'cond' else state.logits_BLV[0] / temperatures[i]
    out.append((tokens, reduce(sampling.select(of_policy, tokens)), reduce(sampler_logp)))
    z_BhwC, inputs_1LC = net.tokenize('step', z_BhwC, tokens[None], i)
    if inputs_1LC is not None:
      state = net.next_scale(state, inputs_1LC, i + 1)
  return state, z_BhwC, tuple(jnp.concatenate(x) for x in zip(*out))


def sample(net, c, context, key, alive, followed, reduce=lambda x: x):
  """(data, logp_L, sampler_logp_L, the context after the picture). Of a row that is not alive, the
  tokens are 0."""
  state, z_BhwC = net.start_image(context, c.guided), net.tokenizer.zeros(1)
  scales = range(len(c.scales))
  state, _, (tokens, logp_L, sampler_L) = draw_scales(net, c, state, z_BhwC, key, scales, reduce)
  if followed:
    context = net.end_image(context, state, alive, len(tokens))
  return {'tokens': jnp.where(alive, tokens, 0)}, logp_L, sampler_L, context


def branches(net, c, context, key, split, copies, spmd, reduce=lambda x: x):
  """({'tokens' [K, L]}, logp_KL, sampler_logp_KL): scales 0 .. split - 1 are drawn once, the others
  `copies` times.

  The first continuation is what `sample` draws with this key. Up to the logits of scale `split` all
  is computed once, and vmap leaves its cache unbatched: one copy, which K rows attend to. spmd: of
  the vmap over K.
  """
  count = len(c.scales)
  state, z_BhwC = net.start_image(context, c.guided), net.tokenizer.zeros(1)
  state, z_BhwC, head = draw_scales(net, c, state, z_BhwC, key, range(split), reduce)
  state = net.fork(state)
  rest = lambda key: draw_scales(net, c, state, z_BhwC, key, range(split, count), reduce)[2]
  # count: no scale has such a key.
  keys_K = jnp.stack([key, *(jax.random.fold_in(key, count + k) for k in range(1, copies))])
  join = lambda a, b: jnp.concatenate([jnp.broadcast_to(a, (copies, *a.shape)), b], 1)
  tokens, logp, sampler_logp = jax.tree.map(join, head, jax.vmap(rest, **spmd)(keys_K))
  return {'tokens': tokens}, logp, sampler_logp
