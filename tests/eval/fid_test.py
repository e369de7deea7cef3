"""FID and its kin from images to numbers, with a small random Inception; references as the field
stores them.
"""

import io
import zipfile

import fake_run
import jax
import numpy as np
import pytest
import striped

from vargrl.eval import fid, inception, reference, run, samples
from vargrl.parallel import mesh as meshes
from vargrl.parallel import rows

EACH, WIDTH = 6, inception.feature_width('smoke')


OPTIONS = dict(
  weights='',
  size='smoke',
  images=EACH * striped.CLASSES,
  seed=0,
  preset='',
  batch=8,
  npz='',
  dataset='',
  split='',
  pixels=0,
  crop='none',
  dir='',
  limit=0,
)


def make(built=striped.BUILT, **changes):
  return fid.make(built, **OPTIONS | changes)


@pytest.fixture(scope='module')
def real(tmp_path_factory):
  """An .npz whose arr_0 are the policy's own samples under seed 0, in another order."""
  path = tmp_path_factory.mktemp('real') / 'real.npz'
  image_Byxc, _ = samples.sampler(striped.BUILT)(
    {'policy': {}}, {}, classes=striped.CLASSES, per_class=EACH, seed=0
  )
  np.savez_compressed(path, arr_0=image_Byxc[::-1])
  return path


def test_equal_images_are_at_distance_0_others_are_not_and_a_mesh_changes_nothing(real):
  evaluate = make(npz=str(real))
  polls = []
  found = dict(evaluate({'policy': {}}, {}, lambda: polls.append(0)))
  assert len(polls) == 2 * len(
    list(rows.batches(EACH * striped.CLASSES, 8))
  )  # real ones and drawn ones
  assert list(found) == ['fid', 'inception_score', 'precision', 'recall', 'real_images', 'images']
  assert found['fid'] < 1e-6 and found['precision'] == found['recall'] == 1.0
  assert (
    found['inception_score'] > 1
    and found['images'] == found['real_images'] == EACH * striped.CLASSES
  )
  assert dict(evaluate({'policy': {}}, {})) == found  # the same keys again

  dull = dict(make(npz=str(real), preset='dull')({'policy': {}}, {}))
  assert dull['fid'] > max(1e-3, 100 * found['fid']) and dull['recall'] < 1

  with jax.set_mesh(meshes.make((('data', 2), ('fsdp', 2), ('tensor', 1)), jax.devices()[:4])):
    spread = dict(make(npz=str(real), preset='dull', batch=2)({'policy': {}}, {}))
  assert spread == pytest.approx(dull, rel=1e-4)


def test_moments_alone_give_the_same_fid_and_no_precision(real, tmp_path):
  load, features = inception.network(weights='', size='smoke')
  images = np.load(real)['arr_0']
  pool, _ = inception.compute_features(features, load(), [(images, np.ones(len(images), bool))])
  np.savez(tmp_path / 'moments.npz', mu=pool.mean(0), sigma=np.cov(pool, rowvar=False))
  found = dict(make(npz=str(tmp_path / 'moments.npz'))({'policy': {}}, {}))
  assert list(found) == ['fid', 'inception_score', 'images'] and found['fid'] < 1e-4


def test_the_images_of_a_packed_npz_are_all_there_once(real):
  images = np.load(real)['arr_0']
  for batch in (5, 24, 100):
    parts = list(reference.npz(real, features=WIDTH).batches(batch))
    assert len({x.shape for x, _ in parts}) == 1  # one program
    np.testing.assert_array_equal(np.concatenate([x[counts] for x, counts in parts]), images)


def test_a_split_of_a_data_set_is_a_reference(tmp_path_factory):
  folder = str(tmp_path_factory.getbasetemp() / 'tfds')
  ten = fake_run.built(fake_run.policy(dict(classes=10)))
  real = reference.split(
    ten, dataset='digits', split='test', size=8, crop='none', dir=folder, limit=21
  )
  parts = [x[counts] for x, counts in real.batches(8)]
  assert real.images == 21 and [len(p) for p in parts] == [8, 8, 5] and parts[0].dtype == np.uint8
  from vargrl.data import source

  rows = source.load(dataset='digits', split='test', size=8, crop='none', dir=folder, limit=21)
  np.testing.assert_array_equal(np.concatenate(parts), np.rint((rows['image'] + 1) * 127.5))


def saved(path, **arrays):
  np.savez(path, **arrays)
  return str(path)


def test_what_cannot_work_is_told_when_it_is_made(tmp_path, real):
  npz = lambda **arrays: saved(tmp_path / 'a.npz', **arrays)
  (tmp_path / 'broken.npz').write_bytes(b'PK\x03\x04 and no more')
  objects = io.BytesIO()
  np.savez(objects, arr_0=np.array([{}], object))
  (tmp_path / 'objects.npz').write_bytes(objects.getvalue())
  wrong = [
    (
      dict(weights='/nowhere/inception.pth'),
      FileNotFoundError,
      'no /nowhere/inception.pth; `curl .*github.com',
    ),
    (dict(size='fid'), ValueError, "weights: '' found, the file pt_inception.* expected; `curl"),
    (dict(size='large'), ValueError, "size: 'large' found"),
    (dict(images=6), ValueError, 'images: 6 found, a multiple of the 4 classes'),
    (dict(images=0), ValueError, 'images: 0 found'),
    (dict(batch=0), ValueError, 'batch: 0 found'),
    (dict(preset='vars'), ValueError, r"preset: 'vars' found, one of \['dull'\]"),
    (
      dict(npz='/nowhere/VIRTUAL.npz'),
      FileNotFoundError,
      'no /nowhere/VIRTUAL.npz; `curl .*VIRTUAL_imagenet256',
    ),
    (dict(npz=npz(arr_1=np.zeros(3))), ValueError, r"arrays \['arr_1'\]"),
    (dict(npz=str(tmp_path / 'broken.npz')), ValueError, 'is no .npz'),
    (dict(npz=str(tmp_path / 'objects.npz')), ValueError, 'object'),
    (dict(npz=str(real), dataset='digits'), ValueError, "one of them ''"),
    (dict(dataset='digit', split='test', pixels=8, dir=str(tmp_path)), ValueError, "'digit' found"),
  ]
  for changes, kind, message in wrong:
    with pytest.raises(kind, match=message):
      make(**changes)
  for arrays, message in (
    (dict(mu=np.zeros(7), sigma=np.zeros((7, 7))), rf'mu \[7\] .* \[{WIDTH}\] expected'),
    (dict(arr_0=np.zeros((2, 8, 8, 3))), r'arr_0 float64 .* uint8 \[N, y, x, 3\]'),
    (dict(arr_0=np.zeros((2, 8, 8), np.uint8)), r'arr_0 uint8 \[2, 8, 8\]'),
  ):
    with pytest.raises(ValueError, match=message):
      make(npz=npz(**arrays))
  with pytest.raises(ValueError, match='no policy'):
    make(fake_run.built(fake_run.policy(dict(classes=4))))


@pytest.mark.parametrize('count', [1, 2, 3])
def test_too_few_images_are_told_when_it_is_made(tmp_path, real, count):
  one = fake_run.policy(dict(classes=1), generate=striped.generate)
  one = fake_run.built(one, decode=striped.decode)
  with pytest.raises(ValueError, match=rf'^images: {count} found, at least 4 expected'):
    make(one, npz=str(real), images=count)
  few = saved(tmp_path / 'few.npz', arr_0=np.zeros((count, 8, 8, 3), np.uint8))
  with pytest.raises(ValueError, match=rf'^real images: {count} found, at least 4 expected'):
    make(one, npz=few, images=4)
  moments = saved(tmp_path / 'm.npz', mu=np.zeros(WIDTH), sigma=np.eye(WIDTH))
  if count > 1:
    make(one, npz=moments, images=count)
  section = dict(name='eval.fid', every_steps=0) | OPTIONS | dict(npz=str(real), images=count)
  with pytest.raises(ValueError, match=rf'^evals.papers: images: {count} found'):
    run.make({'papers': section}, one)


def test_an_npz_that_lies_about_its_size_is_refused(tmp_path):
  header = lambda shape: (
    np.lib.format.magic(1, 0)
    + (lambda text: len(text).to_bytes(2, 'little') + text)(
      f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".encode()
    )
  )
  bomb = header((25_000, 64, 64, 3)) + bytes(25_000 * 64 * 64 * 3)
  for name, data, words in (
    ('more', header((10**9, 64, 64, 3)) + bytes(64 * 64 * 3), 'bytes of numbers found'),
    ('least', header((-1, 64, 64, 3)) + bytes(64 * 64 * 3), 'bytes of numbers found'),
    ('bomb', bomb, r'arrays of 293 MiB found, at most 259 expected'),
    ('deep', header(f'({"-" * 9000}1,)'), 'is no .npz of numpy'),
  ):
    with zipfile.ZipFile(tmp_path / f'{name}.npz', 'w', zipfile.ZIP_DEFLATED) as file:
      file.writestr('arr_0.npy', data)
    with pytest.raises(ValueError, match=f'reference: .*{name}.npz.*{words}'):
      make(npz=str(tmp_path / f'{name}.npz'))
