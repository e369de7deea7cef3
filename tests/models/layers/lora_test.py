"""LoRA on the decoder: what adapters change, and what they leave as it was."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.models import var
from vargrl.models.layers import lora
from vargrl.parallel import mesh as meshes
from vargrl.parallel import rules

ALPHA, RANK = 8.0, 4
PROJECTIONS = ('q', 'k', 'v', 'o', 'fc1', 'fc2')


@pytest.fixture(scope='module')
def adapted(small, smoke):
  """`smoke` with adapters: its weights at 0.2 N(0, 1), theirs too."""
  return small(dataclasses.replace(smoke.c, lora_rank=RANK, lora_alpha=ALPHA), smoke.vae.c)


@pytest.fixture(scope='module')
def logits(smoke, adapted, inputs):
  """(smoke or adapted, params) -> logits_BLV"""
  label_B, _, inputs_BLC = inputs
  forward = {
    m.c: jax.jit(lambda p, model=m.model: model.apply({'params': p}, label_B, inputs_BLC))
    for m in (smoke, adapted)
  }
  return lambda m, params: forward[m.c](params)


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_new_model_with_adapters_is_the_base_model_bit_for_bit(smoke, adapted, logits):
  @jax.jit
  def drawn(key):
    return [nn.unbox(var.init(m.model, key)) for m in (smoke, adapted)]

  without, params = drawn(jax.random.key(3))
  base, adapters = lora.split(params)
  equal(base, without)
  expected = logits(smoke, without)
  equal(logits(adapted, params), expected)
  equal(logits(adapted, base), expected)
  assert set(adapters) == {'blocks'} and set(adapters['blocks']) == set(PROJECTIONS)
  for name, pair in adapters['blocks'].items():
    fan = np.prod(base['blocks'][name]['w'].shape[1:]) / np.prod(pair['lora_b'].shape[2:])
    bound = 1 / np.sqrt(fan)
    assert not pair['lora_b'].any()
    assert 0.9 * bound < abs(pair['lora_a']).max() <= bound
    assert np.std(pair['lora_a']) == pytest.approx(bound / np.sqrt(3), rel=0.1)
    assert (pair['lora_a'][0] != pair['lora_a'][1]).any()  # each layer its own


def test_off_shares_the_base_and_is_the_base_model(smoke, adapted, logits):
  base = lora.base_params(adapted.params)
  assert base['blocks']['q']['w'] is adapted.params['blocks']['q']['w']
  assert lora.base_params(base) == base and lora.split(base)[1] == {}
  equal(logits(adapted, base), logits(smoke, base))
  equal(lora.join(*lora.split(adapted.params)), adapted.params)
  assert abs(logits(adapted, adapted.params) - logits(smoke, base)).max() > 0.1


def test_merged_weights_are_a_base_of_the_same_function(smoke, adapted, logits):
  merged = lora.merge(adapted.params, alpha=ALPHA)
  np.testing.assert_allclose(logits(smoke, merged), logits(adapted, adapted.params), atol=2e-4)
  blocks = adapted.params['blocks']
  for name, eqn in {'q': 'XDr,XrNH->XDNH', 'o': 'XNHr,XrD->XNHD', 'fc2': 'XFr,XrD->XFD'}.items():
    w, a, b = (np.asarray(blocks[name][k], np.float64) for k in ('w', 'lora_a', 'lora_b'))
    np.testing.assert_allclose(
      merged['blocks'][name]['w'], w + ALPHA / RANK * np.einsum(eqn, a, b), atol=1e-5
    )
  changed = jax.tree.map(lambda x, y: x is not y, merged, lora.base_params(adapted.params))
  names = [
    '/'.join(k.key for k in path) for path, c in jax.tree_util.tree_leaves_with_path(changed) if c
  ]
  assert sorted(names) == sorted(f'blocks/{name}/w' for name in PROJECTIONS)
  equal(lora.merge(merged, alpha=ALPHA), merged)


def test_every_adapter_has_a_gradient(adapted, inputs):
  base, adapters = lora.split(adapted.params)
  label_B, _, inputs_BLC = inputs

  def value(adapters):
    return adapted.model.apply({'params': lora.join(base, adapters)}, label_B, inputs_BLC)[
      ..., 0
    ].sum()

  least = jax.tree.map(lambda g: abs(g).max(), jax.jit(jax.grad(value))(adapters))
  assert len(jax.tree.leaves(least)) == 2 * len(PROJECTIONS) and min(jax.tree.leaves(least)) > 1e-3


def test_adapters_are_sharded_by_their_letters_the_rank_in_the_place_of_D(adapted, logits):
  mesh = meshes.make((('data', 2), ('fsdp', 2), ('tensor', 2)))
  places = rules.weight_shardings(adapted.boxed, mesh)
  spec = lambda name, side: tuple(places['blocks'][name][side].spec)
  assert spec('q', 'lora_a') == (None, 'fsdp', None) and spec('q', 'lora_b') == (
    None,
    'fsdp',
    'tensor',
    None,
  )
  assert spec('o', 'lora_a') == (None, 'tensor', None, 'fsdp') and spec('o', 'lora_b') == (
    None,
    None,
    'fsdp',
  )
  assert spec('fc1', 'lora_b') == (None, 'fsdp', 'tensor') and spec('fc2', 'lora_a') == (
    None,
    'tensor',
    'fsdp',
  )
  one = logits(adapted, adapted.params)
  with jax.set_mesh(mesh):
    eight = logits(adapted, jax.device_put(adapted.params, places))
  np.testing.assert_allclose(one, eight, atol=2e-4)


def test_computes_in_the_dtype_of_the_activations(adapted):
  c = dataclasses.replace(adapted.c, dtype='bfloat16')
  inputs_BLC = jnp.zeros((1, c.length - 1, c.channels))
  text = str(
    jax.make_jaxpr(
      lambda p: var.Model(c).apply({'params': p}, jnp.zeros(1, jnp.int32), inputs_BLC)
    )(adapted.params)
  )
  assert f'bf16[1,{c.length},{RANK}]' in text and f'f32[1,{c.length},{RANK}]' not in text


@pytest.mark.parametrize(
  'changes, words',
  [
    (dict(lora_rank=-1), 'policy.lora_rank: -1 found, an integer at least 0'),
    (dict(lora_rank=4), 'policy.lora_alpha: 0.0 found, a number above 0'),
    (dict(lora_rank=4, lora_alpha=-1.0), 'policy.lora_alpha: -1.0 found'),
  ],
)
def test_a_rank_without_a_share_is_refused(smoke, changes, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(smoke.c, **changes)
