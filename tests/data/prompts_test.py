import json

import grain
import numpy as np
import pytest

from vargrl.data import prompts


def steps(stream, n):
  return [next(stream)['label'] for _ in range(n)]


def test_hosts_in_order_are_the_global_step_for_any_count():
  whole = steps(prompts.make(classes=10, prompts=8, seed=1, host=(0, 1)), 12)
  for count in (2, 4, 8):
    parts = [steps(prompts.make(classes=10, prompts=8, seed=1, host=(h, count)), 12)
             for h in range(count)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)


@pytest.mark.parametrize('classes, size', [(10, 4), (10, 20), (1, 3), (7, 7)])
def test_an_epoch_is_every_class_once(classes, size):
  labels = np.concatenate(steps(prompts.make(classes=classes, prompts=size, seed=0, host=(0, 1)),
                                5 * classes))
  assert labels.dtype == np.int32
  epochs = labels[:len(labels) // classes * classes].reshape(-1, classes)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(classes), (len(epochs), 1)))


def test_orders_differ_by_epoch_and_by_seed():
  a, b = (np.concatenate(steps(prompts.make(classes=50, prompts=50, seed=seed, host=(0, 1)), 2))
          for seed in (0, 1))
  assert len({tuple(x) for x in (a[:50], a[50:], b[:50], b[50:])}) == 4


def test_restored_is_uninterrupted_on_another_number_of_hosts():
  stream = prompts.make(classes=10, prompts=4, seed=0, host=(0, 1))
  steps(stream, 3)
  state = json.loads(json.dumps(stream.get_state()))
  expected = steps(stream, 6)
  parts = []
  for h in range(2):
    restored = prompts.make(classes=10, prompts=4, seed=0, host=(h, 2))
    steps(restored, 1)
    restored.set_state(state)
    assert restored.get_state() == state
    parts.append(steps(restored, 6))
  np.testing.assert_array_equal(np.concatenate(parts, 1), expected)


def test_grains_own_proof_of_restoring_holds():
  stream = prompts.make(classes=5, prompts=4, seed=0, host=(1, 2))
  grain.experimental.assert_equal_output_after_checkpoint(stream._records[:8].to_iter_dataset())


def test_a_stream_of_prompts_says_what_it_holds():
  stream = prompts.make(classes=10, prompts=4, seed=0, host=(0, 2))
  assert stream.features == ('label',) and stream.classes == 10
  steps(stream, 3)
  assert stream.counts == {'seen': 6, 'skipped': 0}
  stream.close()


@pytest.mark.parametrize('change, message', [
    ({'prompts': 5, 'host': (0, 2)}, 'batch: 5 found, a multiple of the 2 hosts'),
    ({'host': (1, 1)}, 'host: index 1 found'),
    ({'classes': 0}, 'classes: 0 found')])
def test_what_does_not_fit_is_an_error(change, message):
  with pytest.raises(ValueError, match=message):
    prompts.make(**{'classes': 10, 'prompts': 4, 'seed': 0, 'host': (0, 1)} | change)


def test_another_streams_state_is_refused():
  a = prompts.make(classes=10, prompts=4, seed=0, host=(0, 1))
  with pytest.raises(ValueError, match='10 classes.*found.*12 classes.*expected'):
    prompts.make(classes=12, prompts=4, seed=0, host=(0, 1)).set_state(a.get_state())
