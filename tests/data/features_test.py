"""Text features as batches: of an .npz, of a TFDS data set, of noise; what does not fit is told."""

import io
import tracemalloc
import zipfile

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from vargrl.data import features, image
from vargrl.rewards import mix


def stream(dataset, rows=range(4), **changes):
  options = (
    dict(
      split='', dir='', prompts=4, tokens=5, width=3, images=(), size=(4, 3), shuffle=False, seed=0
    )
    | changes
  )
  return features.make(dataset=str(dataset), rows=rows, **options)


@pytest.fixture(scope='module')
def arrays():
  rng = np.random.default_rng(0)
  return dict(
    text=rng.standard_normal((6, 5, 3)).astype(np.float16),
    length=np.array([5, 1, 2, 3, 4, 5]),
    image=rng.integers(0, 256, (6, 8, 6, 3), np.uint8),
  )


@pytest.fixture(scope='module')
def path(arrays, tmp_path_factory):
  path = tmp_path_factory.mktemp('features') / 'x.npz'
  np.savez(path, **arrays)
  return path


def test_rows_are_the_records_padded_with_their_number_and_picture(path, arrays):
  batch = next(stream(path, images=['image']))
  assert batch['label'].tolist() == [0, 1, 2, 3] and batch['length'].tolist() == [5, 1, 2, 3]
  assert batch['text'].dtype == np.float32 and batch['text'].shape == (4, 5, 3)
  for i, n in enumerate(batch['length']):
    np.testing.assert_array_equal(batch['text'][i, :n], arrays['text'][i, :n].astype(np.float32))
    assert not batch['text'][i, n:].any()
  assert batch['image'].shape == (4, 4, 3, 3) and abs(batch['image']).max() <= 1
  assert set(next(stream(path))) == {'label', 'text', 'length'}
  assert next(stream(path, tokens=7))['text'].shape == (4, 7, 3)


def test_hosts_have_their_rows_of_the_same_batches_each_record_once_an_epoch(path):
  whole = stream(path, shuffle=True, prompts=3, rows=range(3))
  batches = [next(whole) for _ in range(4)]
  labels = np.concatenate([b['label'] for b in batches])
  assert (
    sorted(labels[:6]) == sorted(labels[6:]) == [*range(6)]
    and labels[:6].tolist() != labels[6:].tolist()
  )
  other = stream(path, shuffle=True, prompts=3, rows=[2])
  other.set_state({'stream': other.get_state()['stream'], 'step': 2, 'seen': 6, 'skipped': 0})
  np.testing.assert_array_equal(next(other)['text'], batches[2]['text'][2:])


def test_a_picture_is_covered_and_cropped_at_the_center():
  x = np.zeros((8, 16, 3), np.uint8)
  x[:, 4:12] = 255
  assert (
    image.cover(x, height=4, width=4).shape == (4, 4, 3)
    and (image.cover(x, height=8, width=8) == 255).all()
  )
  assert image.cover(x, height=5, width=3).shape == (5, 3, 3)
  np.testing.assert_array_equal(image.cover(x, height=8, width=16), x)


def test_a_tfds_data_set_of_the_same_gives_the_same_rows(path, arrays, tmp_path):
  class Texts(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Text features with pictures."""

    VERSION = tfds.core.Version('1.0.0')
    name, url_infos = 'texts', None

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {
            'text': tfds.features.Tensor(shape=(None, 3), dtype=np.float32),
            'image': tfds.features.Image(),
          }
        ),
      )

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i in range(6):
        file = io.BytesIO()
        Image.fromarray(arrays['image'][i]).save(file, 'PNG')
        file.seek(0)
        yield (
          i,
          {'text': arrays['text'][i, : arrays['length'][i]].astype(np.float32), 'image': file},
        )

  tfds.disable_progress_bar()
  Texts(data_dir=str(tmp_path)).download_and_prepare(file_format='array_record')
  found = next(
    stream(
      'texts',
      split='train',
      dir=str(tmp_path),
      images=['image'],
      size=(8, 6),
      prompts=6,
      rows=range(6),
    )
  )
  expected = next(stream(path, images=['image'], size=(8, 6), prompts=6, rows=range(6)))
  order = [
    int(np.flatnonzero([np.array_equal(t, e) for e in expected['text']])[0]) for t in found['text']
  ]
  assert sorted(order) == [*range(6)]
  for k in ('text', 'length', 'image'):
    np.testing.assert_array_equal(found[k], expected[k][order])


def test_noise_is_a_function_of_the_number_of_the_record():
  both = dict(images=['chosen', 'rejected'], size=(8, 4))
  one, other = next(stream('random', **both)), next(stream('random', **both, seed=7))
  for k in one:
    np.testing.assert_array_equal(one[k], other[k])
  assert one['length'].tolist() == [1, 2, 3, 4] and one['chosen'].shape == (4, 8, 4, 3)
  assert (one['chosen'] != one['rejected']).any()
  np.testing.assert_array_equal(
    features.load_first('random', tokens=5, width=3, first=2)['text'], one['text'][:2]
  )


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(tokens=3), 'record 0 has text .5, 3., 1 to 3 features of 3'),
    (dict(width=4), '1 to 5 features of 4'),
    (dict(prompts=7), '6 records found, at least 7'),
    (dict(images=['chosen']), "'chosen' expected among them"),
    (dict(split='train'), "split 'train'"),
  ],
)
def test_what_does_not_fit_is_told(path, change, message):
  with pytest.raises(ValueError, match=message):
    next(stream(path, **change))


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(length=np.array([6] * 6)), 'length 6 found, at most 5'),
    (dict(length=np.zeros(6, int)), '1 to 5 features'),
    (dict(text=np.zeros((6, 5), np.float32)), 'floats .n, S, d.'),
    (dict(length=None), "'length' expected among them"),
  ],
)
def test_a_wrong_file_is_told(arrays, tmp_path, change, message):
  np.savez(tmp_path / 'x.npz', **{k: x for k, x in (arrays | change).items() if x is not None})
  with pytest.raises(ValueError, match=message):
    next(stream(tmp_path / 'x.npz'))
  with pytest.raises(ValueError, match='no such file'):
    stream(tmp_path / 'y.npz')
  (tmp_path / 'z.npz').write_bytes(b'PK nothing')
  with pytest.raises(ValueError, match='not a whole .npz'):
    stream(tmp_path / 'z.npz')


def test_padding_takes_no_memory_and_orders_of_memory_are_alike(tmp_path, arrays):
  text = np.zeros((40, 512, 1024), np.float32)  # 80 MiB of padding, as prompts are stored
  text[:, :3] = np.random.default_rng(0).standard_normal((40, 3, 1024))
  np.savez_compressed(tmp_path / 'x.npz', text=text, length=np.full(40, 3))
  tracemalloc.start()
  read, count = features.open_npz(str(tmp_path / 'x.npz'), ())
  assert tracemalloc.get_traced_memory()[1] < 2**23
  tracemalloc.stop()
  assert count == 40
  np.testing.assert_array_equal(read(7)['text'], text[7, :3])
  for order in 'CF':
    np.savez(tmp_path / 'y.npz', **arrays | {'text': np.asarray(arrays['text'], order=order)})
    read, _ = features.open_npz(str(tmp_path / 'y.npz'), ['image'])
    for i, n in enumerate(arrays['length']):
      np.testing.assert_array_equal(read(i)['text'], arrays['text'][i, :n])
      np.testing.assert_array_equal(read(i)['image'], arrays['image'][i])


def test_prompts_in_a_file_are_compared_with_the_names_of_rewards(tmp_path, arrays):
  said = [f'a cat {i}' for i in range(6)]
  np.savez(tmp_path / 'x.npz', prompts=said, **arrays)
  assert stream(tmp_path / 'x.npz').record_prompts == tuple(said)
  check = lambda names: mix.check_names(
    {'it': dict(name='rewards.hps', names=names)}, classes=0, records=6, prompts=said
  )
  check(said)
  check([*said, 'one more'])
  with pytest.raises(ValueError, match="reward it: name 1 is 'a cat 2', 'a cat 1' expected, the"):
    check([said[0], *said[:0:-1][::-1][1:], said[1]])
  np.savez(tmp_path / 'x.npz', prompts=said[:3], **arrays)
  with pytest.raises(ValueError, match=r'prompts \[3\] found, one for each of 6 texts expected'):
    stream(tmp_path / 'x.npz')


def test_a_file_that_would_take_many_times_its_size_is_refused(tmp_path):
  with zipfile.ZipFile(tmp_path / 'x.npz', 'w', zipfile.ZIP_DEFLATED) as file:
    for name, x in (('text', np.zeros((100, 1000, 1000), np.float32)), ('length', [1000] * 100)):
      with file.open(f'{name}.npy', 'w') as member:
        np.lib.format.write_array(member, np.asarray(x))
  with pytest.raises(ValueError, match=r'x.npz: not a whole .npz \(arrays of 38. MiB found'):
    stream(tmp_path / 'x.npz', tokens=1000, width=1000)
