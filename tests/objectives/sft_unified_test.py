"""The loss of packed dialogues: means over all that counts in a batch, however it is cut; what is
drawn is data.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.objectives import sft_unified
from vargrl.training import update
from vargrl.types import Experience, Models, Scores

SCALES, BITS = (1, 2), 2
OPTIONS = dict(condition_drop=0.0, drop_path=0.0, flip=0.3, flip_scales=1)


class Config:
  depth, bits = 3, BITS


def scores(logp):
  return Scores(jnp.asarray(logp), jnp.full_like(logp, 0.5), jnp.ones_like(logp))


def models(**changes):
  """A policy whose log-probabilities are in the batch; a tokenizer whose bits are the sign of
  pixels.
  """

  def packed(policy, frozen, batch):
    return scores(policy * batch.label['words']), scores(policy * batch.label['bits'])

  def correct(frozen, image_Byxc, flips_BLe):
    t_BLe = (image_Byxc.reshape(len(image_Byxc), 5, BITS) > 0).astype(jnp.int32)
    return t_BLe, t_BLe ^ flips_BLe

  return Models(
    **dict(init=None, config=Config, scales=SCALES, packed=packed, correct=correct) | changes
  )


def row(words, wanted, bits, drawn):
  """An Experience of rows: logp of words [B, S] and of places [B, I, L]."""
  share = lambda x: jnp.asarray(x, jnp.float32) * len(x) / max(np.sum(x), 1)
  return Experience(
    label={
      'words': jnp.asarray(words),
      'loss_mask': share(wanted),
      'bits': jnp.asarray(bits),
      'drawn': share(drawn),
    },
    tokens=jnp.zeros((len(words), 1, 1, 5, BITS), jnp.int32),
  )


def test_the_loss_by_hand_and_in_parts():
  # Words that count: -1 and -2 in one row, -6 in the other, mean 3. Pictures: one of -0.4 a place,
  # 0.2 a bit.
  words, wanted = [[-9.0, -1, -2], [-6, -9, -9]], [[0, 1, 1], [1, 0, 0]]
  bits, drawn = np.full((2, 1, 5), -0.4, np.float32), [[1], [0]]
  bits[1] = -100
  batch = row(words, wanted, bits, drawn)
  value, metrics = sft_unified.loss(models(), {'policy': 1.0}, {}, batch, bits=3.0, alpha=0.5)
  mean = lambda x: float(x.total / x.count)
  assert mean(value) == pytest.approx(3 + 3 * 0.2, abs=1e-6)
  assert mean(metrics['loss/words']) == pytest.approx(3) and mean(
    metrics['loss/bits']
  ) == pytest.approx(0.2)
  assert mean(metrics['nll/scale_1']) == pytest.approx(0.2)
  parts = [
    sft_unified.loss(
      models(),
      {'policy': 1.0},
      {},
      jax.tree.map(lambda x, i=i: x[i], update.split(batch, 2)),
      bits=3.0,
      alpha=0.5,
    )[0]
    for i in range(2)
  ]
  assert sum(p.total for p in parts) / sum(p.count for p in parts) == pytest.approx(
    mean(value), abs=1e-6
  )


def test_without_a_picture_in_the_batch_its_loss_is_nothing():
  batch = row([[-1.0, -1]], [[1, 1]], np.full((1, 1, 5), -7.0, np.float32), [[0]])
  value, _ = sft_unified.loss(models(), {'policy': 1.0}, {}, batch, bits=3.0, alpha=0.0)
  assert float(value.total) == pytest.approx(1)


def collected(image, flip=0.3, **changes):
  batch = {name: jnp.zeros((2, 4)) for name in sft_unified.FEATURES} | {
    'image': jnp.asarray(image),
    'loss_mask': jnp.array([[1.0, 0, 0, 0], [1, 1, 1, 0]]),
    'image_start': jnp.array([[0], [-1]]),
  }
  run = sft_unified.collect(models(), **OPTIONS | dict(flip=flip) | changes)
  return run({}, {}, batch, jax.random.key(0), 0).batch


def test_what_is_drawn_at_random_is_data_and_weights_are_means():
  image = np.ones((2, 1, 5, 1, 2), np.float32)
  out = collected(image)
  assert out.tokens.shape == out.shown.shape == (2, 1, 1, 5, BITS) and (out.tokens == 1).all()
  flipped = np.asarray(out.tokens != out.shown)
  assert not flipped[..., 1:, :].any()  # flip_scales=1: the first scale alone
  np.testing.assert_allclose(out.label['loss_mask'], np.array([[1, 0, 0, 0], [1, 1, 1, 0]]) / 2)
  np.testing.assert_allclose(out.label['drawn'], [[2], [0]])
  assert out.keep is None and not out.label['dropped'].any()
  assert collected(image, drop_path=0.5, condition_drop=1.0).keep.shape == (2, 1, 1, 3, 2)
  np.testing.assert_array_equal(collected(image, flip=0.0).shown, out.tokens)


def test_rows_without_room_for_pictures():
  out = collected(np.ones((2, 0, 5, 1, 2), np.float32))
  assert out.tokens.shape == (2, 1, 0, 5, BITS)


def test_wrong_settings_are_told():
  check = lambda m=None, **changes: sft_unified.check(
    models() if m is None else m, **OPTIONS | changes, updates=1, reference=False
  )
  check()
  for changes, words in (
    (dict(flip=1.5), 'flip: 1.5'),
    (dict(condition_drop=-1), 'expected 0 to 1'),
    (dict(drop_path=1.0), 'drop_path: 1.0'),
  ):
    with pytest.raises(ValueError, match=words):
      check(**changes)
  with pytest.raises(ValueError, match='words and pictures expected'):
    check(models(packed=None))
  with pytest.raises(ValueError, match='loss.bits: -1'):
    sft_unified.check_loss(models(), bits=-1, alpha=0.0, reference=False)
