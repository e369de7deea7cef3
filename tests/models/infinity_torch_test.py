"""Infinity against numbers of the official PyTorch implementation (tests/golden), and its
checkpoint layouts.
"""

import infinity_rule as golden
import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest
import safetensors.numpy

from vargrl.checkpoint import torch_format
from vargrl.models.nets import next_scale
from vargrl.rollout import generate, vmaps
from vargrl.rollout.kinds import bits
from vargrl.rollout.plan import Segment

NAME = 'infinity_d2'


@pytest.fixture(scope='module')
def both():
  return official.load(NAME, 'transformer'), official.load(NAME, 'vae')


def test_the_rule_makes_the_weights_that_the_numbers_were_made_with(both):
  for which, m in zip(('transformer', 'vae'), both):
    for key, expected in official.stored(NAME)[0]['fill_check'][which].items():
      np.testing.assert_allclose(m.state[key].ravel()[:4], expected['first'], rtol=1e-7)
      np.testing.assert_allclose(
        m.state[key].astype(np.float64).sum(), expected['sum'], rtol=1e-6, atol=1e-5
      )


def test_self_correction_and_teacher_forced_logits_are_the_official_ones(both):
  m, v = both
  flips_BLe = golden.flips()
  np.testing.assert_array_equal(
    np.packbits(flips_BLe.reshape(2, -1), -1), official.stored(NAME)[1]['flip_mask']
  )

  @jax.jit
  def run(params, vq_params, f_BhwC, prompt_B):
    call = lambda *args, method: v.model.apply({'params': vq_params}, *args, method=method)
    t_BLe, _ = call(f_BhwC, flips_BLe, method='quantize')
    inputs_BLe = call(t_BLe ^ flips_BLe, method='embed')
    return t_BLe, inputs_BLe, m.model.apply({'params': params}, prompt_B, inputs_BLe)

  t_BLe, inputs_BLe, logits = run(m.params, v.params, golden.latents(NAME), golden.prompt())
  official.check(NAME, 'bsc_labels', np.packbits(np.asarray(t_BLe, np.uint8), -1), 'equal')
  official.check(NAME, 'bsc_input', inputs_BLe[:, ::4])
  assert logits.shape == (2, 521, 16, 2) and logits.dtype == jnp.float32
  official.check(NAME, 'tf_logits', logits.reshape(2, 521, 32)[:, ::4])
  official.check(NAME, 'tf_logit_mean', logits.mean((2, 3)))
  chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), t_BLe[..., None], -1)
  official.check(NAME, 'tf_bit_nll', -chosen.mean((2, 3)))


def test_greedy_sampling_draws_the_official_bits_and_picture(both):
  m, v = both
  c = bits.Config(3.0, 0.5, 1e-6, 'guided', scales=m.c.scales, bits=m.c.bits)
  keys_PR = vmaps.row_keys(jax.random.key(0), 2, 1)

  @jax.jit
  def run(params, vq_params, prompt_P):
    net = next_scale.Net(m.model, v.model, params, vq_params)
    plan = (Segment('image', bits, c),)
    out = generate.generate(net, plan, prompt_P, keys_PR[:, 0], keys_PR)
    t_BLe = out.data['image']['tokens'][:, 0]
    return out, t_BLe, v.model.apply({'params': vq_params}, t_BLe, method='decode')

  out, t_BLe, image_Byxc = run(m.params, v.params, golden.prompt())
  np.testing.assert_array_equal(t_BLe, golden.unpacked(NAME, 'greedy_bits'))
  assert (out.sampler_logp == 0).all()  # the only value that top_p leaves has probability one
  gap = official.stored(NAME)[1]['greedy_gap']  # log p of the drawn bits is -log(1 + exp(-|gap|))
  expected = -np.log1p(np.exp(-abs(gap))).sum(-1)
  tolerance = 16 * official.stored(NAME)[0]['tolerances']['greedy_gap']
  np.testing.assert_allclose(out.logp[:, 0, ::4], expected, atol=tolerance)
  levels = ((np.asarray(image_Byxc) + 1) / 2 * 255).astype(np.uint8)[:, ::4, ::4, ::-1].astype(int)
  assert abs(levels - official.stored(NAME)[1]['greedy_image']).max() <= 2


def test_export_of_import_is_the_official_state_dict_bit_for_bit(both):
  m, _ = both
  out = torch_format.to_state_dict(m.layouts[0].table, m.params, m.layouts[0].constants)
  assert {k: v.shape for k, v in out.items()} == m.keys
  for key, value in m.state.items():
    np.testing.assert_array_equal(out[key], value, err_msg=key)
  for key in m.constants:
    assert not out[key].any()


@pytest.mark.parametrize('change', ['unchunked', 'temperatures', 'longer', 'shorter', 'trainer'])
def test_every_form_of_the_file_is_read(both, change, tmp_path):
  m, _ = both
  state = dict(safetensors.numpy.load_file(m.path))
  known = state['cfg_uncond']
  if change == 'unchunked':
    state = {
      k.replace('block_chunks.', 'blocks.').replace('.module.0', ''): x for k, x in state.items()
    }
  if change == 'temperatures':
    state = {k: x.reshape(1, 1, 3, 1) if 'scale_mul' in k else x for k, x in state.items()}
  if change == 'longer':
    state['cfg_uncond'] = np.concatenate([known, known])
  if change == 'shorter':
    state['cfg_uncond'] = known[:5]
  if change == 'trainer':
    state |= {'lvl_1L': np.zeros((1, 521), np.int64)}
  safetensors.numpy.save_file(state, tmp_path / 'x.safetensors')
  found = torch_format.load(tmp_path / 'x.safetensors', m.layouts, m.shapes)
  expected = dict(m.params)
  if change == 'shorter':
    expected['uncond'] = jnp.pad(known[:5], ((0, 11), (0, 0)))
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_file_of_another_model_is_refused_with_what_is_wrong(both, tmp_path):
  m, _ = both
  state = dict(safetensors.numpy.load_file(m.path))
  state['head.bias'], state['cfg_uncond'] = (
    np.zeros(30, np.float32),
    np.zeros((16, 255), np.float32),
  )
  del state['block_chunks.1.module.0.ca.mat_q.weight']
  safetensors.numpy.save_file(state, tmp_path / 'x.safetensors')
  with pytest.raises(ValueError) as error:
    torch_format.load(tmp_path / 'x.safetensors', m.layouts, m.shapes)
  for line in (
    '~ head.bias (30,)',
    '~ cfg_uncond (16, 255)',
    '- block_chunks.1.module.0.ca.mat_q.weight',
  ):
    assert line in str(error.value)
