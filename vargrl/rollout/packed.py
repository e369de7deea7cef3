"""Log-probabilities of rows that hold several dialogues (data/dialogue/train.py), under a unified
policy: what supervised tuning learns from. Rollouts of one dialogue are
rollout/interleaved.py's."""

from functools import partial

import jax
import jax.numpy as jnp

from vargrl.models import infinity, qwen2
from vargrl.rollout import groups, sampling
from vargrl.rollout.bits import Config


def logprobs(
  model, tokenizer, params, vq_params, row_B, bits_BILe, shown_BILe, dropped_BI=None, keep_BIX2=None
):
  """(Scores of words, each field [B, S], Scores of bits, [B, I, L]) from one teacher-forced pass.

  row_B: see models/unified.py. A word is scored from what is before it in its own sequence; the
  first of a sequence, padding and a picture's places have scores that mean nothing. shown: the bits
  that the model sees. dropped: pictures without their condition, as the released code drops it.
  keep: drop-path factors of the decoder."""
  params = params | {'lm': qwen2.with_head(model.c.lm, params['lm'])}
  b, *_ = groups.spread(len(bits_BILe), 1)
  one = partial(score, model, tokenizer, params, vq_params)
  return jax.vmap(one, **b)(row_B, bits_BILe, shown_BILe, dropped_BI, keep_BIX2)


def score(model, tokenizer, params, vq_params, row, bits_ILe, shown_ILe, dropped_I, keep_IX2):
  """The same of one row: Scores [S] and [I, L], or None where I is 0."""
  c, (I, L, e) = model.c, bits_ILe.shape
  call = lambda *args, method: model.apply({'params': params}, *args, method=method)
  lm, drawer = (
    partial(part(c).apply, {'params': params[name]}, method='logits')
    for part, c, name in ((qwen2.Model, c.lm, 'lm'), (infinity.Model, c.draw, 'drawer'))
  )
  row = jax.tree.map(lambda x: x[None], row)
  inputs_ILC, dropped_BI = jnp.zeros((I, L - 1, e)), None if dropped_I is None else dropped_I[None]
  if I:
    inputs_ILC = jax.lax.stop_gradient(
      tokenizer.apply({'params': vq_params}, shown_ILe, method='embed')
    )
  h_BSD = call(row, inputs_ILC[None], dropped_BI, method='forward')
  words = groups.in_chunks(
    lambda x, t_L: sampling.scores(lm(x[None])[0], t_L), jnp.roll(h_BSD[0], 1, 0), row['tokens'][0]
  )
  if not I:
    return words, None
  x_ILD, head_I2D = call(row, h_BSD, dropped_BI, keep_IX2, method='decode')

  def of_bits(x_LD, head_2D, t_Le):
    def one(x, t_Le):
      out = sampling.scores(drawer(x[None], head_2D[None])[0], t_Le)
      return jax.tree.map(lambda x: x.sum(-1), out).replace(hit=out.hit.mean(-1))

    return groups.in_chunks(one, x_LD, t_Le, wide=Config.wide)

  return words, jax.vmap(of_bits)(x_ILD, head_I2D, bits_ILe)
