"""Log-probabilities of rows that hold several dialogues (data/dialogues.py), under a unified policy: what supervised
tuning learns from. Rollouts of one dialogue are rollout/interleaved.py's."""
from functools import partial

import jax
import jax.numpy as jnp

from vargrl.models import infinity, qwen2
from vargrl.rollout import groups, sample
from vargrl.rollout.bits import Config


def logprobs(model, tokenizer, params, vq_params, row, bits_BILe, shown_BILe, dropped_BI=None, keep_BIX2=None):
  """(Scores of words, each field [B, S], Scores of bits, [B, I, L]) from one teacher-forced pass.

  row: see models/unified.py. A word is scored from what is before it in its own sequence; the first of a sequence,
  padding and a picture's places have scores that mean nothing. shown: the bits that the model sees. dropped: pictures
  without their condition, as the released code drops it. keep: drop-path factors of the decoder.
  """
  c, (B, I, L, e) = model.c, bits_BILe.shape
  params = params | {'lm': qwen2.with_head(c.lm, params['lm'])}
  call = lambda *args, method: model.apply({'params': params}, *args, method=method)
  inputs_BILC = jnp.zeros((B, I, L - 1, e))
  if I:
    inputs_BLC = tokenizer.apply({'params': vq_params}, shown_BILe.reshape(B * I, L, e), method='embed')
    inputs_BILC = jax.lax.stop_gradient(inputs_BLC).reshape(B, I, L - 1, e)
  h_BSD = call(row, inputs_BILC, dropped_BI, method='forward')
  lm, drawer = (partial(part(c).apply, {'params': params[name]}, method='logits')
                for part, c, name in ((qwen2.Model, c.lm, 'lm'), (infinity.Model, c.draw, 'drawer')))
  b, *_ = groups.spread(B, 1)
  before_BSD = jnp.roll(h_BSD, 1, 1)
  words = jax.vmap(lambda x_SD, t_S: groups.in_chunks(
      lambda x, t_L: sample.scores(lm(x[None])[0], t_L), x_SD, t_S), **b)(before_BSD, row['tokens'])
  if not I: return words, None
  keep_BX2 = None if keep_BIX2 is None else keep_BIX2.reshape(B * I, *keep_BIX2.shape[2:])
  x_BLD, head_B2D = call(row, h_BSD, dropped_BI, keep_BX2, method='decode')

  def of_bits(x_LD, head_2D, t_Le):
    def one(x, t_Le):
      out = sample.scores(drawer(x[None], head_2D[None])[0], t_Le)
      return jax.tree.map(lambda x: x.sum(-1), out).replace(hit=out.hit.mean(-1))
    return groups.in_chunks(one, x_LD, t_Le, wide=Config.wide)
  b, *_ = groups.spread(B * I, 1)
  bits = jax.vmap(of_bits, **b)(x_BLD, head_B2D, bits_BILe.reshape(B * I, L, e))
  return words, jax.tree.map(lambda x: x.reshape(B, I, L), bits)
