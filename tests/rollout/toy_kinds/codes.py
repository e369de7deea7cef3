"""A picture of tokens, one after the other, with a guidance pair while it is drawn. Data of a
row: {'tokens': int32 [L]}."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import toy_model

from vargrl.rollout import sampling

fold_in = jax.random.fold_in

TEXT, ENDS, CHUNK = False, False, 1
FROM_MODEL, SHARED, PACKED_ONLY = (), (), ()


@dataclasses.dataclass(frozen=True)
class Config:
  """guidance g: logits are uncond + g (cond - uncond); the policy of record is cond. uncond:
  words of the prompt that asks for nothing."""

  length: int
  guidance: float
  uncond: tuple[int, ...]


def length(c):
  return c.length


def parts(c):
  return (), np.zeros(c.length, np.int32)


def choices(c):
  return 1


def mask(c, data):
  return jnp.ones(c.length, bool), jnp.array(True)


def actions(c, data):
  return data['tokens']


def latents(c, data):
  return data['tokens'][None]


def soft(c, logits_LV, data):
  return toy_model.straight_through(logits_LV, data['tokens'])


def inputs(net, c, data, position, followed):
  x_LD = net.embed('codes_VD', data['tokens'])
  x_SD = jnp.concatenate([net.params['begin_D'][None], x_LD])
  block = toy_model.causal(x_SD, position, jnp.ones(len(x_SD), bool), 'image')
  return [block], position + len(x_SD)


def commit(net, c, context, data):
  return net.append(context, *inputs(net, c, data, context.position, True))


def features(c, hidden, data):
  return hidden[0, :-1]


def outputs(net, c, features):
  return features @ net.params['code_head_DV']


def score(c, logits_LV, t_L, ref_logits_LV=None):
  return sampling.scores(logits_LV, t_L, ref_logits_LV)


def sample(net, c, context, key, alive, followed):
  # The unconditional branch is of no row and no prompt: vmap leaves its prefix unbatched.
  uncond = {'tokens': jnp.array(c.uncond), 'length': jnp.int32(len(c.uncond))}
  branches = [context, net.prefill(uncond)] if c.guidance != 1 else [context]

  def read(x_1D, i, rooms):
    logits, out = [], []
    for branch, room in zip(branches, rooms):
      block = toy_model.causal(x_1D, branch.position + i, jnp.ones(1, bool), 'image')
      (h_11D,), (part,) = net.run((*branch.parts, room), [block])
      logits.append(outputs(net, c, h_11D[0]))
      out.append(toy_model.write(room, part, i))
    return logits, out

  def step(state, i):
    logits, rooms = state
    guided = sampling.guide(logits[0], logits[-1], c.guidance - 1)
    t_1, sampler_1 = sampling.draw(fold_in(key, i), guided, top_k=0, top_p=0.0)
    t_1 = jnp.where(alive, t_1, 0)
    out = t_1[0], sampling.select(logits[0], t_1)[0], sampler_1[0]
    return read(net.embed('codes_VD', t_1), i + 1, rooms), out

  state = read(net.params['begin_D'][None], 0, [net.room(c.length + 1)] * len(branches))
  (_, rooms), (t_L, logp_L, sampler_L) = jax.lax.scan(step, state, jnp.arange(c.length))
  parts, after = (*context.parts, rooms[0]), context.position + c.length + 1
  return {'tokens': t_L}, logp_L, sampler_L, context.replace(parts=parts, position=after)
