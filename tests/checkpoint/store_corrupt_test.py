"""A checkpoint that is not what was saved is never used: the one before it is, and we are told."""

import gc
import json
import logging
import os
import pathlib
import shutil
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.checkpoint import store

# Orbax leaves unfinished coroutines behind when a file cannot be read.
pytestmark = [
  pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
  pytest.mark.filterwarnings('ignore:coroutine:RuntimeWarning'),
]

DATA, META = {'next_index': 3, 'shards': [1, 2, 'three']}, {'config': {'lr': 1e-4}}


def state(step):
  # Noise, so that compression leaves no byte without meaning.
  rng = np.random.default_rng(step)
  w = {
    'w': jnp.asarray(rng.normal(size=(64, 48)).astype('float32')),
    'e': jnp.asarray(rng.normal(size=(32, 33)).astype(jnp.bfloat16)),
    'b': jnp.zeros(8),
  }
  return {'params': w, 'opt': {'count': jnp.int32(step)}}


def abstract():
  return jax.eval_shape(lambda: state(0))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Returns a folder with the good steps 10 and 20, to be copied and then hurt."""
  folder = tmp_path_factory.mktemp('saved')
  checkpoints = store.Store(folder, every_steps=10, max_to_keep=5)
  for step in (10, 20):
    checkpoints.save(step, state(step), {'step': step} | DATA, META)
  checkpoints.close()
  yield folder
  gc.collect()  # While the marks above still hold.


def copy(saved, folder):
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(saved, folder)
  return folder


def file_names(folder):
  return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())


def largest_file(folder):
  return max((folder / 'state').rglob('d/*'), key=lambda p: p.stat().st_size)


def restore_and_check(folder):
  """Returns the step that is used, after proving that everything in it is what was saved then."""
  checkpoints = store.Store(folder, every_steps=10, max_to_keep=5)
  step, tree, data, meta = checkpoints.restore(abstract())
  checkpoints.close()
  for found, expected in zip(jax.tree.leaves(tree), jax.tree.leaves(state(step)), strict=True):
    assert found.dtype == expected.dtype
    assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()
  assert data == {'step': step} | DATA and meta == META
  return step


def flip(path, rng):
  raw = bytearray(path.read_bytes())
  i = rng.integers(8 * len(raw))
  raw[i // 8] ^= 1 << int(i) % 8
  path.write_bytes(raw)


def assert_one_warning(caplog, folder, *words):
  """Exactly one sentence, naming the step, what is wrong with it and where it went."""
  lines = [r.getMessage() for r in caplog.records if r.name == 'root']
  assert len(lines) == 1 and f'checkpoint {folder}/20 is corrupt: ' in lines[0], lines
  assert f'Moved to {folder}/corrupt/20; step 10 is used instead.' in lines[0], lines
  assert any(word in lines[0] for word in words), lines
  caplog.clear()


@pytest.mark.parametrize('seed', range(4))
def test_one_flipped_bit_of_the_array_data_is_detected(saved, tmp_path, caplog, seed):
  rng = np.random.default_rng(seed)
  for _ in range(5):
    folder = copy(saved, tmp_path / 'run')
    flip(largest_file(folder / '20'), rng)
    if restore_and_check(folder) == 10:  # Not 1 bit in 100 has no meaning: then 20 is proven good.
      assert_one_warning(
        caplog, folder, 'params/w: digest', 'params/e: digest', 'params/b: digest', 'state: '
      )
      assert sorted(p.name for p in folder.iterdir()) == ['10', 'corrupt']
  assert 20 > len(caplog.records)


def test_the_arrays_of_another_step_are_detected_and_both_digests_named(saved, tmp_path, caplog):
  folder = copy(saved, tmp_path / 'run')
  old, new = (
    json.loads((folder / step / 'meta/metadata').read_text())['leaves'] for step in ('10', '20')
  )
  shutil.rmtree(folder / '20/state')
  shutil.copytree(folder / '10/state', folder / '20/state')
  assert restore_and_check(folder) == 10
  name = next(name for name in new if f'corrupt: {name}: digest ' in caplog.text)
  assert (
    f'{name}: digest {old[name]["digest"]} found, {new[name]["digest"]} expected, '
    'and 2 more leaves' in caplog.text
  )


def test_one_flipped_bit_anywhere_is_detected_or_harmless(saved, tmp_path):
  rng, used = np.random.default_rng(1), {}
  for name in file_names(saved / '20'):
    for _ in range(2):
      folder = copy(saved, tmp_path / 'run')
      flip(folder / '20' / name, rng)
      used.setdefault(name, set()).add(restore_and_check(folder))
  for name in ('data/metadata', 'meta/metadata', 'state/manifest.ocdbt'):
    assert used[name] == {10}, name


@pytest.mark.parametrize('item', ['data', 'meta'])
def test_every_changed_byte_of_the_json_items_is_detected(saved, tmp_path, caplog, item):
  rng = np.random.default_rng(2)
  for _ in range(8):
    folder = copy(saved, tmp_path / 'run')
    flip(folder / '20' / item / 'metadata', rng)
    assert restore_and_check(folder) == 10
    assert_one_warning(caplog, folder, f'{item}/metadata')


def test_an_edited_number_in_valid_json_is_detected(saved, tmp_path, caplog):
  for item, old, new in (('data', '3', '4'), ('meta', '0.0001', '0.0002'), ('meta', '20', '21')):
    folder = copy(saved, tmp_path / 'run')
    path = folder / '20' / item / 'metadata'
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert restore_and_check(folder) == 10
    assert_one_warning(caplog, folder, f'{item}/metadata: sha256')


@pytest.mark.parametrize('harm', ['delete', 'empty', 'halve', 'zero'])
def test_a_damaged_file_is_detected_or_harmless(saved, tmp_path, caplog, harm):
  for name in file_names(saved / '20'):
    folder = copy(saved, tmp_path / 'run')
    path = folder / '20' / name
    raw = path.read_bytes()
    path.unlink()
    if harm != 'delete':
      path.write_bytes({'empty': b'', 'halve': raw[: len(raw) // 2], 'zero': bytes(len(raw))}[harm])
    big = path.name == largest_file(saved / '20').name
    step = restore_and_check(folder)
    if big or name in ('data/metadata', 'meta/metadata', 'state/manifest.ocdbt'):
      assert step == 10, name
      assert_one_warning(caplog, folder, 'state' if name.startswith('state') else name, 'digest')
    caplog.clear()


def test_a_missing_item_an_empty_step_and_a_renamed_step_are_detected(saved, tmp_path, caplog):
  for item in ('state', 'data', 'meta'):
    folder = copy(saved, tmp_path / 'run')
    shutil.rmtree(folder / '20' / item)
    assert restore_and_check(folder) == 10
    assert_one_warning(caplog, folder, item)
  folder = copy(saved, tmp_path / 'run')
  shutil.rmtree(folder / '20')
  (folder / '20').mkdir()
  assert restore_and_check(folder) == 10
  assert_one_warning(caplog, folder, 'meta/metadata: FileNotFoundError')
  folder = copy(saved, tmp_path / 'run')
  shutil.rmtree(folder / '20')
  shutil.copytree(folder / '10', folder / '20')
  assert restore_and_check(folder) == 10
  assert_one_warning(caplog, folder, 'step 10 found, 20 expected')


def test_a_second_corrupt_checkpoint_of_one_step_does_not_replace_the_first(saved, tmp_path):
  folder = copy(saved, tmp_path / 'run')
  (folder / '20/data/metadata').write_text('first')
  assert restore_and_check(folder) == 10
  checkpoints = store.Store(folder, every_steps=10, max_to_keep=5)
  assert checkpoints.restore(abstract())[0] == 10 and checkpoints.save(
    20, state(20), {'step': 20} | DATA, META
  )
  checkpoints.close()
  assert restore_and_check(folder) == 20
  (folder / '20/data/metadata').write_text('second')
  assert restore_and_check(folder) == 10
  assert (folder / 'corrupt/20/data/metadata').read_text() == 'first'
  assert (folder / 'corrupt/20.1/data/metadata').read_text() == 'second'


def test_no_good_checkpoint_is_an_error_now_and_ever_after_and_nothing_moves(saved, tmp_path):
  folder = copy(saved, tmp_path / 'run')
  for step in (10, 20):
    largest_file(folder / str(step)).write_bytes(b'')
  before = file_names(folder)
  for _ in range(2):
    checkpoints = store.Store(folder, every_steps=10, max_to_keep=5)
    with pytest.raises(RuntimeError, match='none of its 2 checkpoints is good') as error:
      checkpoints.restore(abstract())
    checkpoints.close()
    assert '\n  20: state: ' in str(error.value) and '\n  10: state: ' in str(error.value)
  with pytest.raises(RuntimeError, match='none of its 2 checkpoints is good'):
    store.load(folder, abstract()['params'])
  assert file_names(folder) == before


def test_only_corrupt_checkpoints_left_is_not_a_fresh_start(saved, tmp_path):
  folder = copy(saved, tmp_path / 'run')
  largest_file(folder / '20').write_bytes(b'')
  assert restore_and_check(folder) == 10
  shutil.rmtree(folder / '10')
  with pytest.raises(RuntimeError, match='only checkpoints in corrupt/'):
    store.Store(folder, every_steps=10, max_to_keep=5).restore(abstract())


def test_a_file_that_may_not_be_read_is_not_called_corrupt(saved, tmp_path):
  if os.getuid() == 0:
    pytest.skip('root may read every file')
  folder = copy(saved, tmp_path / 'run')
  (folder / '20/meta/metadata').chmod(0)
  with pytest.raises(OSError, match='meta/metadata cannot be read now'):
    restore_and_check(folder)
  (folder / '20/meta/metadata').chmod(stat.S_IRUSR)
  assert restore_and_check(folder) == 20


def test_temporary_folders_of_a_killed_save_are_no_checkpoints_and_go_away(saved, tmp_path):
  folder = copy(saved, tmp_path / 'run')
  shutil.copytree(folder / '20', folder / '30.orbax-checkpoint-tmp')
  assert (
    store.load(folder, abstract()['params'])[1] and (folder / '30.orbax-checkpoint-tmp').exists()
  )
  checkpoints = store.Store(folder, every_steps=10, max_to_keep=5)
  assert checkpoints.latest() == 20 and checkpoints.restore(abstract())[0] == 20
  checkpoints.save(30, state(30), {'step': 30} | DATA, META)
  checkpoints.close()
  assert restore_and_check(folder) == 30
  assert sorted(p.name for p in pathlib.Path(folder).iterdir()) == ['10', '20', '30']


def test_corruption_is_one_line_on_stderr(saved, tmp_path, capfd):
  # Orbax logs hundreds of lines of traces for what it raises as well.
  handler = logging.StreamHandler()
  logging.getLogger().addHandler(handler)
  try:
    folder = copy(saved, tmp_path / 'run')
    largest_file(folder / '20').write_bytes(b'')
    assert restore_and_check(folder) == 10
  finally:
    logging.getLogger().removeHandler(handler)
  assert len(capfd.readouterr().err.splitlines()) == 1
