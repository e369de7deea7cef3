from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from vargrl.objectives import sft
from vargrl.types import Models


def test_the_loss_is_the_mean_negative_log_likelihood():
  # [1, 2, 3] and [2, 2, 5]: (6 + 9) / 6 = 2.5; scales of one token: 1.5, 2 and 4.
  models = toys.said([-1, -2, -3], [-2, -2, -5])
  value, metrics = sft.loss(models, {'policy': None}, {}, None, alpha=0)
  assert toys.mean(value) == pytest.approx(2.5)
  assert [toys.mean(metrics[f'nll/scale_{i}']) for i in range(3)] == pytest.approx([1.5, 2, 4])


def test_alpha_gives_scales_their_share():
  # Scales of 1 and 4 tokens at alpha 1: half of 3, half of the mean of [1, 1, 1, 5].
  models = toys.said([-3, -1, -1, -1, -5])
  models = Models(init=None, config=None, scales=(1, 2), logprobs=models.logprobs)
  value, _ = sft.loss(models, {'policy': None}, {}, None, alpha=1)
  assert toys.mean(value) == pytest.approx(0.5 * 3 + 0.5 * 2)


def collected(label_drop, drop_path=0.0, B=64):
  image = jnp.arange(B)
  models = Models(
    init=None, config=SimpleNamespace(depth=3), scales=toys.SCALES, classes=toys.CLASSES,
    encode=lambda frozen, x: jnp.repeat(x[:, None], toys.L, 1),
  )  # fmt: skip
  run = sft.collect(models, label_drop=label_drop, drop_path=drop_path)
  return run({}, {}, {'image': image, 'label': image % toys.CLASSES}, jax.random.key(0), 0).batch


def test_label_drop_replaces_a_label_by_the_unconditional_class():
  label = np.arange(64) % toys.CLASSES
  np.testing.assert_array_equal(collected(0.0).label, label)
  np.testing.assert_array_equal(collected(1.0).label, toys.CLASSES)
  half = np.asarray(collected(0.5).label)
  dropped = half == toys.CLASSES
  assert 16 < dropped.sum() < 48
  np.testing.assert_array_equal(half[~dropped], label[~dropped])
  assert collected(0.5).tokens.shape == (64, 1, toys.L)
  np.testing.assert_array_equal(collected(0.5).tokens[:, 0, 0], np.arange(64))


def test_drop_path_rises_from_nothing_to_its_rate_and_keeps_the_mean():
  assert collected(0.0).keep is None
  keep = np.asarray(collected(0.0, drop_path=0.5, B=2000).keep)
  assert keep.shape == (2000, 1, 3, 2)
  np.testing.assert_array_equal(keep[:, :, 0], 1)
  for layer, kept in ((1, 0.75), (2, 0.5)):
    assert set(np.unique(keep[:, :, layer])) == {np.float32(0), np.float32(1 / kept)}
    assert keep[:, :, layer].mean() == pytest.approx(1, abs=0.1)
  assert 0.3 < (keep[:, 0, 2, 0] == keep[:, 0, 2, 1]).mean() < 0.7  # branches are drawn apart
