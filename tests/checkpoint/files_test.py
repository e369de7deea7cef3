"""Files and folders of the reference as mappings of arrays; files are written whole or not at
all.
"""

import importlib.util
import json
import os
import pathlib
import struct

import ml_dtypes
import numpy as np
import official
import pytest
import safetensors
import safetensors.numpy
import torch_file

from vargrl.checkpoint import files

STATE = {
  'w': np.arange(6, dtype=np.float32).reshape(2, 3),
  'b': np.arange(4).astype(ml_dtypes.bfloat16),
  'i': np.array(3),
  'e': np.zeros((0, 3), np.float16),
  'y': np.array([True, False]),
}


def equal(ours, theirs):
  assert set(ours) == set(theirs)
  for key, x in theirs.items():
    assert (tuple(ours[key].shape), ours[key].dtype) == (x.shape, x.dtype), key
    assert np.asarray(ours[key]).tobytes() == x.tobytes(), key


def headers(state):
  return {key: (x.shape, x.dtype) for key, x in state.items()}


def test_safetensors_are_read_as_their_own_package_writes_them_and_the_other_way(tmp_path):
  theirs, ours = tmp_path / 'theirs.safetensors', tmp_path / 'new' / 'ours.safetensors'
  safetensors.numpy.save_file(STATE, theirs)
  equal(files.open_tensors(theirs), STATE)
  files.write(ours, headers(STATE), STATE.items())
  equal(safetensors.numpy.load_file(ours), STATE)
  with safetensors.safe_open(ours, 'numpy') as file:
    assert file.metadata() == {'format': 'pt'}
  assert struct.unpack('<Q', ours.read_bytes()[:8])[0] % 8 == 0  # the data is aligned


def test_a_failed_write_leaves_what_was_there(tmp_path):
  path = tmp_path / 'x.safetensors'
  files.write(path, headers(STATE), STATE.items())
  before = path.read_bytes()

  def broken():
    yield from [*STATE.items()][:2]
    raise OSError('disk full')

  with pytest.raises(OSError, match='disk full'):
    files.write(path, headers(STATE), broken())
  assert os.listdir(tmp_path) == ['x.safetensors'] and path.read_bytes() == before
  with pytest.raises(ValueError, match="ending '.npz', expected .safetensors or .pth"):
    files.write(tmp_path / 'x.npz', {}, ())


@pytest.mark.skipif(importlib.util.find_spec('torch') is not None, reason='torch is installed')
def test_pth_without_torch_says_what_to_install(tmp_path):
  with pytest.raises(ValueError, match='pip install torch, or write .safetensors'):
    files.write(tmp_path / 'x.pth', {}, ())


def test_pth_of_torch_is_read_as_it_was_written(tmp_path):
  pytest.importorskip('torch')
  state = {key: x for key, x in STATE.items() if key != 'b'}
  files.write(tmp_path / 'x.pth', headers(state), state.items())
  found = files.open_tensors(tmp_path / 'x.pth')
  assert list(found) == list(state)
  equal(found, state)


def test_folders_are_those_of_hugging_face(tmp_path):
  first, second = {k: STATE[k] for k in 'wi'}, {k: STATE[k] for k in 'be'}
  with pytest.raises(FileNotFoundError, match='none of model.safetensors, '):
    files.open_tensors(tmp_path)
  assert not files.is_checkpoint(tmp_path)
  torch_file.write(
    tmp_path / 'pytorch_model.bin',
    torch_file.dict_of(('old', torch_file.tensor_of(STATE['w']))),
    {'0': STATE['w']},
  )
  assert set(files.open_tensors(tmp_path)) == {'old'} and files.is_checkpoint(tmp_path)
  safetensors.numpy.save_file(first, tmp_path / 'part1.safetensors')
  safetensors.numpy.save_file(second, tmp_path / 'part2.safetensors')
  index = tmp_path / 'model.safetensors.index.json'
  where = {k: 'part1.safetensors' for k in first} | {k: 'part2.safetensors' for k in second}
  index.write_text(json.dumps({'metadata': {}, 'weight_map': where}))
  equal(files.open_tensors(str(tmp_path)), first | second)
  for change, words in (
    ({'w': 'part2.safetensors'}, 'w is not in part2.safetensors'),
    ({'w': '../part1.safetensors'}, 'expected a checkpoint file of the same folder'),
  ):
    index.write_text(json.dumps({'weight_map': where | change}))
    with pytest.raises(ValueError, match=words):
      files.open_tensors(tmp_path)
  index.write_text(json.dumps({'weight_map': where | {'w': 'part3.safetensors'}}))
  with pytest.raises(FileNotFoundError, match='part3.safetensors: no such file'):
    files.open_tensors(tmp_path)
  for text in ('{', '[]', '{"weight_map": 3}', '{"weight_map": {"w": 3}}'):
    index.write_text(text)
    with pytest.raises(ValueError, match='no index with a weight_map|no JSON|list found in JSON'):
      files.open_tensors(tmp_path)
  safetensors.numpy.save_file(STATE, tmp_path / 'model.safetensors')
  equal(files.open_tensors(tmp_path), STATE)


def test_a_broken_safetensors_is_told_in_a_sentence(tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors.numpy.save_file(STATE, path)
  whole = path.read_bytes()
  for content in (b'', b'abc', whole[:40], whole[:-1], whole + b'x', b'version https://git-lfs'):
    path.write_bytes(content)
    with pytest.raises(ValueError, match='download it again') as error:
      files.open_tensors(path)
    assert str(error.value).startswith(f'{path}: ') and '\n' not in str(error.value)
  safetensors.numpy.save_file({'q': np.ones(3, ml_dtypes.float8_e4m3fn)}, path)
  with pytest.raises(ValueError, match='q has dtype F8_E4M3'):
    files.open_tensors(path)


def test_what_is_no_checkpoint_is_told_by_its_name(tmp_path):
  with pytest.raises(FileNotFoundError, match='none.pth: no such file'):
    files.open_tensors(tmp_path / 'none.pth')
  (tmp_path / 'x.npz').write_bytes(b'x')
  with pytest.raises(
    ValueError, match="ending '.npz', expected one of .pth, .pt, .bin, .safetensors"
  ):
    files.open_tensors(tmp_path / 'x.npz')
  with pytest.raises(ValueError, match='holds a list, expected a dictionary'):
    files.open_tensors(torch_file.write(tmp_path / 'x.pt', torch_file.plain([1])))
  assert (
    files.is_checkpoint('a.pth')
    and files.is_checkpoint('a/b.safetensors')
    and not files.is_checkpoint(pathlib.Path('runs/x'))
  )


def test_the_real_aesthetic_head_or_any_state_dict_reads_like_a_dictionary():
  state = files.open_tensors(official.FOLDER / 'var_tiny.pth')
  assert np.asarray(state['head.weight']).shape == (64, 64) and state['lvl_1L'].dtype == np.int64
