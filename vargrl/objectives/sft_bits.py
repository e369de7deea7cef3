"""Cross-entropy of the bits of given images, with bitwise self-correction
(https://arxiv.org/abs/2412.04431).
"""

import jax
import jax.numpy as jnp

from vargrl.objectives import sft
from vargrl.types import Collect, Collected, Experience, sizes

FEATURES = ('image',)  # what a batch of data must have, beside what a prompt is made of


def check(models, *, prompt_drop, drop_path, flip, flip_scales, updates, reference):
  sft.check(
    models, label_drop=prompt_drop, drop_path=drop_path, updates=updates, reference=reference
  )
  check_flips(models, flip=flip, flip_scales=flip_scales)


def check_flips(models, *, flip, flip_scales):
  if models.correct is None:
    raise ValueError('tokenizer: one of bits expected, for self-correction')
  if not 0 <= flip <= 1:
    raise ValueError(f'objective.collect.flip: {flip}, expected 0 to 1')
  if flip_scales < 0:
    raise ValueError(f'objective.collect.flip_scales: {flip_scales}, expected at least 0')


def collect(models, *, prompt_drop, drop_path, flip, flip_scales):
  """images and prompts -> Experience: bits, and everything random drawn here, as data.

  prompt_drop: share of prompts replaced by the unconditional one. drop_path: see sft.collect. flip:
  a scale's bits are each turned with a probability that is drawn for it, one of 0, 0.01 .. flip, of
  every image anew; the model is shown these, and predicts what the finer scales then have to
  correct. flip_scales: the first so many scales."""
  layers, scales, bits = models.config.depth, models.scales, models.config.bits

  @jax.jit
  def prepare(frozen, batch, rng):
    drop_key, keep_key, flip_key = jax.random.split(rng, 3)
    B, prompt_P = len(batch['image']), models.prompt(batch)
    flips_BLe = flips(flip_key, B, scales, bits, flip=flip, flip_scales=flip_scales)
    tokens_BLe, shown_BLe = models.correct(frozen, batch['image'], flips_BLe)
    dropped_B = jax.random.uniform(drop_key, (B,)) < prompt_drop
    either = lambda a, b: jnp.where(dropped_B.reshape(B, *[1] * (a.ndim - 1)), a, b)
    return Experience(
      label=jax.tree.map(either, models.unconditional(prompt_P), prompt_P),
      tokens=tokens_BLe[:, None],
      shown=shown_BLe[:, None],
      keep=sft.kept(keep_key, drop_path, B, layers),
    )

  def run(params, frozen, batch, rng, step, phase):
    return Collected(prepare(frozen, batch, rng), {})

  def programs(call, params, frozen, batch, rng):
    return [('', call('prepare', prepare, frozen, batch, rng))]

  return Collect(run, programs)


def flips(key, B, scales, bits, *, flip, flip_scales):
  """int32 [B, L, e]: 1 for the bits to be turned."""
  share_key, bit_key = jax.random.split(key)
  share_Bs = 0.01 * jax.random.randint(share_key, (B, len(scales)), 0, round(100 * flip) + 1)
  share_Bs *= (jnp.arange(len(scales)) < flip_scales)[None]
  share_BL = jnp.repeat(
    share_Bs, jnp.array(sizes(scales)), axis=1, total_repeat_length=sum(sizes(scales))
  )
  return (jax.random.uniform(bit_key, (*share_BL.shape, bits)) < share_BL[..., None]).astype(
    jnp.int32
  )


def loss(models, params, frozen, batch, *, alpha):
  """Mean over rows of the weighted sum over tokens, of each the mean over its bits. alpha = 0
  weighs every token 1 / L, 0.5 is Infinity's weight of a scale."""
  scores, bits = models.logprobs(params['policy'], frozen, batch), models.config.bits
  return sft.of_scores(
    models, scores.replace(logp=scores.logp / bits, entropy=scores.entropy / bits), alpha
  )
