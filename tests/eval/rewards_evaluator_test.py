"""Rewards on fixed classes: means over exactly the images that were asked for, on the device and in
workers.
"""

import numpy as np
import pytest
import striped

from vargrl.eval import rewards, samples
from vargrl.parallel import rows
from vargrl.rewards import jpeg

POOL = dict(max_failed=0.1, workers=1, timeout=60.0, retries=0, chunk=4)
DEVICE = dict(bright=dict(name='rewards.brightness', weight=1.0))
HOST = dict(small=dict(name='rewards.jpeg', weight=0.0, quality=90, sign=1))


def make(**changes):
  options = dict(classes=(1, 3), per_class=5, seed=0, preset='', batch=4, rewards=DEVICE, pool=POOL)
  return rewards.make(striped.BUILT, **options | changes)


def test_mean_and_deviation_of_every_reward_over_the_images():
  evaluate = make(rewards=DEVICE | HOST)
  polls = []
  try:
    found = dict(evaluate({'policy': {}}, {}, lambda: polls.append(0)))
  finally:
    evaluate.close()
  image_Byxc, _ = samples.sampler(striped.BUILT)(
    {'policy': {}}, {}, classes=(1, 3), per_class=5, seed=0
  )
  wanted = {
    'bright': image_Byxc.mean((1, 2, 3)) / 255,
    'small': [-len(jpeg.encode(image_yxc, 90)) / 1000 for image_yxc in image_Byxc],
  }
  for name, r_B in wanted.items():
    assert found[name] == pytest.approx(np.mean(r_B), rel=1e-5)
    assert found[f'{name}/std'] == pytest.approx(np.std(r_B), rel=1e-4)
  assert found['masked'] == 0 and len(found) == 5
  assert len(polls) == len(list(rows.batches(10, 4)))


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(per_class=0), 'per_class: 0 found'),
    (dict(classes=5), 'classes: 5 found, some of 0 .. 3'),
    (dict(classes=()), 'classes'),
    (dict(preset='var'), "preset: 'var' found"),
    (dict(rewards={}), 'rewards: none found, at least one expected'),
    (
      dict(rewards=dict(a=dict(name='rewards.brightnes', weight=1.0))),
      "did you mean 'rewards.brightness'",
    ),
    (dict(rewards=dict(a=dict(name='rewards.classifier', weight=1.0))), 'without a classifier'),
  ],
)
def test_what_cannot_work_is_told_when_it_is_made(changes, message):
  with pytest.raises(ValueError, match=message):
    make(**changes)
