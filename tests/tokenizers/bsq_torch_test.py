"""The bitwise tokenizer against numbers of the official PyTorch implementation (tests/golden)."""

import infinity_rule as golden
import jax
import numpy as np
import official
import pytest
import safetensors.numpy
import torch_file

from vargrl.checkpoint import torch_format

NAME = 'infinity_vae_d16_small'


@pytest.fixture(scope='module')
def v():
  return official.load(NAME, 'vae')


def test_features_bits_latents_and_picture_are_the_official_ones(v):
  @jax.jit
  def run(params, image_Byxc, f_BhwC):
    call = lambda *args, method: v.model.apply({'params': params}, *args, method=method)
    t_BLe, z_BhwC = call(f_BhwC, method='quantize')
    return call(image_Byxc, method='features'), t_BLe, z_BhwC, call(t_BLe, method='decode')

  f, t_BLe, z, image = run(v.params, official.images(NAME), golden.latents(NAME))
  official.check(NAME, 'f', f.transpose(0, 3, 1, 2))
  np.testing.assert_array_equal(t_BLe, golden.unpacked(NAME, 'bits'))
  official.check(NAME, 'z', z.transpose(0, 3, 1, 2))
  official.check(NAME, 'reconstruction', image.transpose(0, 3, 1, 2)[:, :, ::4, ::4])


def test_export_of_import_is_the_official_tokenizer_bit_for_bit(v):
  out = torch_format.to_state_dict(v.layouts[0].table, v.params, v.layouts[0].constants)
  assert {k: x.shape for k, x in out.items()} == v.keys
  for key, value in v.state.items():
    np.testing.assert_array_equal(out[key], value, err_msg=key)
  assert out['quantizer.lfq.mask'].tolist() == [2**i for i in range(15, -1, -1)]


def test_both_spellings_are_read_also_where_the_released_file_has_them(v, tmp_path):
  for inner in (True, False):
    state = (
      v.state
      if inner
      else {
        k.replace('.conv.w', '.w').replace('.conv.b', '.b').replace('.norm.', '.'): x
        for k, x in v.state.items()
      }
    )
    names = [(k, str(i)) for i, k in enumerate(state)]
    weights = torch_file.dict_of(*((k, torch_file.tensor_of(state[k], i)) for k, i in names))
    path = torch_file.write(
      tmp_path / f'{inner}.pth',
      torch_file.dict_of(('vae', weights), ('step', torch_file.plain(1))),
      {i: state[k] for k, i in names},
    )
    jax.tree.map(
      np.testing.assert_array_equal, torch_format.load(path, v.layouts, v.shapes), v.params
    )


def test_a_wrong_tokenizer_is_refused_with_the_list_of_what_is_wrong(v, tmp_path):
  state = dict(v.state) | {
    'decoder.conv_out.conv.bias': np.zeros(4, np.float32),
    'quantizer.extra': np.zeros(3),
  }
  del state['encoder.norm_out.norm.weight']
  safetensors.numpy.save_file(state, tmp_path / 'x.safetensors')
  with pytest.raises(ValueError) as error:
    torch_format.load(tmp_path / 'x.safetensors', v.layouts, v.shapes)
  for line in (
    '- encoder.norm_out.norm.weight',
    '~ decoder.conv_out.conv.bias (4,)',
    '+ quantizer.extra',
  ):
    assert line in str(error.value)
