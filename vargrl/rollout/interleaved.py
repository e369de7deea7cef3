"""Words and pictures in turn, by a unified policy (models/unified.py), and their log-probabilities;
for one prompt and one key, vmapped to P x R.

What a row is made of is a plan that all rows have: so many words at most, a picture, so many words
at most, and so on. A row whose words do not end with the token that begins a picture is over, and
the rest of it masked. A prompt is a dictionary, of words and of the pictures that are read, see
`Prompt` in types.py: 'tokens', 'length', 'position', 'place', and 'patches', 'patch_position',
'patch_segment' as in models/unified.py. Tokens are {'words' [W], 'bits' [I L, e]}; what is said of
them comes in the order of the plan, [L], one number for a word or for the bits of a place."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vargrl.models.layers import cache as caches
from vargrl.models.layers import einsum
from vargrl.models.layers.einsum import used
from vargrl.parallel import rows
from vargrl.parallel.rules import shard
from vargrl.rollout import bits, groups, next_scale, next_token
from vargrl.rollout import sampling as sample
from vargrl.rollout.forced import plan as plan
from vargrl.rollout.forced import score
from vargrl.rollout.groups import keys as keys  # build.py looks for it in a rollout
from vargrl.rollout.parts import last, parted, read, remembered
from vargrl.types import Rollout

SAME = ('scales', 'bits')  # what policy and tokenizer must have in common
PROMPT = ('tokens', 'length', 'position', 'place', 'patches', 'patch_position', 'patch_segment')
AXES = next_token.AXES


@dataclasses.dataclass(frozen=True)
class Config:
  """The sampler. words: at most so many before each picture, and after the last: (48, 0) are words,
  a picture and nothing more, (64,) words alone; a 0 at the beginning is for prompts that end where
  a picture begins.

  temperature, top_k, top_p: of words; stop: tokens that end a row. guidance, bit_temperature,
  bit_top_p: of bits, see rollout/bits.py. nothing: tokens of a dialogue that asks for nothing, to
  where its picture begins; guidance leads away from what is drawn then. released: the positions of
  pictures and the unconditional stream are those of the released code, which has no such dialogue:
  its language model sees nothing but the scale at hand. weights: as in rollout/next_scale.py. The
  log-probabilities that count are the conditional ones, at the sampling temperatures."""

  words: tuple[int, ...]
  temperature: float
  top_k: int
  top_p: float
  stop: tuple[int, ...]
  guidance: float | tuple[float, ...]
  bit_temperature: float | tuple[float, ...]
  bit_top_p: float
  nothing: tuple[int, ...]
  released: bool
  weights: str = 'sharded'

  def __post_init__(self):
    if not self.words or min(self.words) < 0 or 0 in self.words[1:-1] or self.words == (0,):
      raise ValueError(
        f'rollout: words={self.words}, expected how many before each picture and after the last, '
        '0 at '
        'most at the beginning and at the end'
      )
    if any(self.words):
      self.says(max(self.words), 0)
    if self.paired and not (self.nothing or self.released):
      raise ValueError(
        'rollout: guidance without nothing, the tokens of a dialogue that asks for nothing'
      )

  @property
  def pictures(self):
    return len(self.words) - 1

  @property
  def draws(self):
    """The sampler of a picture."""
    return bits.Config(self.guidance, self.bit_temperature, self.bit_top_p, 'cond', self.weights)

  def says(self, length, start):
    """The sampler of words, which end with `start` too."""
    return next_token.Config(
      self.temperature, self.top_k, self.top_p, length, (start, *self.stop), self.weights
    )

  @property
  def paired(self):
    return self.pictures > 0 and self.draws.paired

  @property
  def records_pair(self):
    return False

  def strengths(self, count):
    return self.draws.strengths(count)

  def temperatures(self, count):
    return self.draws.temperatures(count)


# What https://github.com/VARGPT-family/VARGPT-v1.1 draws with: its code, and its paper's numbers.
GREEDY = dict(
  words=(64, 0), temperature=1.0, top_k=1, top_p=0.0, stop=(151645,), nothing=(), released=True
)
PRESETS = {
  'vargpt': Config(**GREEDY, guidance=3.0, bit_temperature=0.5, bit_top_p=0.97),
  'vargpt-paper': Config(**GREEDY, guidance=1.5, bit_temperature=1.0, bit_top_p=0.95),
}


class Stream(NamedTuple):
  """What a picture is drawn from: the language model's cache (None: it has none, the released
  unconditional stream) and the position of the next token; of the decoder, its condition, memory
  with masks, and its cache once there is one."""

  cache: Any
  position: Any
  cond_BD: jax.Array
  memory: tuple
  masks: tuple
  drawn: Any = None


class Asked(NamedTuple):
  """What a dialogue that asks for nothing leaves: see `read`."""

  cache: Any
  position: Any
  h_1SD: jax.Array


def nothing(c, parts):
  """Asked, or None where no picture needs it."""
  if not c.paired or c.released:
    return None
  (_, cache, position), h_1SD, _ = read(
    parts, {'tokens': jnp.array(c.nothing, jnp.int32), 'length': jnp.int32(len(c.nothing))}
  )
  return Asked(cache, position, h_1SD)


def rollout(model, tokenizer, c, params, vq_params, prompt, key, asked=None, axes=()):
  """One prompt, one key -> Rollout. asked: of `nothing`. axes: names of the vmaps around; see
  next_token.proceed.
  """
  parts, (start, end, _) = parted(model, params), model.c.special
  known, h_1SD, seen_1S = read(parts, prompt)
  count, alive = prompt['length'], jnp.asarray(True)  # tokens so far
  memory, out, tokens = (
    [(h_1SD, seen_1S, last(seen_1S) if not c.words[0] else None)],
    [],
    {'words': [], 'bits': []},
  )
  for i, length in enumerate(c.words):
    if length:
      known, said, h_1LD = next_token.proceed(
        parts.lm,
        c.says(length, start),
        params['lm'],
        known,
        jax.random.fold_in(key, 2 * i),
        axes,
        alive,
        states=i < c.pictures,
      )
      alive &= ((said.tokens == start) & (said.mask > 0)).any()
      count += said.mask.sum().astype(jnp.int32)
      there_1L = said.mask[None] > 0
      memory.append((h_1LD, there_1L, last(there_1L)))
      tokens['words'].append(said.tokens)
      out.append(said.replace(tokens=None))
    if i == c.pictures:
      break
    stream = conditional(c, parts, known, count, memory)
    stream, t_Le, drawn = picture(
      tokenizer, c, parts, vq_params, stream, asked, jax.random.fold_in(key, 2 * i + 1)
    )
    tokens['bits'].append(jnp.where(alive, t_Le, 0))
    out.append(jax.tree.map(lambda x: jnp.where(alive, x, 0.0), drawn))
    count += len(t_Le) + 1
    if i + 1 == c.pictures and not c.words[-1]:
      break
    memory[-1] = (*memory[-1][:2], None)
    h_11D, cache = parts.words(
      'extend', parts.words('embed', jnp.array([[end]])), stream.position[None, None], stream.cache
    )
    known = h_11D, caches.fork(cache), stream.position + 1
    memory.append((h_11D, alive[None, None], None))
  empty = {'words': jnp.zeros(0, jnp.int32), 'bits': jnp.zeros((0, model.c.bits), jnp.int32)}
  tokens = {name: jnp.concatenate([empty[name], *found]) for name, found in tokens.items()}
  return jax.tree.map(lambda *x: jnp.concatenate(x), *out).replace(tokens=tokens)


def conditional(c, parts, known, count, memory):
  """The Stream of a picture after what is known."""
  _, cache, position = known
  texts, masks = remembered(parts, memory)
  return Stream(
    cache, count if c.released else position, parts.both('vector', jnp.zeros(1, bool)), texts, masks
  )


def unconditional(c, parts, asked, masks):
  """The Stream that guidance leads away from. masks: of the conditional one's memory."""
  if not c.released:
    there_1S = jnp.ones((1, asked.h_1SD.shape[1]), bool)
    texts, masks = remembered(parts, [(asked.h_1SD, there_1S, last(there_1S))])
    return Stream(
      asked.cache, asked.position, parts.both('vector', jnp.zeros(1, bool)), texts, masks
    )
  room, count = sum(mask.shape[1] for mask in masks), sum(mask.sum() for mask in masks)
  return Stream(
    None,
    jnp.int32(0),
    parts.both('vector', jnp.ones(1, bool)),
    (parts.bits('nothing', room),),
    ((jnp.arange(room) < count)[None],),
  )


def scale(parts, stream, x_1LD, i):
  """(logits_Le2 of scale i, whose places hold x_1LD, the Stream after it)."""
  position_1L = (stream.position + jnp.arange(x_1LD.shape[1]))[None]
  if stream.cache is None:  # and begins anew at each scale
    h_1LD, position, cache = parts.words('forward', x_1LD, position_1L), stream.position, None
  else:
    h_1LD, cache = parts.words('extend', x_1LD, position_1L, stream.cache)
    position = stream.position + x_1LD.shape[1]
  z_1LD = parts.both('outward', h_1LD)
  if i:
    logits, drawn = parts.bits('proceed', z_1LD, stream.drawn, i)
  else:
    logits, drawn = parts.bits('open', z_1LD, stream.cond_BD, stream.memory, stream.masks)
  return logits[0], stream._replace(cache=cache, position=position, drawn=drawn)


def picture(tokenizer, c, parts, vq_params, stream, asked, key):
  """(the Stream after a picture, t_Le, Rollout of it without its tokens)."""
  sampler, count = c.draws, len(parts.c.scales)
  streams = [stream] + ([unconditional(c, parts, asked, stream.masks)] if sampler.paired else [])
  x = [parts.both('first', stream.cond_BD) for stream in streams]
  z_BhwC, out = tokenizer.zeros(1), []
  for i, (strength, temperature) in enumerate(
    zip(sampler.strengths(count), sampler.temperatures(count))
  ):
    logits, streams = zip(*(scale(parts, stream, x_1LD, i) for stream, x_1LD in zip(streams, x)))
    guided = next_scale.mix(jnp.stack(logits), strength) / temperature
    t_Le, sampler_Le = sample.draw(jax.random.fold_in(key, i), guided, top_k=0, top_p=sampler.top_p)
    out.append((t_Le, sample.select(logits[0] / temperature, t_Le).sum(-1), sampler_Le.sum(-1)))
    z_BhwC, next_BLC = tokenizer.apply({'params': vq_params}, z_BhwC, t_Le[None], i, method='step')
    if next_BLC is not None:
      x = [parts.both('next', next_BLC)] * len(streams)
  t_Le, logp_L, sampler_L = (jnp.concatenate(part) for part in zip(*out))
  return streams[0], t_Le, Rollout(None, logp_L, sampler_L, jnp.ones_like(logp_L))


def check_model(c, model):
  """ValueError where the sampler cannot be of this model."""
  start, end, pad = model.special
  for name in ('stop', 'nothing'):
    if bad := [t for t in getattr(c, name) if not 0 <= t < model.text.vocab]:
      raise ValueError(
        f'rollout.{name}: token {bad[0]} found, 0 .. {model.text.vocab - 1} expected'
      )
  if c.nothing and c.nothing[-1] != start:
    raise ValueError(
      f'rollout.nothing: ends with token {c.nothing[-1]}, expected {start}, where a picture begins'
    )
  if {start, end, pad} & {*c.stop}:
    raise ValueError(
      f'rollout.stop: {c.stop} found, others than the tokens of a picture {model.special} expected'
    )


def check_room(c, model, length):
  """ValueError where prompts of `length` tokens leave too little room to the words of an answer."""
  room, most = length + sum(c.words[:-1]) + c.pictures - 1, model.drawer.text_length
  if c.paired and c.released and room > most:
    raise ValueError(
      f'rollout: {room} tokens of a prompt (data.length) and of words before a picture found, at '
      'most '
      f'{most} expected by the released unconditional stream'
    )


def generate(model, tokenizer, c, params, vq_params, prompt_P, keys_PR):
  """Rollout of P prompts x R keys, its tokens {'words' [P, R, W], 'bits' [P, R, I L, e]}. Equal
  rows whatever the mesh."""
  params = jax.lax.optimization_barrier(used(params, model.c.dtype, (*einsum.USED, 'tokens')))
  params, vq_params = groups.laid(c, model, params), groups.laid(c, tokenizer, vq_params)
  check_room(c, model.c, prompt_P['tokens'].shape[-1])
  p, r, _ = groups.spread(*keys_PR.shape)
  asked = nothing(c, parted(model, params))
  one = partial(rollout, model, tokenizer, c, params, vq_params, asked=asked, axes=AXES)
  return jax.vmap(
    lambda prompt, keys_R: jax.vmap(lambda key: one(prompt, key), axis_name=AXES[1], **r)(keys_R),
    axis_name=AXES[0],
    **p,
  )(prompt_P, keys_PR)


def logprobs(
  model,
  tokenizer,
  c,
  params,
  vq_params,
  prompt_P,
  tokens_PR,
  keep_PRX2=None,
  reference=None,
  shown_PR=None,
):
  """Scores of P x R rows of tokens, each field [P, R, L]; a prompt is computed once."""
  p, r, _ = groups.spread(*jax.tree.leaves(tokens_PR)[0].shape[:2])
  one = partial(score, model, tokenizer, c, params, vq_params, reference=reference)
  group = lambda prompt, *given_R: jax.vmap(partial(one, prompt), **r)(*given_R)
  return jax.vmap(group, **p)(prompt_P, tokens_PR, keep_PRX2, shown_PR)


def decode(tokenizer, vq_params, tokens_BL):
  """Bits of B pictures -> image_Byxc in [-1, 1]."""
  return shard(
    tokenizer.apply({'params': vq_params}, rows.shard_rows(tokens_BL), method='decode'), 'Byxc'
  )
