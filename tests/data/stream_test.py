"""A Stream's batches: the same whatever the hosts, threads and workers; resumed; bad records."""

import json

import grain
import numpy as np
import pytest
from small_images import BAD, equal, ids, rows, take

from vargrl.data import stream as streams


def test_an_epoch_is_every_record_once_in_an_order_of_its_own(open_images):
  first, second = (ids(take(stream, 4)) for stream in [open_images(batch=10)] * 2)
  np.testing.assert_array_equal(np.sort(first), np.arange(40))
  np.testing.assert_array_equal(np.sort(second), np.arange(40))
  other = ids(take(open_images(batch=10, seed=2), 4))
  assert len({tuple(x) for x in (first, second, other)}) == 3
  np.testing.assert_array_equal(
    ids(take(open_images(batch=10, shuffle=False), 8)), [*range(40)] * 2
  )


def test_batches_across_an_epoch_lose_and_repeat_nothing(open_images):
  found = ids(take(open_images(batch=16), 5))
  np.testing.assert_array_equal(np.sort(found[:40]), np.arange(40))
  np.testing.assert_array_equal(np.sort(found[40:]), np.arange(40))


@pytest.mark.parametrize('split', ['good', 'bad'])
def test_a_global_batch_is_the_same_rows_for_1_2_and_4_hosts(open_images, split):
  whole = take(open_images(split=split), 7)
  for count in (2, 4):
    parts = [
      take(open_images(split=split, rows=share), 7) for share in np.arange(8).reshape(count, -1)
    ]
    for step, batch in enumerate(whole):
      for name, x in batch.items():
        np.testing.assert_array_equal(np.concatenate([part[step][name] for part in parts]), x)
  assert (
    ids(take(open_images(split=split, rows=[0, 3, 7]), 1)).tolist()
    == whole[0]['id'][[0, 3, 7]].tolist()
  )


def test_threads_do_not_change_the_batches(open_images):
  expected = take(open_images(threads=0), 6)
  equal(take(open_images(threads=1), 6), expected)
  equal(take(open_images(threads=5), 6), expected)


def test_restored_is_uninterrupted(open_images):
  stream = open_images(split='bad', threads=2)
  for step in range(6):  # Past the end of an epoch.
    state = json.loads(json.dumps(stream.get_state()))
    expected = take(stream, 2)
    restored = open_images(split='bad', threads=2)
    take(restored, step % 2)
    restored.set_state(state)
    assert restored.get_state() == state
    equal(take(restored, 2), expected)
    assert restored.counts == stream.counts
    stream.set_state(state)
    next(stream)


def test_worker_processes_go_on_where_threads_stopped(open_images):
  stream = open_images(split='bad', threads=2)
  take(stream, 3)
  state, after = stream.get_state(), take(stream, 4)
  workers = open_images(split='bad', threads=1, workers=2)
  workers.set_state(json.loads(json.dumps(state)))
  equal(take(workers, 4), after)
  assert workers.get_state() == stream.get_state()


@pytest.mark.slow
def test_worker_processes_restored_are_uninterrupted(open_images):
  workers = open_images(split='bad', threads=1, workers=2)
  take(workers, 3)
  state, expected = workers.get_state(), take(workers, 4)
  counts = workers.counts
  workers.set_state(json.loads(json.dumps(state)))
  equal(take(workers, 4), expected)
  assert workers.counts == counts


def test_a_state_goes_on_with_another_number_of_hosts(open_images):
  stream = open_images()
  take(stream, 3)
  state, expected = stream.get_state(), take(stream, 3)
  halves = [open_images(rows=range(4 * h, 4 * h + 4)) for h in range(2)]
  for half in halves:
    half.set_state(state)
  for batch in expected:
    assert rows(*(next(half) for half in halves)) == rows(batch)


def test_grains_own_proof_of_restoring_holds(open_images):
  records = open_images(split='bad')._records[:8]
  grain.experimental.assert_equal_output_after_checkpoint(records.to_iter_dataset())


def test_another_streams_state_is_refused(open_images):
  state = open_images().get_state()
  for change in ({'split': 'bad'}, {'batch': 4}, {'seed': 2}, {'shuffle': False}):
    with pytest.raises(ValueError, match='data: state of .* found, of .* expected'):
      open_images(**change).set_state(state)
  open_images(threads=7, rows=range(4), crop='none').set_state(state)


def test_unreadable_records_are_skipped_counted_and_replaced(open_images):
  stream = open_images(split='bad', batch=10, shuffle=False)
  found = ids(take(stream, 4))
  assert stream.counts == {'seen': 40, 'skipped': 5}
  good = [i for i in range(40) if i not in BAD]
  assert not set(found) & BAD.keys()
  np.testing.assert_array_equal(found[good], good)  # All others are at their own place.
  take(stream, 4)
  assert stream.counts == {'seen': 80, 'skipped': 10}
  assert open_images().counts == {'seen': 0, 'skipped': 0}


def test_more_unreadable_records_than_allowed_is_an_error_that_names_them(open_images):
  stream = open_images(split='bad', batch=10, shuffle=False, max_unreadable=0.03)
  take(stream, 2)
  with pytest.raises(
    ValueError,
    match=('pictures/bad.*: 4 of 30 records unreadable, the last is record 29.*0.03 expected'),
  ):
    next(stream)


def test_exactly_the_allowed_share_is_no_error(open_images):
  assert len(take(open_images(split='bad', batch=10, shuffle=False, max_unreadable=0.05), 4)) == 4


def test_a_dataset_without_a_readable_record_is_an_error_even_if_allowed(open_images):
  with pytest.raises(ValueError, match='hopeless.*: 8 of 8 .*none of 100 random others'):
    next(open_images(split='hopeless'))


@pytest.mark.parametrize('count', [1, 2, 3, 7, 1000, 2**40 + 1])
def test_an_endless_order_has_a_length_that_can_be_divided(count):
  order = streams.endless(grain.MapDataset.range(count))
  mixed = grain.MapDataset.mix([order, order], [0.1, 3.0])
  for size in (1, 2, 3):
    assert 2**50 < len(mixed.batch(size, batch_fn=tuple)) * size < 2**63
  last = len(order) - 1
  assert order[last] == last % count and len(streams.HostRows(order, 3, [0, 2])) > 2**50


def test_a_share_that_is_no_number_is_told(open_images):
  for share in (float('nan'), -0.1):
    with pytest.raises(ValueError, match='data.max_unreadable: .* found, a number at least 0'):
      open_images(max_unreadable=share)
