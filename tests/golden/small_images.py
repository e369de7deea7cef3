"""A TFDS data set of small images, some of them unreadable, and Streams of it."""

import io

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from vargrl.data import source

BAD = {3: b'', 11: b'\0', 17: b'a page of text', 29: 'cut PNG', 30: 'cut JPEG'}


def encoded_image(i, kind='PNG'):
  pixels = np.random.RandomState(i).randint(0, 256, (12 + i % 5, 14, 3)).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind)
  return file.getvalue()


def damaged(i):
  data = BAD.get(i, encoded_image(i))
  if isinstance(data, str):
    data = encoded_image(i, data.split()[1])
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
    good, bad = {i: encoded_image(i) for i in range(40)}, {i: damaged(i) for i in range(40)}
    huge = {2**40: encoded_image(0)}
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


@pytest.fixture(scope='session')
def images_folder(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('data'))
  Pictures(data_dir=folder).download_and_prepare(file_format='array_record')
  return folder


@pytest.fixture
def open_images(images_folder):
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
          'dir': images_folder,
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
