"""Cross-entropy of bits: the turned bits are data, the loss is a mean over them, prompts are
dropped.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from vargrl.objectives import dpo, reduce, sft_bits
from vargrl.types import Experience, Models, Scores

SCALES, BITS = (1, (2, 2), (3, 2)), 4
CHECKED = dict(prompt_drop=0.1, drop_path=0.0, flip=0.3, flip_scales=3, updates=1, reference=False)


def models(**fields):
  return Models(init=None, config=SimpleNamespace(depth=3, bits=BITS), scales=SCALES, **fields)


def correct(frozen, image, flips):
  tokens = jnp.broadcast_to((jnp.arange(11) % 2)[None, :, None], flips.shape)
  return tokens, tokens ^ flips


def collected(B=400, prompt_drop=0.0, flip=0.3, flip_scales=3):
  given = {'text': ((8, 16), 'float32')}
  m = models(
    correct=correct,
    given=given,
    prompt=lambda batch: {'text': batch['text']},
    unconditional=lambda prompt: {'text': -prompt['text']},
  )
  run = sft_bits.collect(
    m, prompt_drop=prompt_drop, drop_path=0.0, flip=flip, flip_scales=flip_scales
  )
  batch = {'image': jnp.zeros((B, 2, 2, 3)), 'text': jnp.ones((B, 2, 3))}
  return run({}, {}, batch, jax.random.key(0), 0).batch


def test_each_scale_of_each_image_has_its_own_share_of_turned_bits_up_to_the_asked_one():
  batch = collected()
  turned = np.asarray(batch.tokens ^ batch.shown)[:, 0]
  assert turned.shape == (400, 11, BITS) and set(np.unique(turned)) == {0, 1}
  assert turned.mean() == pytest.approx(0.15, abs=0.02)
  fine = turned[:, 5:].mean((1, 2))  # 24 bits each
  assert fine.max() > 0.3 and (fine == 0).mean() > 0.05
  assert np.corrcoef(fine, turned[:, 1:5].mean((1, 2)))[0, 1] < 0.2  # drawn apart
  assert not np.asarray(collected(flip=0.0).tokens ^ collected(flip=0.0).shown).any()
  few = np.asarray(collected(flip_scales=2).tokens ^ collected(flip_scales=2).shown)[:, 0]
  assert few[:, :5].any() and not few[:, 5:].any()


def test_dropped_prompts_become_the_unconditional_one():
  text = np.asarray(collected(prompt_drop=0.25).label['text'])
  assert text.shape == (400, 2, 3) and (text == text[:, :1, :1]).all()
  assert (text[:, 0, 0] == -1).mean() == pytest.approx(0.25, abs=0.06)
  assert (np.asarray(collected().label['text']) == 1).all()


def test_the_loss_is_the_mean_over_bits_and_half_a_power_is_the_published_weight_of_a_scale():
  logp = -jnp.arange(1.0, 12.0)[None, None]
  said = models(logprobs=lambda *_: Scores(logp, jnp.zeros_like(logp), jnp.zeros_like(logp)))
  value = lambda alpha: toys.mean(sft_bits.loss(said, {'policy': None}, {}, None, alpha=alpha)[0])
  assert value(0.0) == pytest.approx(6 / BITS)
  weight = np.concatenate([np.full(n, n**-0.5) for n in (1, 4, 6)])
  assert value(0.5) == pytest.approx(
    float((weight / weight.sum() * np.arange(1, 12)).sum()) / BITS, rel=1e-5
  )
  np.testing.assert_allclose(
    reduce.token_weights(SCALES, alpha=0.5, first=0, last=2), weight / weight.sum(), rtol=1e-6
  )


def test_a_mask_of_pixels_reaches_the_tokens_of_scales_that_are_no_squares():
  mask_Byx = np.zeros((1, 6, 4), bool)
  mask_Byx[0, 4, 3] = True
  mask = np.asarray(reduce.propagate(jnp.asarray(mask_Byx), SCALES))[0]
  assert (
    mask[:1].tolist() == [1]
    and mask[1:5].tolist() == [0, 0, 0, 1]
    and mask[5:].tolist() == [0, 0, 0, 0, 0, 1]
  )


def test_preferences_between_bits_are_given_as_tokens_or_as_pictures():
  m = models(encode=lambda frozen, x: jnp.ones((len(x), 11, BITS), jnp.int32))
  assert dpo.tokens_of(m, {}, jnp.zeros((2, 6, 4, 3))).shape == (2, 11, BITS)
  assert dpo.tokens_of(m, {}, jnp.zeros((2, 11, BITS), jnp.int32)).shape == (2, 11, BITS)
  with pytest.raises(ValueError, match='10 tokens an image found, 11 in the model'):
    dpo.tokens_of(m, {}, jnp.zeros((2, 10, BITS), jnp.int32))


@pytest.mark.parametrize(
  'change', [dict(flip=1.5), dict(flip_scales=-1), dict(prompt_drop=2.0), dict(drop_path=1.0)]
)
def test_what_means_nothing_is_refused(change):
  name = 'label_drop' if 'prompt_drop' in change else list(change)[0]
  with pytest.raises(ValueError, match=name):
    sft_bits.check(models(correct=correct), **CHECKED | change)
  with pytest.raises(ValueError, match='tokenizer: one of bits'):
    sft_bits.check(models(), **CHECKED)


def test_rows_of_bits_and_prompts_are_cut_together():
  from vargrl.training import update

  batch = Experience(
    label={'text': jnp.arange(4.0)[:, None]},
    tokens=jnp.arange(4 * 2 * 11 * BITS).reshape(4, 2, 11, BITS),
    shown=jnp.zeros((4, 2, 11, BITS)),
  )
  parts = update.split(batch, 2)
  assert parts.tokens.shape == (2, 2, 2, 11, BITS) and parts.label['text'].shape == (2, 2, 1)
  parts = update.split(batch, 8)  # fewer prompts than parts: groups are cut, each with its prompt
  assert parts.tokens.shape == (8, 1, 1, 11, BITS) and parts.shown.shape == (8, 1, 1, 11, BITS)
  first = np.asarray(parts.tokens)[..., 0, 0].reshape(-1) // (11 * BITS)
  np.testing.assert_array_equal(np.asarray(parts.label['text']).reshape(-1), first // 2)
