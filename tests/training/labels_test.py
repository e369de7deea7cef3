"""Labels out of the classes end a run, and an evaluation, with data set, record and value."""

import contextlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_configs

from vargrl.data import digits, image, source
from vargrl.training.run import Run

# What a record 5 has for a label, in a data set of plain integers, which say nothing of classes.
WRONG = {'ten': 10, 'many': 900, 'none': -1, 'least': -(2**31)}


class Labelled(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Digits with a label that is an integer."""

  VERSION = tfds.core.Version('1.0.0')
  url_infos = None

  def _info(self):
    picture = tfds.features.Image(shape=(8, 8, 3))
    features = dict(image=picture, chosen=picture, rejected=picture, label=np.int64)
    features = tfds.features.FeaturesDict(features)
    return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {name: self._generate_examples(x) for name, x in (WRONG | {'right': 5}).items()}

  def _generate_examples(self, odd):
    pictures, _ = digits.arrays('test')
    for i in range(10):
      data = image.encode_png(pictures[i])
      label = odd if i == 5 else i
      yield i, dict(image=data, chosen=data, rejected=data, label=label)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('labelled'))
  tfds.disable_progress_bar()
  Labelled(data_dir=folder).download_and_prepare(file_format='array_record')
  return folder


def opened(objective, policy, folder, split):
  config = tiny_configs.config(objective, policy)
  config.data.update(dataset='labelled', split=split, dir=folder, shuffle=False)
  return contextlib.closing(Run(config, ''))


@pytest.mark.parametrize(
  'objective, policy', [('classify', 'classifier'), ('sft', 'var'), ('dpo', 'var')]
)
def test_a_run_ends_at_the_first_label_that_is_none_of_its_classes(objective, policy, folder):
  for split, label in WRONG.items():
    words = rf'labelled/{split}.*: record 5: label {label} found, 0 to 9 expected'
    with opened(objective, policy, folder, split) as run, pytest.raises(ValueError, match=words):
      next(run.data)
  with opened(objective, policy, folder, 'right') as run:
    assert sorted(next(run.data)['label']) == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_tokenizer_reads_no_labels(folder):
  with opened('tokenizer', 'vq', folder, 'none') as run:
    assert next(run.data)['label'][5] == -1


def test_an_evaluation_ends_at_such_a_label(folder):
  options = dict(dataset='labelled', size=8, crop='none', dir=folder, limit=0)
  with pytest.raises(ValueError, match=r'^labelled/many: record 5: label 900 found, 0 to 9'):
    source.load(split='many', classes=10, **options)
  assert source.load(split='many', **options)['label'][5] == 900
