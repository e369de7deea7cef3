"""VAR against numbers of the official PyTorch implementation (tests/golden)."""

import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest

from vargrl.checkpoint import torch_format
from vargrl.models.nets import next_scale
from vargrl.rollout import generate, vmaps
from vargrl.rollout.kinds import scales
from vargrl.rollout.plan import Segment

NAMES = ('var_tiny', 'var_d2', 'var_d2_512_shared')
STRIDES = {'var_tiny': (1, 1, 1), 'var_d2': (3, 37, 8), 'var_d2_512_shared': (7, 37, 16)}
GREEDY = [
  ('var_tiny', 1.5),
  ('var_d2', 1.5),
  pytest.param('var_d2', 4.0, marks=pytest.mark.slow),
  pytest.param('var_d2_512_shared', 1.5, marks=pytest.mark.slow),
]


def logits(name, label_B, t_BL):
  m, v = official.load(name, 'transformer'), official.load(name, 'vae')

  @jax.jit
  def run(params, vq_params, label_B, t_BL):
    inputs_BLC = v.model.apply({'params': vq_params}, t_BL, method='embed')
    return m.model.apply({'params': params}, label_B, inputs_BLC)

  return run(m.params, v.params, label_B, t_BL)


@pytest.mark.parametrize('name', NAMES)
def test_the_rule_makes_the_weights_that_the_numbers_were_made_with(name):
  for which, entries in official.stored(name)[0]['fill_check'].items():
    m = official.load(name, which)
    for key, expected in entries.items():
      np.testing.assert_allclose(m.state[key].ravel()[:4], expected['first'], rtol=1e-7)
      total = m.state[key].astype(np.float64).sum()
      np.testing.assert_allclose(total, expected['sum'], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize('name', NAMES)
def test_teacher_forced_logits_are_the_official_ones(name):
  description, arrays = official.stored(name)
  step, every, _ = STRIDES[name]
  lo_BLV = logits(name, jnp.array(description['inputs']['labels']), official.tokens(name))
  assert lo_BLV.dtype == jnp.float32
  official.check(name, 'tf_logits', lo_BLV[:, ::step, ::every])
  if 'tf_argmax' not in arrays:
    return
  official.check(name, 'tf_logsumexp', jax.nn.logsumexp(lo_BLV, -1))
  official.check(name, 'tf_argmax', lo_BLV.argmax(-1))
  official.check(name, 'tf_top1', lo_BLV.max(-1))


@pytest.mark.parametrize('name,cfg', GREEDY)
def test_greedy_sampling_draws_the_official_tokens_and_picture(name, cfg):
  description, arrays = official.stored(name)
  m, v = official.load(name, 'transformer'), official.load(name, 'vae')
  label_P = jnp.array(description['inputs']['labels'])
  prefix = 'greedy' if name == 'var_tiny' else f'greedy_cfg{f"{cfg:g}".replace(".", "p")}'
  step, every, pixel = STRIDES[name]

  c = scales.Config(cfg + 1, True, 1.0, top_k=1, top_p=0.0, logp_of='guided', scales=m.c.scales)
  keys_PR = vmaps.row_keys(jax.random.key(0), len(label_P), 1)

  @jax.jit
  def sample(params, vq_params):
    net = next_scale.Net(m.model, v.model, params, vq_params)
    return generate.generate(net, (Segment('image', scales, c),), label_P, keys_PR[:, 0], keys_PR)

  out = sample(m.params, v.params)
  t_BL = out.data['image']['tokens'][:, 0]
  official.check(name, f'{prefix}_indices', t_BL)
  assert (out.sampler_logp == 0).all()  # the only token that top_k leaves has probability one

  uncond = jnp.full_like(label_P, m.c.classes)
  lo_BLV = logits(name, jnp.concatenate([label_P, uncond]), jnp.concatenate([t_BL, t_BL]))
  cond, uncond = jnp.split(lo_BLV, 2)
  ramp_L = np.repeat(
    [cfg * i / (len(m.c.scales) - 1) for i in range(len(m.c.scales))], [s * s for s in m.c.scales]
  ).astype(np.float32)[None, :, None]
  guided = (1 + ramp_L) * cond - ramp_L * uncond
  official.check(name, f'{prefix}_logits', guided[:, ::step, ::every])
  if f'{prefix}_logsumexp' in arrays:
    official.check(name, f'{prefix}_logsumexp', jax.nn.logsumexp(guided, -1))
  np.testing.assert_array_equal(guided.argmax(-1), t_BL)
  # Sampling's own logits, seen through the log-probability of the token, are the same ones.
  np.testing.assert_allclose(
    out.logp[:, 0],
    guided.max(-1) - jax.nn.logsumexp(guided, -1),
    atol=official.stored(name)[0]['tolerances'][f'{prefix}_logits'],
  )

  decode = jax.jit(lambda q, t: v.model.apply({'params': q}, t, method='decode'))
  image = decode(v.params, t_BL)
  image = (image.transpose(0, 3, 1, 2) + 1) / 2  # stored in [0, 1]
  official.check(name, f'{prefix}_image', image[:, :, ::pixel, ::pixel])


@pytest.mark.parametrize('name', NAMES)
def test_export_of_import_is_the_official_state_dict_bit_for_bit(name):
  m = official.load(name, 'transformer')
  out = torch_format.to_state_dict(m.layouts[0].table, m.params, m.layouts[0].constants)
  assert {k: v.shape for k, v in out.items()} == m.keys  # what a strict torch load asks for
  for key, value in m.state.items():
    assert out[key].dtype == value.dtype
    np.testing.assert_array_equal(out[key], value, err_msg=key)

  level = [i for i, s in enumerate(m.c.scales) for _ in range(s * s)]
  assert out['lvl_1L'].dtype == np.int64 and out['lvl_1L'].tolist() == [level]
  bias = out['attn_bias_for_masking'][0, 0]
  assert bias.dtype == np.float32
  for i in range(0, len(level), 7):
    assert bias[i].tolist() == [0.0 if level[i] >= k else -np.inf for k in level]
  for i in range(m.c.depth):
    assert not out[f'blocks.{i}.attn.zero_k_bias'].any()


def test_a_wrong_state_dict_is_refused_with_the_list_of_what_is_wrong():
  m = official.load('var_tiny', 'transformer')

  def message(state):
    with pytest.raises(ValueError) as error:
      torch_format.from_state_dict(m.layouts[0].table, state, m.shapes, m.constants)
    return str(error.value)

  state = dict(m.state)
  del state['head.bias'], state['blocks.0.ffn.fc1.weight']
  text = message(state)
  assert '- head.bias' in text and '- blocks.0.ffn.fc1.weight' in text and '\n  +' not in text
  text = message(m.state | {'blocks.1.attn.q_bias': np.zeros(64, np.float32)})
  assert '+ blocks.1.attn.q_bias' in text and '\n  -' not in text
  text = message(m.state | {'head.weight': np.zeros((65, 64), np.float32)})
  assert '~ head.weight (65, 64)' in text
  text = message(m.state | {'blocks.0.attn.mat_qkv.weight': np.zeros((128, 64), np.float32)})
  assert '~ blocks.0.attn.mat_qkv.weight (128, 64)' in text
