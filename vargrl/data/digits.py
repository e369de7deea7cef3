"""Real images without a download: scikit-learn's handwritten digits, as two TFDS datasets."""

import numpy as np
import tensorflow_datasets as tfds

from vargrl.data import image as imaging

SPLITS = ('train', 'test')
# TFDS looks for a file of checksums otherwise, by importlib_resources, which it does not declare.
NO_DOWNLOADS = None


def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
  """(image uint8 [N, 8, 8, 3], label int32 [N]) of 'train' (1437) or 'test' (360).

  The rule: sort the 1797 digits by label, keeping their order within a label; every fifth, from
  the first, is test. So every label is split 4 to 1. Both splits keep the original order.
  """
  if split not in SPLITS:
    raise ValueError(f'digits: split {split!r} found, one of {SPLITS} expected')
  # Only building needs scikit-learn, which takes a second to import; readers and workers do not.
  from sklearn import datasets

  digits = datasets.load_digits()
  test = np.zeros(len(digits.target), bool)
  test[np.argsort(digits.target, kind='stable')[::5]] = True
  mine = test if split == 'test' else ~test
  image = np.round(digits.images[mine] * (255 / 16)).astype(np.uint8)
  return np.repeat(image[..., None], 3, -1), digits.target[mine].astype(np.int32)


def pairs(split: str) -> tuple[np.ndarray, np.ndarray]:
  """(chosen, rejected), both int [N], row indices into arrays(split): one pair for every image.

  `rejected` is drawn uniformly from the split's images of another label.
  """
  _, label = arrays(split)
  rng = np.random.RandomState(0)  # Its stream is frozen across numpy versions; Generator's is not.
  rejected = [rng.choice(np.flatnonzero(label != own)) for own in label]
  return np.arange(len(label)), np.array(rejected)


def _info(builder, **images: str) -> tfds.core.DatasetInfo:
  image = {name: tfds.features.Image(shape=(8, 8, 3), doc=doc) for name, doc in images.items()}
  label = tfds.features.ClassLabel(num_classes=10)
  return tfds.core.DatasetInfo(
    builder=builder,
    description=builder.__doc__,
    features=tfds.features.FeaturesDict(image | {'label': label}),
    homepage='https://archive.ics.uci.edu/dataset/80',
    disable_shuffling=True,
  )  # Record i is row i of `arrays`.


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """8x8 handwritten digits: image, label."""

  VERSION = tfds.core.Version('1.0.0')
  url_infos = NO_DOWNLOADS

  def _info(self):
    return _info(self, image='grey, three equal channels')

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split):
    for i, (image, label) in enumerate(zip(*arrays(split), strict=True)):
      yield i, {'image': imaging.encode_png(image), 'label': int(label)}


class DigitPairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Preferences between 8x8 handwritten digits: label, chosen (of the label), rejected (not)."""

  VERSION = tfds.core.Version('1.0.0')
  url_infos = NO_DOWNLOADS

  def _info(self):
    return _info(self, chosen='a digit of the label', rejected='a digit of another label')

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split):
    image, label = arrays(split)
    for i, (chosen, rejected) in enumerate(zip(*pairs(split), strict=True)):
      yield (
        i,
        {
          'chosen': imaging.encode_png(image[chosen]),
          'rejected': imaging.encode_png(image[rejected]),
          'label': int(label[chosen]),
        },
      )
