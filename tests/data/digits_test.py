import hashlib

import numpy as np
import pytest
from sklearn import datasets
import tensorflow_datasets as tfds

from vargrl.data import digits


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return str(tmp_path_factory.mktemp('digits'))


def digest(*parts):
  return hashlib.sha256(b''.join(np.ascontiguousarray(x).tobytes() for x in parts)).hexdigest()[:16]


def test_splits_partition_the_digits_and_divide_every_label_four_to_one():
  train, test = digits.arrays('train'), digits.arrays('test')
  assert train[0].shape == (1437, 8, 8, 3) and test[0].shape == (360, 8, 8, 3)
  whole = datasets.load_digits()
  pixels = np.round(whole.images * 255 / 16).astype(np.uint8)
  both = np.concatenate([train[0], test[0]])
  assert sorted(x.tobytes() for x in both[..., 0]) == sorted(x.tobytes() for x in pixels)
  for label in range(10):
    total = (whole.target == label).sum()
    assert abs((test[1] == label).sum() - total / 5) < 1


def test_pixels_and_labels_never_change():
  assert digest(*digits.arrays('train')) == '06f424f147d6e761'
  assert digest(*digits.arrays('test')) == 'af649cd493084669'
  assert digest(*digits.pairs('train'), *digits.pairs('test')) == 'fa49ce9e8a2438d6'


def test_pictures_are_grey_uint8_over_the_whole_range():
  image, label = digits.arrays('test')
  assert image.dtype == np.uint8 and label.dtype == np.int32
  assert image.min() == 0 and image.max() == 255
  assert (image == image[..., :1]).all()


def test_a_rejected_digit_is_of_another_label_and_every_digit_is_chosen_once():
  for split in digits.SPLITS:
    _, label = digits.arrays(split)
    chosen, rejected = digits.pairs(split)
    np.testing.assert_array_equal(chosen, np.arange(len(label)))
    assert (label[chosen] != label[rejected]).all()


def test_an_unknown_split_is_an_error():
  with pytest.raises(ValueError, match="split 'validation' found"):
    digits.arrays('validation')


def test_records_on_disk_are_the_arrays_in_order(folder):
  builder = digits.Digits(data_dir=folder)
  builder.download_and_prepare(file_format='array_record')
  assert builder.name == 'digits' and builder.info.features['label'].num_classes == 10
  for split in digits.SPLITS:
    image, label = digits.arrays(split)
    records = list(builder.as_data_source(split))
    np.testing.assert_array_equal([x['image'] for x in records], image)
    np.testing.assert_array_equal([x['label'] for x in records], label)


def test_pairs_on_disk_are_the_pairs_of_the_arrays(folder):
  builder = digits.DigitPairs(data_dir=folder)
  builder.download_and_prepare(file_format='array_record')
  assert builder.name == 'digit_pairs'
  image, label = digits.arrays('test')
  chosen, rejected = digits.pairs('test')
  records = list(builder.as_data_source('test'))
  np.testing.assert_array_equal([x['chosen'] for x in records], image[chosen])
  np.testing.assert_array_equal([x['rejected'] for x in records], image[rejected])
  np.testing.assert_array_equal([x['label'] for x in records], label[chosen])


def test_importing_the_datasets_does_not_register_them():
  assert not {'digits', 'digit_pairs'} & set(tfds.list_builders(with_community_datasets=False))
