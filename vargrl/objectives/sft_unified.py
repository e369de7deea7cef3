"""Cross-entropy of a unified policy on packed dialogues (data/dialogue/train.py): of words, and of the
bits of pictures with bitwise self-correction (https://arxiv.org/abs/2504.02949)."""

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.metrics import average
from vargrl.objectives import reduce, sft, sft_bits
from vargrl.types import Collect, Collected, Experience, bounds

# What a batch of data must have.
FEATURES = (
  'tokens',
  'position',
  'segment',
  'wanted',
  'place',
  'patches',
  'patch_position',
  'patch_segment',
  'image',
  'slot',
  'memory',
)


def check(models, *, condition_drop, drop_path, flip, flip_scales, updates, reference):
  if models.packed is None:
    raise ValueError('policy: one of words and pictures expected by objectives.sft_unified')
  sft.check(
    models, label_drop=condition_drop, drop_path=drop_path, updates=updates, reference=reference
  )
  sft_bits.check_flips(models, flip=flip, flip_scales=flip_scales)


def collect(models, *, condition_drop, drop_path, flip, flip_scales):
  """packed rows -> Experience: the bits of their pictures, and everything random drawn here, as
  data.

  label: the row, but for its pictures, with 'dropped' [B, I] and, of all that counts in the whole
  batch, the weight of a word 'wanted' [B, S] and of a picture 'drawn' [B, I]: sums over them are
  means. condition_drop: share of pictures that are drawn without the decoder's condition, which is
  what the released code drops; a prompt is dropped by the data. flip, flip_scales: see
  sft_bits.collect. drop_path: see sft.collect."""
  layers, scales, bits = models.config.depth, models.scales, models.config.bits

  @jax.jit
  def prepare(frozen, batch, rng):
    drop_key, keep_key, flip_key = jax.random.split(rng, 3)
    image = batch['image']
    B, I = image.shape[:2]
    flips_BLe = sft_bits.flips(flip_key, B * I, scales, bits, flip=flip, flip_scales=flip_scales)
    tokens, shown = flips_BLe, flips_BLe
    if I:
      tokens, shown = models.correct(frozen, image.reshape(B * I, *image.shape[2:]), flips_BLe)
    by_row = lambda x: x.reshape(B, 1, I, *x.shape[1:])
    share = lambda x: x * (B / jnp.maximum(x.sum(), 1))
    label = {name: batch[name] for name in FEATURES if name != 'image'} | {
      'wanted': share(batch['wanted']),
      'drawn': share((batch['slot'] >= 0).astype(jnp.float32)),
      'dropped': jax.random.uniform(drop_key, (B, I)) < condition_drop,
    }
    keep = sft.kept(keep_key, drop_path, B * I, layers)
    return Experience(
      label=label,
      tokens=by_row(tokens),
      shown=by_row(shown),
      keep=None if keep is None else by_row(keep[:, 0]),
    )

  def run(params, frozen, batch, rng, step, phase):
    return Collected(prepare(frozen, batch, rng), {})

  def programs(call, params, frozen, batch, rng):
    return [('', call('prepare', prepare, frozen, batch, rng))]

  return Collect(run, programs)


def check_loss(models, *, bits, alpha, reference):
  if not bits >= 0:
    raise ValueError(f'objective.loss.bits: {bits}, expected at least 0')
  reduce.token_weights(models.scales, alpha=alpha, first=0, last=len(models.scales) - 1)


def loss(models, params, frozen, batch, *, bits, alpha):
  """Mean nats of a word that is wanted + `bits` times those of a bit, a picture's tokens weighed by
  scale: alpha = 0 weighs all alike (the released code), 0.5 as Infinity does. The sums of a batch,
  so that rows may be unlike."""
  row, size = batch.label, models.config.bits
  words, drawn = models.packed(params['policy'], frozen, batch)
  value = (-words.logp * row['wanted']).sum(-1)
  counted = (row['wanted'] > 0).astype(jnp.float32)
  metrics = {
    'loss/words': average((-words.logp * row['wanted']).sum(-1)),
    'accuracy/words': average(words.hit, counted),
    'entropy/words': average(words.entropy, counted),
  }
  if drawn is not None:
    weight_L = reduce.token_weights(
      models.scales, alpha=alpha, first=0, last=len(models.scales) - 1
    )
    nll_BI = -(drawn.logp * weight_L[None, None]).sum(-1) / size
    value += bits * (nll_BI * row['drawn']).sum(-1)
    shown = np.float32(1) * (row['drawn'] > 0)[..., None]
    metrics |= {
      'loss/bits': average((nll_BI * row['drawn']).sum(-1)),
      'accuracy/bits': average(drawn.hit, shown),
      'entropy/bits': average(drawn.entropy / size, shown),
    }
    for i, (a, b) in enumerate(bounds(models.scales)):
      metrics[f'nll/scale_{i}'] = average(-drawn.logp[..., a:b] / size, shown)
  value = average(value)
  return value, metrics | {'loss': value}
