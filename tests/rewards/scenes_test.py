"""The checker as a reward."""

import numpy as np
import pytest

from vargrl.rewards import mix, scenes, worker
from vargrl.rewards.host_samples import HostSamples
from vargrl.scenes import draw, records
from vargrl.scenes import world as worlds
from vargrl.types import Samples

SMALL = worlds.find('small')


def drawn(n):
  """(pictures, captions, meanings)"""
  found = [records.record(SMALL, 0, 'test', i) for i in range(n)]
  return (
    np.stack([draw.image(r.scene, 32) for r in found]),
    [r.caption for r in found],
    [r.meaning.json() for r in found],
  )


def samples(image_Byxc, prompts, key='prompt'):
  record = [{key: prompt} for prompt in prompts]
  return HostSamples(image_Byxc, {}, record, np.arange(len(record)))


def test_a_picture_earns_one_for_its_own_caption_and_less_for_another():
  images, captions, meanings = drawn(14)
  knobs = dict(world='small', strict=True)
  assert scenes.reward(samples(images, captions), **knobs, partial=False) == [1.0] * 14
  assert scenes.reward(samples(images, meanings), **knobs, partial=False) == [1.0] * 14
  known = samples(images, meanings, 'meaning')
  assert scenes.reward(known, **knobs, partial=False) == [1.0] * 14
  other = scenes.reward(samples(images, captions[1:] + captions[:1]), **knobs, partial=False)
  part = scenes.reward(samples(images, captions[1:] + captions[:1]), **knobs, partial=True)
  assert other == [0.0] * 14
  assert all(0 <= p < 1 for p in part) and max(part) > 0


def test_it_is_a_host_reward_of_a_mix():
  images, captions, _ = drawn(3)
  options = dict(name='rewards.scenes', weight=2.0, world='small', strict=False, partial=True)
  m = mix.make(
    {'scenes': options}, bind={}, max_failed=0.0, workers=1, timeout=60, retries=0, chunk=8
  )
  try:
    record = [{'prompt': caption, 'label': 0} for caption in captions]
    r_B, _, _ = m.score({}, Samples(images.astype(np.float32) / 127.5 - 1, {}, record), 1)
  finally:
    m.close()
  assert r_B.tolist() == [2.0, 2.0, 2.0]


def test_wrong_options_and_prompts_are_told():
  images, captions, _ = drawn(1)
  with pytest.raises(ValueError, match="world: 'big' found, one of"):
    scenes.reward(samples(images, captions), world='big', strict=True, partial=False)
  with pytest.raises(ValueError, match="caption: 'a dog' found"):
    scenes.reward(samples(images, ['a dog']), world='small', strict=True, partial=False)
  with pytest.raises(ValueError, match='prompt: .*3.* found, a caption'):
    scenes.reward(samples(images, [3]), world='small', strict=True, partial=False)
  with pytest.raises(ValueError, match="unknown option 'strickt'; did you mean 'strict'"):
    worker.load('rewards.scenes', dict(world='small', strickt=True, partial=False))
