"""The VQ tokenizer against numbers of the official PyTorch implementation (tests/golden)."""

import jax
import numpy as np
import official
import pytest

from vargrl.checkpoint import torch_format

NAMES = ('vqvae_small', 'var_tiny')


@pytest.fixture(scope='module', params=NAMES)
def run(request):
  """(name, ours: f, indices, cumulative latents, transformer inputs, picture)."""
  v = official.load(request.param, 'vae')
  call = lambda p, x, method: v.model.apply({'params': p}, x, method=method)

  @jax.jit
  def everything(params, x):
    f = call(params, x, 'features')
    t_BL, steps = call(params, f, 'quantize')
    return f, t_BL, steps, call(params, t_BL, 'embed'), call(params, t_BL, 'decode')

  return request.param, everything(v.params, official.images(request.param))


def test_the_rule_makes_the_tokenizer_that_the_numbers_were_made_with():
  for name in NAMES:
    state = official.load(name, 'vae').state
    for key, expected in official.stored(name)[0]['fill_check']['vae'].items():
      np.testing.assert_allclose(state[key].ravel()[:4], expected['first'], rtol=1e-7)
      np.testing.assert_allclose(
        state[key].astype(np.float64).sum(), expected['sum'], rtol=1e-6, atol=1e-5
      )


def test_encoder_indices_and_latents_are_the_official_ones(run):
  name, (f, t_BL, steps, _, _) = run
  official.check(name, 'f', f.transpose(0, 3, 1, 2))
  official.check(name, 'indices', t_BL)
  official.check(name, 'f_hat', steps[-1].transpose(0, 3, 1, 2))
  if name == 'vqvae_small':
    rms = np.stack([np.sqrt(np.mean(np.square(z), (1, 2, 3))) for z in steps], 1)
    official.check(name, 'f_hat_rms', rms)


def test_transformer_inputs_and_picture_are_the_official_ones(run):
  name, (_, _, _, inputs_BLC, image) = run
  every = 4 if name == 'vqvae_small' else 1
  official.check(name, 'var_input', inputs_BLC[:, ::every])
  official.check(name, 'reconstruction', image.transpose(0, 3, 1, 2)[:, :, ::every, ::every])


@pytest.mark.parametrize('name', NAMES)
def test_export_of_import_is_the_official_tokenizer_bit_for_bit(name):
  v = official.load(name, 'vae')
  out = torch_format.to_state_dict(v.layouts[0].table, v.params, v.layouts[0].constants)
  assert {k: x.shape for k, x in out.items()} == v.keys
  for key, value in v.state.items():
    assert out[key].dtype == value.dtype
    np.testing.assert_array_equal(out[key], value, err_msg=key)
  assert set(v.constants) == {'quantize.ema_vocab_hit_SV'}
  assert not out['quantize.ema_vocab_hit_SV'].any()


def test_a_wrong_tokenizer_is_refused_with_the_list_of_what_is_wrong():
  v = official.load('var_tiny', 'vae')
  state = dict(v.state) | {'quantize.extra': np.zeros(3)}
  state['decoder.conv_out.bias'] = np.zeros(4, np.float32)
  del state['quantize.quant_resi.qresi_ls.2.weight']
  with pytest.raises(ValueError) as error:
    torch_format.from_state_dict(v.layouts[0].table, state, v.shapes, v.constants)
  text = str(error.value)
  assert '- quantize.quant_resi.qresi_ls.2.weight' in text
  assert '~ decoder.conv_out.bias (4,)' in text and '+ quantize.extra' in text
