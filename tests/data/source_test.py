"""TFDS data sets as batches, and read in order; what is not there is an error."""

from concurrent import futures
import importlib.util

import numpy as np
import pytest
from small_images import BAD, encoded_image, take
import tensorflow_datasets as tfds

from vargrl.data import digits, image, source
from vargrl.reporting import images


def test_images_are_floats_integers_int32_and_the_rest_is_dropped(open_images):
  stream = open_images()
  batch = next(stream)
  assert stream.features == ('copy', 'id', 'image', 'pair') == tuple(batch)
  assert (stream.classes, stream.class_names) == (None, ())
  assert batch['image'].shape == (8, 8, 8, 3) and batch['image'].dtype == np.float32
  assert -1 <= batch['image'].min() < -0.9 and 0.9 < batch['image'].max() <= 1
  assert batch['id'].shape == (8,) and batch['id'].dtype == np.int32
  assert batch['pair'].shape == (8, 2) and batch['pair'].dtype == np.int32


def test_unchanged_digits_are_the_arrays(open_images):
  stream = open_images(
    dataset='digits', split='test', batch=360, crop='none', flip=False, shuffle=False
  )
  batch = next(stream)
  pixels, label = digits.arrays('test')
  np.testing.assert_array_equal(images.pixels(batch['image']), pixels)
  np.testing.assert_array_equal(batch['label'], label)
  assert stream.classes == 10 and stream.class_names == tuple('0123456789')


def test_crop_and_flip_vary_by_record_and_are_one_for_the_images_of_a_record(open_images):
  batches = take(open_images(), 10)
  for batch in batches:
    np.testing.assert_array_equal(batch['image'], batch['copy'])
  assert len({x.tobytes() for batch in batches for x in batch['image']}) > 60  # Of 2 x 40.


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
def test_what_does_not_fit_is_an_error(open_images, change, message):
  with pytest.raises(ValueError, match=message):
    open_images(**change)


def test_a_dataset_that_cannot_be_prepared_is_an_error_with_its_folder_and_a_command(
  open_images, images_folder
):
  names = ['imagenet2012']  # Its archive must be put in place by hand.
  if importlib.util.find_spec('tensorflow') is None:
    names.append('coco_captions')  # Its code needs TensorFlow.
  for name in names:
    with pytest.raises(ValueError) as e:
      open_images(dataset=name)
    assert str(e.value).startswith(f'{name}: not prepared in {images_folder}, and cannot be here')
    assert f"tfds.builder('{name}', data_dir='{images_folder}').download_and_prepare(" in str(
      e.value
    )


def test_integers_beyond_32_bits_are_an_error_and_stay_one(open_images):
  stream = open_images(split='huge', batch=1)
  for _ in range(2):
    with pytest.raises(ValueError, match='id: 1099511627776 found'):
      next(stream)
    assert stream.get_state()['step'] == 0


@pytest.mark.parametrize('name, classes', [('mnist', 10), ('cifar10', 10), ('imagenet2012', 1000)])
def test_any_tfds_name_works_by_name(open_images, name, classes):
  with tfds.testing.mock_data(num_examples=20):
    stream = open_images(dataset=name, split='train', size=16)
    batch = next(stream)
  assert batch['image'].shape == (8, 16, 16, 3) and batch['image'].dtype == np.float32
  assert batch['label'].shape == (8,) and batch['label'].dtype == np.int32
  assert stream.features == ('image', 'label')
  assert stream.classes == classes == len(stream.class_names)


def test_a_build_by_several_at_once_is_whole(tmp_path):
  read = lambda _: source.load(
    dataset='digits', split='test', size=8, crop='none', dir=str(tmp_path), limit=0
  )
  with futures.ThreadPoolExecutor(2) as pool:
    found = list(pool.map(read, range(2)))
  for x in found:
    np.testing.assert_array_equal(images.pixels(x['image']), digits.arrays('test')[0])
  assert [x.name for x in (tmp_path / 'digits').iterdir()] == ['1.0.0']


def load(images_folder, **change):
  return source.load(
    **{
      'dataset': 'pictures',
      'split': 'good',
      'size': 8,
      'crop': 'center',
      'dir': images_folder,
      'limit': 0,
    }
    | change
  )


def test_reading_is_in_order_with_center_crops(images_folder):
  found = load(images_folder)
  np.testing.assert_array_equal(found['id'], np.arange(40))
  expected = [
    image.fit(image.decode(encoded_image(i)), size=8, crop='center', rng=None) for i in range(40)
  ]
  np.testing.assert_array_equal(found['image'], image.to_float(np.stack(expected)))


def test_reading_a_limit_is_the_first_readable_records(images_folder):
  assert load(images_folder, limit=7)['id'].tolist() == [*range(7)]
  assert len(load(images_folder, limit=70)['id']) == 40
  with pytest.warns(UserWarning, match='2 of 14 records unreadable and left out.*record 11'):
    found = load(images_folder, split='bad', limit=12)
  assert found['id'].tolist() == [i for i in range(14) if i not in BAD]
  with pytest.warns(UserWarning, match='5 of 40'):
    assert len(load(images_folder, split='bad')['id']) == 35


def test_reading_nothing_or_at_random_is_an_error(images_folder):
  with pytest.raises(ValueError, match='0 readable records of 8'), pytest.warns(UserWarning):
    load(images_folder, split='hopeless')
  with pytest.raises(ValueError, match="crop: 'random' found"):
    load(images_folder, crop='random')
