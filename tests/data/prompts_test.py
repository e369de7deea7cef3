import json

import grain
import numpy as np
import pytest

from vargrl.data import prompts


def make(classes=10, prompts_=4, seed=0, rows=None):
  return prompts.make(
    classes=classes, prompts=prompts_, seed=seed, rows=range(prompts_) if rows is None else rows
  )


def steps(stream, n):
  return [next(stream)['label'] for _ in range(n)]


def test_each_host_has_its_rows_of_the_same_global_step():
  whole = np.stack(steps(make(prompts_=8, seed=1), 12))
  for rows in (range(4), range(4, 8), [7], [0, 1, 4, 5]):
    np.testing.assert_array_equal(steps(make(prompts_=8, seed=1, rows=rows), 12), whole[:, rows])


@pytest.mark.parametrize('classes, size', [(10, 4), (10, 20), (1, 3), (7, 7)])
def test_an_epoch_is_every_class_once(classes, size):
  labels = np.concatenate(steps(make(classes, size), 5 * classes))
  assert labels.dtype == np.int32
  epochs = labels[: len(labels) // classes * classes].reshape(-1, classes)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(classes), (len(epochs), 1)))


def test_orders_differ_by_epoch_and_by_seed():
  a, b = (np.concatenate(steps(make(50, 50, seed), 2)) for seed in (0, 1))
  assert len({tuple(x) for x in (a[:50], a[50:], b[:50], b[50:])}) == 4


def test_restored_is_uninterrupted_on_another_number_of_hosts():
  stream = make()
  steps(stream, 3)
  state = json.loads(json.dumps(stream.get_state()))
  expected = steps(stream, 6)
  parts = []
  for h in range(2):
    restored = make(rows=range(2 * h, 2 * h + 2))
    steps(restored, 1)
    restored.set_state(state)
    assert restored.get_state() == state
    parts.append(steps(restored, 6))
  np.testing.assert_array_equal(np.concatenate(parts, 1), expected)


def test_grains_own_proof_of_restoring_holds():
  stream = make(classes=5, rows=[2, 3])
  grain.experimental.assert_equal_output_after_checkpoint(stream._records[:8].to_iter_dataset())


def test_a_stream_of_prompts_says_what_it_holds():
  stream = make(rows=range(2))
  assert stream.features == ('label',) and stream.classes == 10
  steps(stream, 3)
  assert stream.counts == {'seen': 6, 'skipped': 0}
  stream.close()


@pytest.mark.parametrize(
  'change, message',
  [
    ({'prompts_': 0}, 'batch: 0 found, at least 1 expected'),
    ({'rows': [3, 4]}, 'rows: .3, 4. found, some of 0 to 3 in order expected'),
    ({'rows': [1, 0]}, 'rows: .1, 0. found'),
    ({'classes': 0}, 'classes: 0 found'),
  ],
)
def test_what_does_not_fit_is_an_error(change, message):
  with pytest.raises(ValueError, match=message):
    make(**change)


def test_another_streams_state_is_refused():
  a = make()
  with pytest.raises(ValueError, match='10 classes.*found.*12 classes.*expected'):
    make(classes=12).set_state(a.get_state())
