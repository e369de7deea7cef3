"""A PEFT folder on the reference weights is the merged model in the reference layout."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from vargrl.checkpoint import peft, torch_format
from vargrl.models import var
from vargrl.models.layers import lora

ALPHA, RANK = 12.0, 3
MODULES = {'attn.mat_qkv': 3 * RANK, 'attn.proj': RANK, 'ffn.fc1': RANK, 'ffn.fc2': RANK}


@pytest.fixture(scope='module')
def weights():
  """(config, params, table) of a decoder with random adapters, numpy."""
  c = var.Config(
    2, 16, 2, scales=(1, 2), vocab=8, channels=4, classes=3, lora_rank=RANK, lora_alpha=ALPHA
  )
  shapes = nn.unbox(jax.eval_shape(lambda key: var.init(var.Model(c), key), jax.random.key(0)))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
  return c, params, var.torch_table(c)


def test_base_plus_delta_is_the_merged_weight_in_the_reference_layout(weights, tmp_path):
  c, params, table = weights
  peft.save(tmp_path / 'adapter', table, params, alpha=ALPHA)
  arrays = load_file(tmp_path / 'adapter' / 'adapter_model.safetensors')
  config = json.loads((tmp_path / 'adapter' / 'adapter_config.json').read_text())
  before = torch_format.to_state_dict(table, lora.base_params(params), {})
  after = torch_format.to_state_dict(table, lora.merge(params, alpha=ALPHA), {})
  for key, base in before.items():
    name, ranks, alphas = (
      key.removesuffix('.weight'),
      config['rank_pattern'],
      config['alpha_pattern'],
    )
    module = name.split('.', 2)[-1]
    A, B = (arrays.pop(f'base_model.model.{name}.lora_{x}.weight', None) for x in 'AB')
    assert (A is not None) == (module in config['target_modules']) == (module in MODULES), key
    if A is None:
      np.testing.assert_array_equal(base, after[key])
      continue
    rank, alpha = ranks.get(module, config['r']), alphas.get(module, config['lora_alpha'])
    assert (
      A.shape == (rank, base.shape[1])
      and B.shape == (base.shape[0], rank)
      and rank == MODULES[module]
    )
    assert alpha / rank == ALPHA / RANK and A.dtype == B.dtype == np.float32
    np.testing.assert_allclose(base + alpha / rank * B @ A, after[key], atol=1e-4)
  assert not arrays and config['target_modules'] == sorted(MODULES)
  assert (config['peft_type'], config['bias'], config['use_rslora']) == ('LORA', 'none', False)


def test_a_tree_without_adapters_has_none_to_write(weights, tmp_path):
  _, params, table = weights
  with pytest.raises(ValueError, match='adapter: no lora_a in the weights'):
    peft.save(tmp_path / 'adapter', table, lora.base_params(params), alpha=ALPHA)
  assert not (tmp_path / 'adapter').exists()
