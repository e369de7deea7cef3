"""Infinity's decoder: sizes, causality by scales, what a prompt decides, the cache, hidden states
from outside.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from vargrl.models import infinity, infinity_block
from vargrl.models.layers import masks
from vargrl.parallel import mesh, rules
from vargrl.types import bounds

# Counted on the official models.
COUNTS = {
  '125m': 125_185_696,
  '360m': 361_633_792,
  '940m': 940_944_832,
  '2.3b': 2_256_694_912,
  '4.7b': 4_716_421_888,
  '8.8b': 8_767_198_528,
  '2b': 2_204_564_032,
  '8b': 8_375_791_824,
}


def shapes(c):
  return nn.unbox(
    jax.eval_shape(lambda key: infinity.init(infinity.Model(c), key), jax.random.key(0))
  )


@pytest.mark.parametrize('name', COUNTS)
def test_published_sizes_have_the_official_number_of_parameters(name):
  assert (
    sum(math.prod(x.shape) for x in jax.tree.leaves(shapes(infinity.SIZES[name]))) == COUNTS[name]
  )


@pytest.fixture(scope='module')
def apply(bits):
  """(method, *arguments) -> what the model of `bits` says, of weights `params` if given."""

  def call(*arguments, method='__call__', params=None, **changes):
    model = infinity.Model(dataclasses.replace(bits.c, **changes))
    run = jax.jit(lambda p, given: model.apply({'params': p}, *given, method=method))
    return run(bits.params if params is None else params, arguments)

  return call


@pytest.fixture(scope='module')
def full(apply, said):
  prompt_B, _, x_BLC = said
  return apply(prompt_B, x_BLC)


def test_logits_of_a_scale_have_zero_gradient_of_later_scales_and_some_of_all_others(
  bits, said, full
):
  prompt_B, _, x_BLC = said
  assert full.shape == (2, 13, 4, 2) and full.dtype == jnp.float32 and full.std() > 0.1

  @jax.jit
  def gradients(x_BLC):
    _, pull = jax.vjp(lambda x: bits.model.apply({'params': bits.params}, prompt_B, x), x_BLC)
    w = jax.random.normal(jax.random.key(1), full.shape)
    level_L = masks.scale_index(bits.c.scales)
    return [pull(w * (level_L == i)[None, :, None, None])[0] for i in range(3)]

  level_L = masks.scale_index(bits.c.scales)[1:]
  for i, g_BLC in enumerate(gradients(x_BLC)):
    size_BL = abs(g_BLC).max(-1)
    assert (size_BL[:, level_L > i] == 0).all() and (size_BL[:, level_L <= i] > 1e-6).all()


def test_prefill_and_extend_give_the_logits_of_teacher_forcing(bits, said, full):
  prompt_B, _, x_BLC = said

  @jax.jit
  def cached(params):
    call = lambda *args, method: bits.model.apply({'params': params}, *args, method=method)
    logits, cache = call(prompt_B, method='prefill')
    out = [logits]
    for i, (a, b) in list(enumerate(bounds(bits.c.scales)))[1:]:
      logits, cache = call(x_BLC[:, a - 1 : b - 1], cache, i, method='extend')
      out.append(logits)
    return jnp.concatenate(out, 1)

  np.testing.assert_allclose(cached(bits.params), full, atol=1e-4)


def test_hidden_states_given_from_outside_are_those_that_the_model_makes_itself(bits, said, full):
  prompt_B, _, x_BLC = said

  @jax.jit
  def outside(params):
    call = lambda *args, method: bits.model.apply({'params': params}, *args, method=method)
    cond, memory, mask = call(prompt_B, method='read_prompt')
    first, words = call(cond, method='first_input'), call(x_BLC, method='embed')
    forced = call(
      *call(jnp.concatenate([first, words], 1), cond, (memory,), (mask,), method='decode'),
      method='logits',
    )
    logits, cache = call(first, cond, (memory,), (mask,), method='first_scale')
    out = [logits]
    for i, (a, b) in list(enumerate(bounds(bits.c.scales)))[1:]:
      logits, cache = call(words[:, a - 1 : b - 1], cache, i, method='next_scale')
      out.append(logits)
    return forced, jnp.concatenate(out, 1)

  for logits in outside(bits.params):
    np.testing.assert_allclose(logits, full, atol=1e-4)


def test_features_beyond_the_length_are_not_read_and_those_before_are(apply, said, full):
  prompt_B, _, x_BLC = said
  changed = lambda i: apply(prompt_B | {'text': prompt_B['text'].at[1, i].add(5.0)}, x_BLC)
  np.testing.assert_array_equal(changed(3), full)  # of the second row three count
  moved = abs(changed(2) - full).max((1, 2, 3))
  assert moved[0] == 0 and moved[1] > 1e-2


def test_a_negative_length_reads_so_many_learned_features(bits, apply, said, full):
  prompt_B, _, x_BLC = said
  uncond = bits.model.unconditional(prompt_B)
  assert uncond['length'].tolist() == [-8, -3]
  table = jnp.broadcast_to(bits.params['uncond'][None], prompt_B['text'].shape)
  found = apply(uncond, x_BLC)
  np.testing.assert_allclose(found, apply(prompt_B | {'text': table}, x_BLC), atol=1e-5)
  assert abs(found - full).max() > 1e-2
  np.testing.assert_array_equal(apply(bits.model.unconditional(uncond), x_BLC), found)
  with pytest.raises(ValueError, match='prompt: 9 text features, at most 8'):
    apply({'text': jnp.zeros((2, 9, 16)), 'length': jnp.array([9, 9])}, x_BLC)


def test_rows_and_columns_turn_different_halves_of_a_head(bits):
  angles_LH = infinity_block.rope_grid_angles(bits.c)
  assert angles_LH.shape == (13, 16)
  places = np.array(
    [[0, 0]]
    + [[y, x] for y in (0, 2) for x in (0, 1)]
    + [[y, x] for y in range(4) for x in range(2)]
  )
  theta = 10000.0 ** (-np.arange(4) / 4)
  for half, axis in ((slice(0, 8), 0), (slice(8, 16), 1)):
    np.testing.assert_allclose(
      angles_LH[:, half], (places[:, axis : axis + 1] * theta).repeat(2, 1), rtol=1e-6
    )
  x = jax.random.normal(jax.random.key(0), (1, 1, 13, 16))
  pairs = lambda x: (
    np.asarray(x).reshape(13, 8, 2) @ np.array([1, 1j])
  )  # neighbours as complex numbers
  turned = pairs(infinity_block.apply_rope_2d(x, angles_LH))
  np.testing.assert_allclose(turned, pairs(x) * np.exp(1j * angles_LH[:, ::2]), atol=1e-5)


def test_fewer_scales_recomputation_and_drop_path(bits, apply, said, full):
  prompt_B, _, x_BLC = said
  np.testing.assert_allclose(apply(prompt_B, x_BLC[:, :4]), full[:, :5], atol=1e-5)
  np.testing.assert_allclose(apply(prompt_B, x_BLC, remat='blocks'), full, atol=1e-5)
  drop_path_BX2 = jnp.array([[[1.0, 1.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
  mixed = apply(prompt_B, x_BLC, drop_path_BX2)
  np.testing.assert_allclose(mixed[0], full[0], atol=1e-5)
  assert abs(mixed[1] - full[1]).max() > 1e-2


def test_adapters_begin_beside_the_same_base_and_change_nothing_at_first(bits):
  key = jax.random.key(0)

  def init(**changes):
    model = infinity.Model(dataclasses.replace(bits.c, **changes))
    return nn.unbox(jax.jit(lambda key: infinity.init(model, key))(key))

  base, adapted = init(), init(lora_rank=2, lora_alpha=4.0)
  assert (
    not adapted['blocks']['cross']['q']['lora_b'].any()
    and adapted['blocks']['core']['fc1']['lora_a'].any()
  )
  np.testing.assert_array_equal(
    adapted['blocks']['cross']['k']['w'], base['blocks']['cross']['k']['w']
  )


@pytest.mark.parametrize('sizes', [(1, 8, 1), (2, 2, 2)], ids=str)
def test_a_mesh_changes_no_logit_and_no_gradient(bits, said, sizes):
  prompt_B, _, x_BLC = jax.tree.map(lambda x: x.repeat(4, 0), said)

  def f(params):
    logits = bits.model.apply({'params': params}, prompt_B, x_BLC)
    return jnp.square(logits).mean(), logits

  run = lambda params: jax.jit(jax.value_and_grad(f, has_aux=True))(params)
  expected, devices = run(bits.params), mesh.make(list(zip(mesh.AXES, sizes)))
  with jax.set_mesh(devices):
    sharded = jax.device_put(bits.params, rules.weight_shardings(bits.boxed, devices))
    assert any(
      s.spec != PartitionSpec()
      for s in jax.tree.leaves(rules.weight_shardings(bits.boxed, devices))
      if isinstance(s, NamedSharding)
    )
    found = jax.device_get(run(sharded))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, jax.device_get(expected)
  )


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(scales='3M'), 'scales'),
    (dict(width=36, heads=6), 'multiple of 4'),
    (dict(levels=2), '3 scales, at most 2'),
    (dict(export_chunks=3), 'policy.export_chunks: 3'),
    (dict(attention='flash'), 'attention'),
    (dict(text=256, width=33, heads=1), 'width'),
  ],
)
def test_a_config_that_means_nothing_is_refused(bits, changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(bits.c, **changes)
