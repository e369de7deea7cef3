"""Weights are found through wrappers of other libraries; where they cannot be, it says what is
there."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch_file

from vargrl.checkpoint import files, state_dicts, torch_format
from vargrl.types import TorchLayout

W = np.arange(6, dtype=np.float32).reshape(2, 3)
SHAPES = {'a': {'w': jax.ShapeDtypeStruct((2, 3), jnp.float32)}}
LAYOUTS = (TorchLayout({'a/w': ('blocks.0.w', 'i o -> i o')}),)


def load(path):
  return torch_format.load(path, LAYOUTS, SHAPES)


def write(path, key='blocks.0.w', x=W):
  safetensors.numpy.save_file({key: x}, path)
  return path


@pytest.mark.parametrize(
  'key',
  [
    'module.blocks.0.w',
    '_orig_mod.module.blocks.0.w',
    'module._orig_mod.blocks.0.w',
    '_fsdp_wrapped_module.blocks.0.w',
    '_forward_module.module.module.blocks.0.w',
    'blocks.0._fsdp_wrapped_module.w',
    'module.blocks._checkpoint_wrapped_module.0._orig_mod.w',
  ],
)
def test_names_of_wrappers_are_dropped_until_none_is_left(tmp_path, key):
  np.testing.assert_array_equal(load(write(tmp_path / 'x.safetensors', key))['a']['w'], W)


def test_module_is_a_wrapper_where_all_keys_begin_with_it():
  strip = lambda *keys: [*state_dicts.strip('x', dict.fromkeys(keys))]
  assert strip('module.a', 'module.module.b') == ['a', 'module.b']
  assert strip('module.a', 'b.module.c') == ['module.a', 'b.module.c']
  assert strip('module', 'module.a') == ['module', 'module.a'] and strip() == []
  with pytest.raises(ValueError, match='x: a.w and a._orig_mod.w are both a.w'):
    strip('a.w', 'a._orig_mod.w')


def test_weights_below_a_name_are_found_and_the_sentence_takes_them_out(tmp_path):
  inner = torch_file.dict_of(('module.blocks.0.w', torch_file.tensor_of(W)))
  code = torch_file.dict_of(
    ('epoch', torch_file.plain(1)),
    ('model', inner),
    ('average', torch_file.dict_of(('ema', inner))),
  )
  path = torch_file.write(tmp_path / 'x.pth', code, {'0': W})
  with pytest.raises(ValueError) as error:
    load(path)
  assert "some lie in ['model'] and in ['average']['ema'], save them alone" in str(error.value)
  command = str(error.value).split('alone: ')[1]
  torch = pytest.importorskip('torch')
  exec(command, {'torch': torch, 'FILE': path, 'OTHER': tmp_path / 'y.pth'})
  np.testing.assert_array_equal(load(tmp_path / 'y.pth')['a']['w'], W)


def test_a_dictionary_that_holds_itself_ends_the_search(tmp_path):
  path = torch_file.write(tmp_path / 'x.pth', b'}q\0X\1\0\0\0ah\0s')
  with pytest.raises(ValueError, match='no weights of this model'):
    load(path)


@pytest.mark.parametrize(
  'names, words',
  [
    (('__0_0.distcp', '.metadata'), 'a distributed checkpoint of torch .*dcp_to_torch_save'),
    (('adapter_model.safetensors', 'adapter_config.json'), 'adapters of PEFT .*merge_and_unload'),
    (
      ('model-00001-of-00003.safetensors', 'model-00003-of-00003.safetensors'),
      '2 of 3 parts lie there, but not model.safetensors.index.json',
    ),
    (('pytorch_model-00001-of-00002.bin',), '1 of 2 parts .*pytorch_model.bin.index.json'),
  ],
)
def test_a_folder_of_other_weights_says_what_they_are(tmp_path, names, words):
  for name in names:
    (tmp_path / name).touch()
  assert files.is_checkpoint(tmp_path)
  with pytest.raises(FileNotFoundError, match=words):
    load(tmp_path)


def test_the_function_that_joins_a_distributed_checkpoint_is_there():
  module = pytest.importorskip('torch.distributed.checkpoint.format_utils')
  assert callable(module.dcp_to_torch_save)


@pytest.mark.parametrize('dtype', ['f2', 'f4', 'f8', ml_dtypes.bfloat16])
def test_weights_that_are_not_finite_are_told_by_their_file(tmp_path, dtype):
  for value in (np.inf, -np.inf, np.nan):
    x = W.astype(dtype)
    x[1, 2] = value
    path = write(tmp_path / 'x.safetensors', x=x)
    with pytest.raises(
      ValueError, match='x.safetensors: blocks.0.w has numbers that are not finite'
    ):
      load(path)
  largest = np.full_like(x, ml_dtypes.finfo(dtype).max)
  state_dicts.check_finite('x', 'w', -largest)
  state_dicts.check_finite('x', 'w', largest[:0])


def test_an_index_names_files_of_its_folder(tmp_path):
  write(tmp_path / 'part.safetensors')
  for name in ('./part.safetensors', '..', '/part.safetensors', 'a\0.pth', ''):
    text = f'{{"weight_map": {{"blocks.0.w": {files.json.dumps(name)}}}}}'
    (tmp_path / 'model.safetensors.index.json').write_text(text)
    with pytest.raises((ValueError, OSError), match='index.json: names'):
      load(tmp_path)
  (tmp_path / 'model.safetensors.index.json').write_text('[' * 100_000)
  with pytest.raises(ValueError, match='index.json: JSON nested too deeply'):
    load(tmp_path)


def test_a_config_of_any_depth_and_length_is_told_shortly(tmp_path):
  write(tmp_path / 'model.safetensors')
  for text in ('{"size": ' + '[' * 500 + ']' * 500 + '}', '{"size": "' + 'x' * 10**6 + '"}'):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(ValueError, match='config.json: another model') as error:
      files.check_config(tmp_path, {'size': 3})
    assert len(str(error.value)) < 600
