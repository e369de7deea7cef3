"""Text whose first word is predicted by `begin`, a word of the segment's own that is no action.
Data of a row: {'tokens': int32 [L]}, 0 after the end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import toy_model

from vargrl.rollout import sampling, vmaps

fold_in = jax.random.fold_in

TEXT, ENDS, CHUNK = True, True, 1
FROM_MODEL, SHARED, PACKED_ONLY = (), (), ()


@dataclasses.dataclass(frozen=True)
class Config:
  """stop: the word that ends the segment; a row without it goes no further."""

  max_tokens: int
  begin: int
  stop: int
  temperature: float


def length(c):
  return c.max_tokens


def parts(c):
  return (), np.zeros(c.max_tokens, np.int32)


def choices(c):
  return 1


def mask(c, data):
  ends_L = data['tokens'] == c.stop
  return jnp.cumsum(ends_L) - ends_L == 0, ends_L.any()


def actions(c, data):
  return data['tokens']


def latents(c, data):
  return None


def inputs(net, c, data, position, followed):
  t_S = jnp.concatenate([jnp.array([c.begin]), data['tokens']])
  valid_S = jnp.concatenate([jnp.ones(1, bool), mask(c, data)[0]])
  block = toy_model.causal(net.embed('words_VD', t_S), position, valid_S, 'text')
  return [block], position + valid_S.sum()


def commit(net, c, context, data):
  return net.append(context, *inputs(net, c, data, context.position, True))


def features(c, hidden, data):
  return hidden[0, :-1]


def outputs(net, c, features):
  return features @ net.params['word_head_DV'] / c.temperature


def score(c, logits_LV, t_L, ref_logits_LV=None):
  return sampling.scores(logits_LV, t_L, ref_logits_LV)


def sample(net, c, context, key, alive, followed):
  def read(t, i, room):
    x_1D = net.embed('words_VD', t[None])
    block = toy_model.causal(x_1D, context.position + i, jnp.ones(1, bool), 'text')
    (h_11D,), (part,) = net.run((*context.parts, room), [block])
    return outputs(net, c, h_11D[0]), toy_model.write(room, part, i)

  def step(state):
    i, alive, _, logits_1V, room, out = state
    drawn = sampling.draw(fold_in(key, i), logits_1V, top_k=0, top_p=0.0)
    put = lambda all_L, x_1: all_L.at[i].set(jnp.where(alive, x_1[0], 0))
    out = jax.tree.map(put, out, drawn)
    alive &= out[0][i] != c.stop
    return i + 1, alive, vmaps.any_row(alive), *read(out[0][i], i + 1, room), out

  zeros = jnp.zeros(c.max_tokens)
  begin = read(jnp.int32(c.begin), 0, net.room(c.max_tokens + 1))
  state = jnp.int32(0), alive, vmaps.any_row(alive), *begin, (zeros.astype(jnp.int32), zeros)
  state = jax.lax.while_loop(lambda s: (s[0] < c.max_tokens) & s[2], step, state)
  *_, room, (t_L, logp_L) = state
  data = {'tokens': t_L}
  (block,), after = inputs(net, c, data, context.position, followed)
  parts = (*context.parts, room.replace(valid_S=block.valid_L))
  return data, logp_L, logp_L, context.replace(parts=parts, position=after)
