"""Several rewards, one score: the sum, the mask, and when to give up."""

import os

import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from vargrl.rewards import mix
from vargrl.types import Samples

HERE = os.path.dirname(os.path.abspath(__file__))


@pytest.fixture(autouse=True)
def judges_are_importable(monkeypatch):
  monkeypatch.syspath_prepend(HERE)


@pytest.fixture
def make():
  """mix.make with the knobs of a test; closes what it made."""
  made = []

  def one(rewards, bind=None, max_failed=0.5, timeout=30.0, retries=0):
    knobs = dict(workers=1, timeout=timeout, retries=retries, chunk=2)
    made.append(mix.make(rewards, bind=bind or {}, max_failed=max_failed, **knobs))
    return made[-1]

  yield one
  for m in made:
    m.close()


def images(n, y=4):
  return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (n, y, y, 3)), jnp.float32)


def samples(image_Byxc, label_B):
  return Samples(image_Byxc, {}, {'label': np.asarray(label_B)})


def uint8(image_Byxc):
  return np.clip(np.round((np.asarray(image_Byxc) + 1) / 2 * 255), 0, 255).astype(np.uint8)


def test_a_device_and_two_host_rewards_are_their_weighted_sum(make):
  rewards = ConfigDict()  # as an experiment holds them
  rewards.light = dict(name='rewards.brightness', weight=2.0)
  rewards.mean = dict(name='judges.mean', weight=-0.5)
  rewards.label = dict(name='judges.label', weight=0.0, scale=10.0)  # a monitor
  x, label_B = images(4), jnp.arange(4)
  r_B, each, counts = make(rewards).score({}, samples(x, label_B), 1)
  light_B, mean_B = (np.asarray(x) + 1).mean((1, 2, 3)) / 2, uint8(x).mean((1, 2, 3))
  np.testing.assert_allclose(each['light'], light_B, rtol=1e-5)
  np.testing.assert_allclose(each['mean'], mean_B, rtol=1e-6)
  np.testing.assert_array_equal(each['label'], [0, 10, 20, 30])
  np.testing.assert_allclose(r_B, 2 * light_B - 0.5 * mean_B, rtol=1e-5)
  assert set(each) == {'light', 'mean', 'label'} and r_B.dtype == np.float32
  assert not any(counts.values())


def test_host_rewards_see_rounded_and_clipped_pixels(make):
  x = jnp.array([-1.2, -1, 0, 0.5, 1, 1.3]).reshape(6, 1, 1, 1) * jnp.ones((1, 2, 2, 3))
  r_B, _, _ = make({'m': dict(name='judges.mean', weight=1)}).score({}, samples(x, np.arange(6)), 1)
  assert r_B.tolist() == [0, 0, 128, 191, 255, 255]


def test_the_prompt_is_in_the_record(make):
  m = make({'length': dict(name='judges.length', weight=1)})
  record = [{'prompt': text, 'label': 0} for text in ('a', 'cat', '')]
  assert m.score({}, Samples(images(3), {}, record), 1)[0].tolist() == [1, 3, 0]


def test_a_row_without_one_of_its_verdicts_is_masked_and_counted(make):
  rewards = {
    'holes': dict(name='judges.holes', weight=1.0),  # none for labels 1 to 4
    'sharp': dict(name='sharpness', weight=1.0, power=1),  # NaN for label 7
  }
  r_B, each, counts = make(rewards, max_failed=0.75).score({}, samples(images(8), np.arange(8)), 1)
  assert np.isnan(r_B).tolist() == [False, True, True, True, True, False, False, True]
  assert np.isnan(each['sharp']).sum() == 1
  assert {k: v for k, v in counts.items() if v} == {'reward/nan': 5, 'reward/masked': 5}


def test_every_kind_of_failure_is_counted_by_its_name(make):
  rewards = {
    'a': dict(name='judges.poisoned', weight=1.0, how={0: 'raise', 3: 'text'}),
    'b': dict(name='judges.poisoned', weight=1.0, how={3: 'exit'}),
    'c': dict(name='judges.poisoned', weight=1.0, how={4: 'hang'}),
  }
  r_B, _, counts = make(rewards, max_failed=0.9, timeout=1.0).score(
    {}, samples(images(6), np.arange(6)), 1
  )
  assert np.flatnonzero(np.isnan(r_B)).tolist() == [0, 3, 4, 5]
  assert counts == {
    'reward/nan': 0,
    'reward/error': 2,
    'reward/timeout': 2,
    'reward/death': 1,
    'reward/retry': 6,  # two halves of three chunks
    'reward/masked': 4,
  }


def test_too_many_failures_stop_the_run_and_name_the_function(make):
  m = make({'judge': dict(name='judges.raises', weight=1.0)}, max_failed=0.25)
  text = (
    r'(?s)reward judges.raises: no verdict for 3 of 8 .*0\.375.* allows 0\.25.*no such detector'
  )
  with pytest.raises(RuntimeError, match=text):  # at once, not after all of the 8
    m.score({}, samples(images(8), np.arange(8)), 1)


def test_a_share_of_all_rows_is_refused(make):
  with pytest.raises(ValueError, match='max_failed: 1.0 found, a number at least 0 and below 1'):
    make({'mean': dict(name='judges.mean', weight=1.0)}, max_failed=1.0)


def test_device_rewards_are_held_to_the_same_share(make):
  m = make({'sharp': dict(name='sharpness', weight=1.0, power=1)}, max_failed=0.25)
  assert np.isnan(m.score({}, samples(images(4), np.array([1, 7, 2, 3])), 1)[0]).sum() == 1
  with pytest.raises(RuntimeError, match='reward sharpness: no verdict for 2 of 4 .*NaN or Inf'):
    m.score({}, samples(images(4), np.array([1, 7, 7, 3])), 1)


def test_rows_lost_to_different_rewards_add_up(make):
  rewards = {
    'a': dict(name='judges.raises_for', weight=1.0, bad=0),
    'b': dict(name='judges.raises_for', weight=1.0, bad=2),
  }
  with pytest.raises(RuntimeError, match='no verdict for 2 of 8'):  # each of them alone: 1
    make(rewards, max_failed=0.2).score({}, samples(images(8), np.arange(8)), 1)


@pytest.mark.parametrize(
  'options, message',
  [
    (
      dict(name='rewards.jpg', weight=1),
      "rewards.jpg: found no such file; did you mean 'rewards.jp",
    ),
    (dict(name='rewards.mix', weight=1), 'rewards.mix: found no such file'),
    (dict(name='rewards.jpeg', weight=1, quality=9), "missing a required argument: 'sign'"),
    (dict(name='rewards.brightness', weight=1, gain=2), "unknown option 'gain'"),
    (
      dict(name='rewards.classifier', weight=1),
      "missing a required (keyword-only )?argument: 'classifier'",
    ),
    (dict(name='sharpness', weight=1, powr=2), "unknown option 'powr'; did you mean 'power'"),
    (dict(name='judges', weight=1), 'found a module, expected HOST'),
    (dict(name='judges.mena', weight=1), "has no 'mena'; did you mean 'mean'"),
    (dict(name='judges.mean'), "reward it: found .*, expected 'name' and 'weight'"),
  ],
)
def test_a_reward_that_cannot_be_is_an_error_when_made(make, options, message):
  with pytest.raises(ValueError, match=message):
    make({'it': options})


def test_a_bound_parameter_is_no_option(make):
  it = dict(name='rewards.classifier', weight=1, classifier='resnet')
  with pytest.raises(ValueError, match="'classifier' is bound"):
    make({'it': it}, bind={'classifier': abs})


def test_an_error_in_one_reward_leaves_no_worker_of_the_others(make):
  import multiprocessing

  rewards = {'a': dict(name='judges.mean', weight=1), 'b': dict(name='judges.men', weight=1)}
  with pytest.raises(ValueError):
    make(rewards)
  assert multiprocessing.active_children() == []
