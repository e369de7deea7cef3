"""The size of a real JPEG file."""

import io
import os

import numpy as np
from PIL import Image

from vargrl.rewards import jpeg, mix
from vargrl.rewards.host_samples import HostSamples
from vargrl.types import Samples


def samples(image_Byxc):
  B = len(image_Byxc)
  return HostSamples(image_Byxc, {}, [{'label': 0}] * B, np.arange(B))


def noise(n):
  return np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)


def test_the_score_is_minus_the_kilobytes_of_pillows_file(tmp_path):
  x_Byxc = noise(2)
  by_hand = []
  for i, x_yxc in enumerate(x_Byxc):
    Image.fromarray(x_yxc).save(tmp_path / f'{i}.jpg', quality=80)
    by_hand.append(-os.path.getsize(tmp_path / f'{i}.jpg') / 1000)
  assert jpeg.reward(samples(x_Byxc), quality=80, sign=1) == by_hand
  assert jpeg.reward(samples(x_Byxc), quality=80, sign=-1) == [-r for r in by_hand]


def test_the_file_is_the_image():
  x_yxc = np.full((16, 16, 3), (200, 100, 50), np.uint8)
  y_yxc = np.asarray(Image.open(io.BytesIO(jpeg.encode(x_yxc, 95))))
  assert y_yxc.shape == x_yxc.shape and abs(y_yxc.astype(int) - x_yxc).max() <= 2


def test_a_flat_image_beats_a_noisy_one_and_low_quality_beats_high():
  flat, noisy = jpeg.reward(
    samples(np.stack([np.full((32, 32, 3), 90, np.uint8), noise(1)[0]])), quality=95, sign=1
  )
  assert noisy < flat < 0
  assert noisy < jpeg.reward(samples(noise(1)), quality=20, sign=1)[0]


def test_it_is_a_host_reward_of_a_mix():
  rewards = {'small': dict(name='rewards.jpeg', weight=1.0, quality=95, sign=1)}
  m = mix.make(rewards, bind={}, max_failed=0.0, workers=1, timeout=30, retries=0, chunk=8)
  try:
    x_Byxc = noise(3).astype(np.float32) / 127.5 - 1
    r_B, _, _ = m.score({}, Samples(x_Byxc, {}, {'label': np.arange(3)}), 1)
  finally:
    m.close()
  by_hand = jpeg.reward(samples(noise(3)), quality=95, sign=1)
  np.testing.assert_allclose(r_B, by_hand, rtol=1e-6)
