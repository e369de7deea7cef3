"""A folder of images for outside evaluators: resumed it is the same files, packed it is the same
pixels.
"""

import numpy as np
from PIL import Image
import pytest
import striped

from vargrl.commands import sample

SETTINGS = {'step': 3, 'sampler': ''}


def fill(folder, **changes):
  options = dict(classes=(0, 2, 3), per_class=5, seed=0, preset='', settings=SETTINGS, batch=4)
  return sample.resume_folder(folder, striped.BUILT, {'policy': {}}, {}, **options | changes)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """(folder, {name: bytes}) of all images drawn at once."""
  folder = tmp_path_factory.mktemp('whole') / 'pictures'
  paths, new = fill(folder)
  assert new == len(paths) == 15 and len(set(paths)) == 15
  return folder, {f.name: f.read_bytes() for f in folder.glob('*.png')}


def test_one_file_per_image_with_class_and_index_in_its_name(whole):
  _, files = whole
  assert set(files) == {f'{k:04d}_{r:05d}.png' for k in (0, 2, 3) for r in range(5)}
  assert len(set(files.values())) == 15


def test_a_folder_that_was_cut_ends_with_the_same_files(whole, tmp_path):
  for cut in ('0002_00001.png', '0003_00004.png'):
    paths, _ = fill(tmp_path / 'again')
    (tmp_path / 'again' / cut).unlink()
    stamps = {p: p.stat().st_mtime_ns for p in paths if p.exists()}
    assert fill(tmp_path / 'again')[1] == 1
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
  assert {p.name: p.read_bytes() for p in paths} == whole[1]


def test_an_image_depends_on_its_class_and_index_alone(whole, tmp_path):
  paths, _ = fill(tmp_path / 'some', classes=(3,), per_class=2, batch=1)
  assert all(p.read_bytes() == whole[1][p.name] for p in paths) and len(paths) == 2


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(seed=1), 'started with seed 0, 1 found'),
    (dict(settings=SETTINGS | {'step': 4}), 'started with step 3, 4 found'),
  ],
)
def test_a_folder_of_other_images_is_refused(whole, changes, message):
  with pytest.raises(ValueError, match=message):
    fill(whole[0], **changes)


def test_files_of_somebody_else_are_refused(tmp_path):
  (tmp_path / 'mine.txt').write_text('kept')
  with pytest.raises(ValueError, match='expected a new folder'):
    fill(tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ['mine.txt']


def test_the_npz_has_every_pixel_once_and_no_order_of_classes(whole, tmp_path):
  paths = sorted(whole[0].glob('*.png'))
  sample.to_npz(tmp_path / 'a.npz', paths)
  with np.load(tmp_path / 'a.npz', allow_pickle=False) as file:
    packed = file['arr_0']
  images = [np.asarray(Image.open(p)) for p in paths]
  assert packed.dtype == np.uint8 and packed.shape == (15, 8, 8, 3)
  assert sorted(x.tobytes() for x in packed) == sorted(x.tobytes() for x in images)
  assert [x.tobytes() for x in packed] != [x.tobytes() for x in images]


def test_a_preset_draws_other_images(whole, tmp_path):
  paths, _ = fill(tmp_path / 'dull', preset='dull')
  assert (
    whole[1]['0000_00001.png'] == (tmp_path / 'dull' / '0000_00001.png').read_bytes()
  )  # it draws class 0 only
  assert whole[1]['0002_00001.png'] != (tmp_path / 'dull' / '0002_00001.png').read_bytes()
