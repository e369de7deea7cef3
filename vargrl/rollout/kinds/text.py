"""Text: tokens, one after the other, until one of them ends the segment.

Data of a row: {'tokens': int32 [L]}, 0 after the end. An action is a token; its log-probability is
categorical. The first one is predicted by the place before the segment. Needs of a net: allocate,
next_token, text_logits, end_text, read_text (of given texts), and remembers, whether it needs the
hidden states of a text after it (vargrl/models/nets/language.py).
"""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np

from vargrl.io import numbers
from vargrl.models.nets.block import Block
from vargrl.rollout import sampling, vmaps

TEXT = True  # it says something; else it is a picture
ENDS = True  # rows may end within it
CHUNK = 1  # times vmaps.CHUNK actions whose logits exist at once
FROM_MODEL = ('next_token',)  # fields of Config that the policy's config says
SHARED = ()  # what policy and tokenizer must have alike
# Of packed rows: how they are scored, the field that is their size, with the key of the data's
# section that says it, and fields that no config has.
NEUTRAL = dict(temperature=1.0, top_k=0, top_p=0.0, stop=())
PACKED_SIZE, PACKED_ONLY = ('max_tokens', 'length'), ()


@dataclasses.dataclass(frozen=True)
class Config:
  """How tokens are sampled.

  max_tokens: at most so many. temperature, top_k, top_p: see rollout/sampling.py; top_k=1 is
  greedy, 0 switches either off. stop: token ids that end the row, of which they are a part.
  next_token: the id that ends the segment and begins the next one, -1 where no token does.
  """

  max_tokens: int
  temperature: float
  top_k: int
  top_p: float
  stop: tuple[int, ...]
  next_token: int = -1

  def __post_init__(self):
    numbers.check_number('rollout.temperature', self.temperature, above=0)
    numbers.check_number('rollout.top_k', self.top_k, least=0)
    numbers.check_number('rollout.top_p', self.top_p, least=0, most=1)
    numbers.check_number('rollout.max_tokens', self.max_tokens, least=1, whole=True)


@flax.struct.dataclass
class State:
  """The loop over tokens. step: int32, tokens so far. any_alive: bool, of all rows. alive: bool, of
  this row. last_11D: predicts the next token. hidden_1LD: of all tokens, or None."""

  step: jax.Array
  any_alive: jax.Array
  alive: jax.Array
  last_11D: jax.Array
  cache: object
  tokens_L: jax.Array
  logp_L: jax.Array
  sampler_logp_L: jax.Array
  hidden_1LD: object


def length(c):
  return c.max_tokens


def parts(c):
  """(names of the segment's parts, the part of each action): a text is one part."""
  return (), np.zeros(c.max_tokens, np.int32)


def ends(c, tokens_L):
  """bool [L]: where a token ends the segment."""
  return (tokens_L[:, None] == jnp.array((c.next_token, *c.stop))[None]).any(-1)


def choices(c):
  """How many draws an action is made of."""
  return 1


def mask(c, data):
  """(mask_L, whether the row goes on with its next segment): the tokens up to the first that
  ends.
  """
  ends_L = ends(c, data['tokens'])
  mask_L = jnp.cumsum(ends_L) - ends_L == 0
  return mask_L, (mask_L & (data['tokens'] == c.next_token)).any()


def actions(c, data):
  return data['tokens']


def latents(c, data):
  """Nothing here is a picture."""
  return None


def inputs(net, c, data, position, followed):
  """([Block], the position after it). The last token of a row is never read."""
  tokens_L = data['tokens']
  valid_L = mask(c, data)[0]
  position_L = position + jnp.cumsum(valid_L) - valid_L
  after = position + valid_L.sum()
  if not followed:
    tokens_L, valid_L, position_L = (x[:-1] for x in (tokens_L, valid_L, position_L))
  return [
    Block(tokens_L, position_L, valid_L, expert='text', level_L=np.arange(len(tokens_L)))
  ], after


def commit(net, c, context, data):
  """The context after a text that is given."""
  return net.read_text(context, data['tokens'], mask(c, data)[0])


def features(c, hidden, data):
  """What the head reads for each action, [L, D]."""
  return hidden[0, : len(data['tokens'])]


def outputs(net, c, features):
  """float32 logits_LV at the sampling temperature."""
  return net.text_logits(features[None]) / c.temperature


def score(c, logits_LV, tokens_L, ref_logits_LV=None):
  return sampling.scores(logits_LV, tokens_L, ref_logits_LV)


def sample(net, c, context, key, alive, followed):
  """(data, logp_L, sampler_logp_L, the context after the text).

  A row that has ended waits for the others, one that is not alive from the first token on. The loop
  goes on while any row does: were this asked of each row, vmap would copy every cache at every
  step, to keep those of rows that have ended.
  """
  zeros, L = jnp.zeros(c.max_tokens), c.max_tokens
  hidden = None
  if net.remembers and followed:
    hidden = jnp.zeros((1, L, context.last_11D.shape[-1]), context.last_11D.dtype)

  def step(s):
    logits_1V = outputs(net, c, s.last_11D[0])
    t_1, sampler_1 = sampling.draw(
      jax.random.fold_in(key, s.step), logits_1V, top_k=c.top_k, top_p=c.top_p
    )
    logp_1 = sampling.select(logits_1V, t_1)
    put = lambda all_L, x: all_L.at[s.step].set(jnp.where(s.alive, x, 0))
    tokens_L = put(s.tokens_L, t_1[0])
    position = context.position + s.step
    h_11D, cache = net.next_token(tokens_L[s.step][None], position, s.cache)
    alive = s.alive & ~ends(c, t_1)[0]
    hidden = s.hidden_1LD
    if hidden is not None:
      hidden = jax.lax.dynamic_update_slice_in_dim(hidden, h_11D, s.step, 1)
    return State(
      s.step + 1,
      vmaps.any_row(alive),
      alive,
      jnp.where(s.alive, h_11D, s.last_11D),
      cache,
      tokens_L,
      put(s.logp_L, logp_1[0]),
      put(s.sampler_logp_L, sampler_1[0]),
      hidden,
    )

  state = State(
    jnp.int32(0),
    vmaps.any_row(alive),
    jnp.asarray(alive),
    context.last_11D,
    net.allocate(context, L),
    zeros.astype(jnp.int32),
    zeros,
    zeros,
    hidden,
  )
  s = jax.lax.while_loop(lambda s: (s.step < L) & s.any_alive, step, state)
  data = {'tokens': s.tokens_L}
  valid_L = mask(c, data)[0] & alive & (jnp.arange(L) < s.step)
  context = net.end_text(context, s.cache, s.last_11D, valid_L, s.hidden_1LD)
  return data, s.logp_L, s.sampler_logp_L, context
