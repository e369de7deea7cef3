from concurrent import futures
import importlib.util
import io
import json

import grain
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from vargrl.data import digits, image, source
from vargrl.reporting import images

BAD = {3: b'', 11: b'\0', 17: b'a page of text', 29: 'cut PNG', 30: 'cut JPEG'}


def picture(i, kind='PNG'):
  pixels = np.random.RandomState(i).randint(0, 256, (12 + i % 5, 14, 3)).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind)
  return file.getvalue()


def damaged(i):
  data = BAD.get(i, picture(i))
  if isinstance(data, str):
    data = picture(i, data.split()[1])
    data = data[: len(data) // 2]
  return data


class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Records on disk with all kinds of features; in `bad`, five of forty are unreadable."""

  VERSION = tfds.core.Version('1.0.0')
  url_infos = None

  def _info(self):
    f = tfds.features
    features = {
      'id': np.int64,
      'image': f.Image(),
      'copy': f.Image(),
      'note': f.Text(),
      'pair': f.Tensor(shape=(2,), dtype=np.int64),
      'weight': np.float32,
      'mask': f.LabeledImage(labels=3, shape=(None, None, 1)),
      'boxes': f.Sequence({'x': np.int64}),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=f.FeaturesDict(features), disable_shuffling=True
    )

  def _split_generators(self, dl_manager):
    good, bad = {i: picture(i) for i in range(40)}, {i: damaged(i) for i in range(40)}
    huge = {2**40: picture(0)}
    return {
      name: self._generate_examples(split)
      for name, split in {
        'good': good,
        'bad': bad,
        'hopeless': {i: b'' for i in range(8)},
        'huge': huge,
      }.items()
    }

  def _generate_examples(self, split):
    for n, (i, data) in enumerate(split.items()):
      yield (
        n,
        {
          'id': i,
          'image': data,
          'copy': data,
          'note': 'n',
          'pair': [i, i],
          'weight': 0.5,
          'mask': b'',
          'boxes': [{'x': 1}],
        },
      )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('data'))
  Pictures(data_dir=folder).download_and_prepare(file_format='array_record')
  return folder


@pytest.fixture
def make(folder):
  """source.make on `pictures/good`; what it opened is closed afterwards."""
  streams = []

  def make(**change):
    change = {'rows': range(change.get('batch', 8))} | change
    streams.append(
      source.make(
        **{
          'dataset': 'pictures',
          'split': 'good',
          'batch': 8,
          'size': 8,
          'crop': 'random',
          'flip': True,
          'shuffle': True,
          'max_unreadable': 1.0,
          'dir': folder,
          'threads': 0,
          'workers': 0,
          'seed': 1,
        }
        | change
      )
    )
    return streams[-1]

  yield make
  for stream in streams:
    stream.close()


def take(stream, n):
  return [next(stream) for _ in range(n)]


def ids(batches):
  return np.concatenate([batch['id'] for batch in batches])


def rows(*batches):
  """The rows of batches as a sorted list of bytes: a multiset."""
  return sorted(
    b['id'][i].tobytes() + b['image'][i].tobytes() for b in batches for i in range(len(b['id']))
  )


def equal(batches, expected):
  for a, b in zip(batches, expected, strict=True):
    assert a.keys() == b.keys()
    for k in a:
      np.testing.assert_array_equal(a[k], b[k])


def test_images_are_floats_integers_int32_and_the_rest_is_dropped(make):
  stream = make()
  batch = next(stream)
  assert stream.features == ('copy', 'id', 'image', 'pair') == tuple(batch)
  assert (stream.classes, stream.class_names) == (None, ())
  assert batch['image'].shape == (8, 8, 8, 3) and batch['image'].dtype == np.float32
  assert -1 <= batch['image'].min() < -0.9 and 0.9 < batch['image'].max() <= 1
  assert batch['id'].shape == (8,) and batch['id'].dtype == np.int32
  assert batch['pair'].shape == (8, 2) and batch['pair'].dtype == np.int32


def test_unchanged_digits_are_the_arrays(make):
  stream = make(dataset='digits', split='test', batch=360, crop='none', flip=False, shuffle=False)
  batch = next(stream)
  pixels, label = digits.arrays('test')
  np.testing.assert_array_equal(images.pixels(batch['image']), pixels)
  np.testing.assert_array_equal(batch['label'], label)
  assert stream.classes == 10 and stream.class_names == tuple('0123456789')


def test_crop_and_flip_vary_by_record_and_are_one_for_the_images_of_a_record(make):
  batches = take(make(), 10)
  for batch in batches:
    np.testing.assert_array_equal(batch['image'], batch['copy'])
  assert len({x.tobytes() for batch in batches for x in batch['image']}) > 60  # Of 2 x 40.


def test_an_epoch_is_every_record_once_in_an_order_of_its_own(make):
  first, second = (ids(take(stream, 4)) for stream in [make(batch=10)] * 2)
  np.testing.assert_array_equal(np.sort(first), np.arange(40))
  np.testing.assert_array_equal(np.sort(second), np.arange(40))
  other = ids(take(make(batch=10, seed=2), 4))
  assert len({tuple(x) for x in (first, second, other)}) == 3
  np.testing.assert_array_equal(ids(take(make(batch=10, shuffle=False), 8)), [*range(40)] * 2)


def test_batches_across_an_epoch_lose_and_repeat_nothing(make):
  found = ids(take(make(batch=16), 5))
  np.testing.assert_array_equal(np.sort(found[:40]), np.arange(40))
  np.testing.assert_array_equal(np.sort(found[40:]), np.arange(40))


@pytest.mark.parametrize('split', ['good', 'bad'])
def test_a_global_batch_is_the_same_rows_for_1_2_and_4_hosts(make, split):
  whole = take(make(split=split), 7)
  for count in (2, 4):
    parts = [take(make(split=split, rows=share), 7) for share in np.arange(8).reshape(count, -1)]
    for step, batch in enumerate(whole):
      for name, x in batch.items():
        np.testing.assert_array_equal(np.concatenate([part[step][name] for part in parts]), x)
  assert (
    ids(take(make(split=split, rows=[0, 3, 7]), 1)).tolist() == whole[0]['id'][[0, 3, 7]].tolist()
  )


def test_threads_do_not_change_the_batches(make):
  expected = take(make(threads=0), 6)
  equal(take(make(threads=1), 6), expected)
  equal(take(make(threads=5), 6), expected)


def test_restored_is_uninterrupted(make):
  stream = make(split='bad', threads=2)
  for step in range(6):  # Past the end of an epoch.
    state = json.loads(json.dumps(stream.get_state()))
    expected = take(stream, 2)
    restored = make(split='bad', threads=2)
    take(restored, step % 2)
    restored.set_state(state)
    assert restored.get_state() == state
    equal(take(restored, 2), expected)
    assert restored.counts == stream.counts
    stream.set_state(state)
    next(stream)


def test_worker_processes_go_on_where_threads_stopped(make):
  stream = make(split='bad', threads=2)
  take(stream, 3)
  state, after = stream.get_state(), take(stream, 4)
  workers = make(split='bad', threads=1, workers=2)
  workers.set_state(json.loads(json.dumps(state)))
  equal(take(workers, 4), after)
  assert workers.get_state() == stream.get_state()


@pytest.mark.slow
def test_worker_processes_restored_are_uninterrupted(make):
  workers = make(split='bad', threads=1, workers=2)
  take(workers, 3)
  state, expected = workers.get_state(), take(workers, 4)
  counts = workers.counts
  workers.set_state(json.loads(json.dumps(state)))
  equal(take(workers, 4), expected)
  assert workers.counts == counts


def test_a_state_goes_on_with_another_number_of_hosts(make):
  stream = make()
  take(stream, 3)
  state, expected = stream.get_state(), take(stream, 3)
  halves = [make(rows=range(4 * h, 4 * h + 4)) for h in range(2)]
  for half in halves:
    half.set_state(state)
  for batch in expected:
    assert rows(*(next(half) for half in halves)) == rows(batch)


def test_grains_own_proof_of_restoring_holds(make):
  records = make(split='bad')._records[:8]
  grain.experimental.assert_equal_output_after_checkpoint(records.to_iter_dataset())


def test_another_streams_state_is_refused(make):
  state = make().get_state()
  for change in ({'split': 'bad'}, {'batch': 4}, {'seed': 2}, {'shuffle': False}):
    with pytest.raises(ValueError, match='data: state of .* found, of .* expected'):
      make(**change).set_state(state)
  make(threads=7, rows=range(4), crop='none').set_state(state)


def test_unreadable_records_are_skipped_counted_and_replaced(make):
  stream = make(split='bad', batch=10, shuffle=False)
  found = ids(take(stream, 4))
  assert stream.counts == {'seen': 40, 'skipped': 5}
  good = [i for i in range(40) if i not in BAD]
  assert not set(found) & BAD.keys()
  np.testing.assert_array_equal(found[good], good)  # All others are at their own place.
  take(stream, 4)
  assert stream.counts == {'seen': 80, 'skipped': 10}
  assert make().counts == {'seen': 0, 'skipped': 0}


def test_more_unreadable_records_than_allowed_is_an_error_that_names_them(make):
  stream = make(split='bad', batch=10, shuffle=False, max_unreadable=0.03)
  take(stream, 2)
  with pytest.raises(
    ValueError,
    match=('pictures/bad.*: 4 of 30 records unreadable, the last is record 29.*0.03 expected'),
  ):
    next(stream)


def test_exactly_the_allowed_share_is_no_error(make):
  assert len(take(make(split='bad', batch=10, shuffle=False, max_unreadable=0.05), 4)) == 4


def test_a_dataset_without_a_readable_record_is_an_error_even_if_allowed(make):
  with pytest.raises(ValueError, match='hopeless.*: 8 of 8 .*none of 100 random others'):
    next(make(split='hopeless'))


@pytest.mark.parametrize(
  'change, message',
  [
    ({'batch': 0}, 'batch: 0 found, at least 1 expected'),
    ({'rows': [6, 8]}, 'rows: .6, 8. found, some of 0 to 7 in order expected'),
    ({'batch': 41}, 'pictures/good: 40 records found, at least 41, one global batch'),
    ({'split': 'best'}, "pictures/best.*Unknown split 'best'"),
    ({'crop': 'middle'}, "crop: 'middle' found"),
    ({'dataset': 'imagenet2013'}, "dataset: 'imagenet2013' found.*nearest are imagenet2012"),
    ({'dataset': 'digit'}, 'nearest are digits'),
    ({'dataset': ''}, "dataset: '' found"),
    ({'dataset': 'mnist/foo'}, 'BuilderConfig foo not found'),
  ],
)
def test_what_does_not_fit_is_an_error(make, change, message):
  with pytest.raises(ValueError, match=message):
    make(**change)


def test_a_dataset_that_cannot_be_prepared_is_an_error_with_its_folder_and_a_command(make, folder):
  names = ['imagenet2012']  # Its archive must be put in place by hand.
  if importlib.util.find_spec('tensorflow') is None:
    names.append('coco_captions')  # Its code needs TensorFlow.
  for name in names:
    with pytest.raises(ValueError) as e:
      make(dataset=name)
    assert str(e.value).startswith(f'{name}: not prepared in {folder}, and cannot be here')
    assert f"tfds.builder('{name}', data_dir='{folder}').download_and_prepare(" in str(e.value)


def test_integers_beyond_32_bits_are_an_error_and_stay_one(make):
  stream = make(split='huge', batch=1)
  for _ in range(2):
    with pytest.raises(ValueError, match='id: 1099511627776 found'):
      next(stream)
    assert stream.get_state()['step'] == 0


@pytest.mark.parametrize('name, classes', [('mnist', 10), ('cifar10', 10), ('imagenet2012', 1000)])
def test_any_tfds_name_works_by_name(make, name, classes):
  with tfds.testing.mock_data(num_examples=20):
    stream = make(dataset=name, split='train', size=16)
    batch = next(stream)
  assert batch['image'].shape == (8, 16, 16, 3) and batch['image'].dtype == np.float32
  assert batch['label'].shape == (8,) and batch['label'].dtype == np.int32
  assert stream.features == ('image', 'label')
  assert stream.classes == classes == len(stream.class_names)


def test_a_build_by_several_at_once_is_whole(tmp_path):
  read = lambda _: source.read(
    dataset='digits', split='test', size=8, crop='none', dir=str(tmp_path), limit=0
  )
  with futures.ThreadPoolExecutor(2) as pool:
    found = list(pool.map(read, range(2)))
  for x in found:
    np.testing.assert_array_equal(images.pixels(x['image']), digits.arrays('test')[0])
  assert [x.name for x in (tmp_path / 'digits').iterdir()] == ['1.0.0']


def read(folder, **change):
  return source.read(
    **{
      'dataset': 'pictures',
      'split': 'good',
      'size': 8,
      'crop': 'center',
      'dir': folder,
      'limit': 0,
    }
    | change
  )


def test_reading_is_in_order_with_center_crops(folder):
  found = read(folder)
  np.testing.assert_array_equal(found['id'], np.arange(40))
  expected = [
    image.fit(image.decode(picture(i)), size=8, crop='center', rng=None) for i in range(40)
  ]
  np.testing.assert_array_equal(found['image'], image.to_float(np.stack(expected)))


def test_reading_a_limit_is_the_first_readable_records(folder):
  assert read(folder, limit=7)['id'].tolist() == [*range(7)]
  assert len(read(folder, limit=70)['id']) == 40
  with pytest.warns(UserWarning, match='2 of 14 records unreadable and left out.*record 11'):
    found = read(folder, split='bad', limit=12)
  assert found['id'].tolist() == [i for i in range(14) if i not in BAD]
  with pytest.warns(UserWarning, match='5 of 40'):
    assert len(read(folder, split='bad')['id']) == 35


def test_reading_nothing_or_at_random_is_an_error(folder):
  with pytest.raises(ValueError, match='0 readable records of 8'), pytest.warns(UserWarning):
    read(folder, split='hopeless')
  with pytest.raises(ValueError, match="crop: 'random' found"):
    read(folder, crop='random')
