"""The VAR decoder: sizes, causality by blocks, the cache, recomputation, drop-path, precision."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.models import var
from vargrl.models.layers import attention, masks
from vargrl.types import bounds

# Counted on the official models: all parameters, and those of AdaLN.
COUNTS = {
  'd16': (310_283_520, 102_860_800),
  'd20': (600_917_136, 200_040_960),
  'd24': (1_033_399_360, 344_681_472),
  'd30': (2_010_020_356, 671_274_240),
  'd36-512': (2_353_893_904, 42_983_424),
}


@pytest.mark.parametrize('name', COUNTS)
def test_released_sizes_have_the_official_number_of_parameters(name):
  model = var.Model(var.SIZES[name])
  shapes = nn.unbox(jax.eval_shape(lambda key: var.init(model, key), jax.random.key(0)))
  sizes = {
    jax.tree_util.keystr(path, simple=True, separator='/'): math.prod(x.shape)
    for path, x in jax.tree.leaves_with_path(shapes)
  }
  adaln = sum(n for key, n in sizes.items() if 'ada' in key or key.startswith('shared'))
  assert (sum(sizes.values()), adaln) == COUNTS[name]


def test_a_token_sees_its_own_scale_and_all_coarser_ones():
  rows = ['#....', '#####', '#####', '#####', '#####']
  assert masks.causal_by_scale((1, 2)).tolist() == [[c == '#' for c in row] for row in rows]
  rows = ['#.............', *4 * ['#####.........'], *9 * ['##############']]
  assert masks.causal_by_scale((1, 2, 3)).tolist() == [[c == '#' for c in row] for row in rows]
  assert masks.scale_index((1, 2, 3)).tolist() == [0, 1, 1, 1, 1] + 9 * [2]


def logits(m, params=None, label=None, inputs=None, drop_path=None, **changes):
  model = var.Model(dataclasses.replace(m.c, **changes))
  return model.apply({'params': m.params if params is None else params}, label, inputs, drop_path)


def test_logits_of_a_scale_have_zero_gradient_of_later_scales_and_some_of_all_others(smoke, inputs):
  label_B, _, x_BLC = inputs
  w_BLV = jax.random.normal(jax.random.key(1), (2, smoke.c.length, smoke.c.vocab))

  @jax.jit
  def gradients(x_BLC):
    _, pull = jax.vjp(lambda x: logits(smoke, label=label_B, inputs=x), x_BLC)
    level_L = masks.scale_index(smoke.c.scales)
    return [pull(w_BLV * (level_L == i)[None, :, None])[0] for i in range(len(smoke.c.scales))]

  level_L = masks.scale_index(smoke.c.scales)[1:]  # of the inputs: token 0 has none but the label
  for i, g_BLC in enumerate(gradients(x_BLC)):
    size_BL = abs(g_BLC).max(-1)
    assert (size_BL[:, level_L > i] == 0).all()
    assert (size_BL[:, level_L <= i] > 1e-6).all()


@pytest.mark.parametrize('changes', [{}, {'shared_adaln': True}, {'l2_norm': False}], ids=str)
def test_prefill_and_extend_give_the_logits_of_teacher_forcing(small, smoke, inputs, changes):
  m = small(dataclasses.replace(smoke.c, **changes), smoke.vae.c)
  label_B, _, x_BLC = inputs

  @jax.jit
  def both(params):
    call = lambda *args, method: m.model.apply({'params': params}, *args, method=method)
    lo_BLV, cache = call(label_B, method='prefill')
    out = [lo_BLV]
    for i, (a, b) in list(enumerate(bounds(m.c.scales)))[1:]:
      lo_BLV, cache = call(x_BLC[:, a - 1 : b - 1], cache, i, method='extend')
      out.append(lo_BLV)
    return jnp.concatenate(out, 1), logits(m, params, label_B, x_BLC)

  cached, forced = both(m.params)
  np.testing.assert_allclose(cached, forced, atol=1e-4)
  assert forced.std() > 0.1


def test_fewer_scales_are_the_beginning_of_all(smoke, inputs):
  label_B, _, x_BLC = inputs
  stop = smoke.c.offsets[2]
  np.testing.assert_allclose(
    logits(smoke, label=label_B, inputs=x_BLC[:, : stop - 1]),
    logits(smoke, label=label_B, inputs=x_BLC)[:, :stop],
    atol=1e-5,
  )


def test_attention_over_segments_is_attention_over_their_concatenation():
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 4, 6, 8))
  mask = masks.causal_by_scale((1, 2))[-3:]
  q = q[:, :, :3]
  parts = [(k[:, :, :1], v[:, :, :1], None), (k[:, :, 1:], v[:, :, 1:], jnp.array(mask))]
  whole = jnp.einsum('BNLH,BNSH->BNLS', q, k) * 0.3
  whole = jnp.where(jnp.concatenate([jnp.ones((3, 1), bool), mask], 1), whole, -jnp.inf)
  expected = jnp.einsum('BNLS,BNSH->BNLH', jax.nn.softmax(whole), v)
  np.testing.assert_allclose(attention.attend(q, parts, scale=0.3), expected, atol=1e-5)


def test_grouped_queries_are_repeated_keys():
  keys = jax.random.split(jax.random.key(0), 3)
  q = jax.random.normal(keys[0], (1, 4, 5, 8))
  k, v = (jax.random.normal(key, (1, 2, 6, 8)) for key in keys[1:])
  repeated = attention.attend(q, [(k.repeat(2, 1), v.repeat(2, 1), None)], scale=1.0)
  np.testing.assert_allclose(attention.attend(q, [(k, v, None)], scale=1.0), repeated, atol=1e-5)


def test_recomputing_blocks_changes_the_program_and_no_number(smoke, inputs):
  label_B, _, x_BLC = inputs

  def loss(remat):
    return lambda p: jnp.square(logits(smoke, p, label_B, x_BLC, remat=remat)).mean()

  runs = {
    remat: jax.jit(jax.value_and_grad(loss(remat)))(smoke.params)
    for remat in ('none', 'blocks', 'dots')
  }
  for remat in ('blocks', 'dots'):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), runs['none'], runs[remat]
    )
  program = lambda remat: str(jax.make_jaxpr(jax.grad(loss(remat)))(smoke.params))
  assert 'remat' not in program('none') and 'checkpoint' not in program('none')
  dots = {remat: program(remat).count('dot_general') for remat in runs}
  assert dots['none'] < dots['dots'] < dots['blocks']  # those of L x L alone, and all


def test_keeping_all_is_no_drop_path_and_dropping_a_layer_skips_it(smoke, inputs):
  label_B, _, x_BLC = inputs

  def with_factors(*factors):  # of the two layers; both branches
    drop_path_BX2 = jnp.broadcast_to(jnp.array(factors)[None, :, None], (2, 2, 2))
    return logits(smoke, label=label_B, inputs=x_BLC, drop_path=drop_path_BX2)

  def only(layer):
    blocks = jax.tree.map(lambda x: x[layer : layer + 1], smoke.params['blocks'])
    return logits(smoke, {**smoke.params, 'blocks': blocks}, label_B, x_BLC, depth=1)

  full = logits(smoke, label=label_B, inputs=x_BLC)
  np.testing.assert_allclose(with_factors(1.0, 1.0), full, atol=1e-5)
  np.testing.assert_allclose(with_factors(1.0, 0.0), only(0), atol=1e-5)
  np.testing.assert_allclose(with_factors(0.0, 1.0), only(1), atol=1e-5)
  assert abs(with_factors(2.0, 1.0) - full).max() > 1e-2  # 1 / kept share scales the branch


def test_drop_path_drops_rows_apart(smoke, inputs):
  label_B, _, x_BLC = inputs
  drop_path_BX2 = jnp.array([[[1.0, 1.0], [1.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
  mixed = logits(smoke, label=label_B, inputs=x_BLC, drop_path=drop_path_BX2)
  full = logits(smoke, label=label_B, inputs=x_BLC)
  np.testing.assert_allclose(mixed[0], full[0], atol=1e-5)
  assert abs(mixed[1] - full[1]).max() > 1e-2


def test_the_unconditional_class_is_the_row_after_the_last(smoke, inputs):
  _, _, x_BLC = inputs
  c = smoke.c
  table = smoke.params['classes']
  assert table.shape == (c.classes + 1, c.width)
  swapped = {**smoke.params, 'classes': table.at[3].set(table[c.classes])}
  uncond = logits(smoke, label=jnp.full(2, c.classes), inputs=x_BLC)
  np.testing.assert_array_equal(logits(smoke, swapped, jnp.full(2, 3), x_BLC), uncond)
  assert abs(uncond - logits(smoke, label=jnp.full(2, 3), inputs=x_BLC)).max() > 1e-2


def test_a_fresh_model_predicts_all_codes_about_equally(smoke, inputs):
  label_B, t_BL, x_BLC = inputs
  params = nn.unbox(jax.jit(lambda key: var.init(smoke.model, key))(jax.random.key(0)))
  logp = jax.nn.log_softmax(logits(smoke, params, label_B, x_BLC))
  np.testing.assert_allclose(
    jnp.take_along_axis(logp, t_BL[..., None], -1).mean(), -math.log(smoke.c.vocab), atol=0.05
  )


def test_bfloat16_gives_float32_logits_near_those_of_float32(smoke, inputs):
  label_B, _, x_BLC = inputs
  half = logits(smoke, label=label_B, inputs=x_BLC, dtype='bfloat16')
  full = logits(smoke, label=label_B, inputs=x_BLC)
  assert half.dtype == full.dtype == jnp.float32
  gap = abs(half - full)
  assert 1e-4 < gap.mean() < 0.05 * full.std()  # rounded, and by little
