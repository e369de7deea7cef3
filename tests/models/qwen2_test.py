"""The language model's own laws: causality, caches of all kinds, packed rows; numbers of
transformers are elsewhere.
"""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_models

from vargrl.checkpoint import peft
from vargrl.models import qwen2, qwen2_vl
from vargrl.models.layers import cache as caches
from vargrl.models.layers import lora, masks, rope
from vargrl.types import RowShape

C = qwen2.SIZES['smoke']


def weights(c, seed=0):
  init = lambda key: qwen2.init(qwen2.Model(c), key)
  return random_models.random_weights(nn.unbox(jax.eval_shape(init, jax.random.key(0))), seed)


PARAMS = weights(C)
TOKENS = jax.random.randint(jax.random.key(1), (2, 12), 0, C.vocab)
POSITION = jnp.stack([jnp.arange(12), jnp.arange(12) // 2, jnp.arange(12) % 5])[:, None].repeat(
  2, 1
)  # [3, B, L]


def apply(method, *args, c=C, params=PARAMS):
  return qwen2.Model(c).apply({'params': params}, *args, method=method)


@functools.partial(jax.jit, static_argnames='c')
def logits(params, t_BL, *args, c=C):
  return qwen2.Model(c).apply({'params': params}, t_BL, *args)


@jax.jit
def teacher(params, t_BL, position):
  return apply('forward', apply('embed', t_BL, params=params), position, params=params)


@pytest.mark.parametrize('how', ['concatenated', 'written', 'both'])
def test_a_cache_of_any_parts_gives_the_hidden_states_of_teacher_forcing(how):
  """Prompt of 4 with padding before the rest comes in parts, as text and the scales of an image
  do.
  """
  whole = teacher(PARAMS, TOKENS, POSITION)

  @jax.jit
  def parts(params):
    x_BLD = apply('embed', TOKENS, params=params)
    padded, seen_BS = (
      jnp.pad(x_BLD[:, :4], ((0, 0), (0, 3), (0, 0)), constant_values=9.0),
      jnp.arange(7)[None] < 4,
    )
    position = jnp.pad(POSITION[:, :, :4], ((0, 0), (0, 0), (0, 3)), constant_values=50)
    out, cache = apply('prefill', padded, position, seen_BS, params=params)
    out = [out[:, :4]]
    for start, stop in ((4, 5), (5, 6), (6, 9), (9, 10), (10, 11), (11, 12)):
      if how == 'written' and start == 4:
        cache = caches.allocate(cache, 20)
      if how == 'both' and start in (4, 9):
        cache = caches.allocate(cache, 5)
      if how == 'both' and start == 6:
        cache = caches.freeze(cache)
      x, cache = apply(
        'extend', x_BLD[:, start:stop], POSITION[:, :, start:stop], cache, params=params
      )
      out.append(x)
    return jnp.concatenate(out, 1), cache

  ours, cache = parts(PARAMS)
  np.testing.assert_allclose(ours, whole, atol=1e-5)
  assert len(cache.pairs) == {'concatenated': 2, 'written': 2, 'both': 4}[how]
  seen = [None if mask is None else np.asarray(mask).sum() for mask in cache.masks]
  assert seen == {'concatenated': [4, None], 'written': [4, 8], 'both': [4, 2, None, 3]}[how]


def test_another_turn_of_a_dialogue_is_one_more_segment_of_the_prompt():
  @jax.jit
  def turns(x_BLD):
    _, cache = apply('prefill', x_BLD[:, :5], POSITION[:, :, :5])
    return apply('prefill', x_BLD[:, 5:], POSITION[:, :, 5:], None, cache)

  out, cache = turns(apply('embed', TOKENS))
  np.testing.assert_allclose(out, teacher(PARAMS, TOKENS, POSITION)[:, 5:], atol=1e-5)
  assert cache.length == 12 and cache.private is None and cache.masks == (None, None)


def test_a_token_sees_itself_and_what_is_before_it():
  sensitivity = jax.jit(jax.jacobian(lambda x_BLD: apply('forward', x_BLD).sum(-1)[0]))
  x_BLD = apply('embed', TOKENS[:1, :6])
  mask = abs(sensitivity(x_BLD)[:, 0]).max(-1) > 0
  assert ['.'.join('x' if seen else ' ' for seen in row) for row in np.asarray(mask)] == [
    'x. . . . . ',
    'x.x. . . . ',
    'x.x.x. . . ',
    'x.x.x.x. . ',
    'x.x.x.x.x. ',
    'x.x.x.x.x.x',
  ]


def test_a_packed_token_sees_its_own_sequence_alone():
  mask = masks.SegmentMask(np.tri(6, dtype=bool), jnp.array([[4, 4, 2, 2, 2, 0]])).mask_BLS[0]
  assert ['.'.join('x' if seen else ' ' for seen in row) for row in np.asarray(mask)] == [
    'x. . . . . ',
    'x.x. . . . ',
    ' . .x. . . ',
    ' . .x.x. . ',
    ' . .x.x.x. ',
    ' . . . . .x',
  ]


@pytest.mark.parametrize('attention', ['dense', pytest.param('splash', marks=pytest.mark.slow)])
def test_packed_is_unpacked(attention):
  """Sequences of 5 and 4, and 3 of padding, in one row, forward and backward."""
  c = dataclasses.replace(C, attention=attention)
  segment_BL = jnp.array([[4] * 5 + [2] * 4 + [0] * 3])
  position_BL = jnp.array([[*range(5), *range(4), *range(3)]])
  target = jax.random.normal(jax.random.key(2), (1, 12, C.vocab))

  def loss(params, pieces):
    out = [logits(params, t_BL, p_BL, s_BL, c=c) for t_BL, p_BL, s_BL in pieces]
    return (jnp.concatenate(out, 1) * target)[:, :9].mean(), jnp.concatenate(out, 1)

  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  t_BL, cuts = TOKENS[:1], (slice(0, 5), slice(5, 9), slice(9, 12))
  (_, packed), g = run(PARAMS, [(t_BL, position_BL, segment_BL)])
  (_, apart), g_apart = run(PARAMS, [(t_BL[:, cut], position_BL[:, cut], None) for cut in cuts])
  np.testing.assert_allclose(packed, apart, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), g, g_apart)
  assert abs(packed - logits(PARAMS, t_BL, position_BL))[:, 5:].max() > 0.1


def test_positions_of_text_are_three_times_the_same_and_only_sections_tell_them_apart():
  same = teacher(PARAMS, TOKENS, POSITION[:1].repeat(3, 0))
  np.testing.assert_array_equal(same, teacher(PARAMS, TOKENS, POSITION[0]))
  np.testing.assert_allclose(
    same, jax.jit(lambda t: apply('forward', apply('embed', t)))(TOKENS), atol=1e-6
  )
  assert abs(same - teacher(PARAMS, TOKENS, POSITION)).max() > 0.01
  plain = dataclasses.replace(C, sections=())
  np.testing.assert_array_equal(
    logits(PARAMS, TOKENS, POSITION, c=plain), logits(PARAMS, TOKENS, POSITION[0], c=plain)
  )


def test_images_stand_in_the_place_of_tokens():
  x_BLD, image_BTD = apply('embed', TOKENS), jax.random.normal(jax.random.key(4), (2, 3, C.width))
  place_BL = jnp.full((2, 12), -1).at[0, 2:4].set(jnp.array([2, 0])).at[1, 7].set(1)
  out = qwen2.splice_embeddings(x_BLD, place_BL, image_BTD)
  np.testing.assert_array_equal(out[0, 2:4], image_BTD[0, jnp.array([2, 0])])
  np.testing.assert_array_equal(out[1, 7], image_BTD[1, 1])
  np.testing.assert_array_equal(out[place_BL < 0], x_BLD[place_BL < 0])
  g = jax.grad(lambda image: (qwen2.splice_embeddings(x_BLD, place_BL, image) ** 2).sum())(
    image_BTD
  )
  assert (abs(g).max(-1) > 0).tolist() == [[True, False, True], [False, True, False]]


@pytest.mark.parametrize('remat', ['blocks', 'dots'])
def test_recomputing_blocks_changes_the_program_and_no_number(remat):
  def loss(params, c):
    return (logits(params, TOKENS, POSITION, c=c) ** 2).mean()

  again = dataclasses.replace(C, remat=remat)
  runs = [jax.jit(jax.value_and_grad(lambda p, c=c: loss(p, c)))(PARAMS) for c in (C, again)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *runs)
  program = lambda c: str(jax.make_jaxpr(jax.grad(lambda p: loss(p, c)))(PARAMS))
  assert 'remat' not in program(C) and 'remat' in program(again)


def test_adapters_start_as_the_base_and_are_peft_s_by_their_modules(tmp_path):
  c = dataclasses.replace(C, lora_rank=2, lora_alpha=4.0)
  drawn = lambda c: nn.unbox(
    jax.jit(lambda key: qwen2.init(qwen2.Model(c), key))(jax.random.key(0))
  )
  base, params = drawn(C), drawn(c)
  jax.tree.map(np.testing.assert_array_equal, lora.base_params(params), base)
  np.testing.assert_array_equal(logits(params, TOKENS, c=c), logits(base, TOKENS))
  moved = random_models.random_weights(params, 3)
  both = lora.merge(moved, alpha=4.0)
  np.testing.assert_allclose(logits(moved, TOKENS, c=c), logits(both, TOKENS), atol=1e-4)
  assert abs(logits(moved, TOKENS, c=c) - logits(lora.base_params(moved), TOKENS)).max() > 0.01
  peft.save(tmp_path, qwen2.torch_layouts(c)[0].table, moved, alpha=4.0)
  assert json.loads((tmp_path / 'adapter_config.json').read_text())['target_modules'] == sorted(
    [f'self_attn.{x}_proj' for x in 'qkvo'] + [f'mlp.{x}_proj' for x in ('gate', 'up', 'down')]
  )


def test_bfloat16_gives_float32_logits_near_those_of_float32():
  for tied in (False, True):
    c = dataclasses.replace(C, tied=tied)
    params, half = weights(c), dataclasses.replace(c, dtype='bfloat16')
    a, b = logits(params, TOKENS, c=c), logits(params, TOKENS, c=half)
    assert b.dtype == jnp.float32 and 0 < abs(a - b).max() < 0.1 * a.std() + 0.05
    assert apply('embed', TOKENS, c=half, params=params).dtype == jnp.bfloat16


def test_a_head_gathered_once_is_the_head():
  for tied in (False, True):
    c = dataclasses.replace(C, tied=tied)
    params = weights(c)
    np.testing.assert_array_equal(
      logits(qwen2.gather_head(c, params), TOKENS, c=c), logits(params, TOKENS, c=c)
    )


def test_flops_are_those_of_the_compiled_program():
  c = qwen2.Config(1, 64, 4, 2, 160, 256)
  L, params = 64, weights(c)
  program = logits.lower(params, jnp.zeros((1, L), int), c=c).compile()
  cost = program.cost_analysis()['flops']
  masked = 2 * L * c.heads * c.head_dim * (L - 1)  # half of L x L is counted, all is computed
  row = RowShape(L, text=L, pictures=0, picture_tokens=0, skip=0, context=0, patches=0)
  assert qwen2.flops(c, row) == {'': qwen2.text_flops(c, L, L)}
  np.testing.assert_allclose(qwen2.text_flops(c, L, L) + masked, cost, rtol=0.05)


@pytest.mark.parametrize(
  'change, words',
  [
    (dict(heads=5), 'width 32, 5 heads'),
    (dict(kv_heads=3), '4 heads, 3 kv_heads'),
    (dict(sections=(1, 1, 1)), 'three numbers of sum 4'),
    (dict(dtype='int8'), "policy.dtype: 'int8'"),
    (dict(attention='flash'), "policy.attention: 'flash'"),
    (dict(remat='some'), "policy.remat: 'some'"),
    (dict(lora_rank=2), 'policy.lora_alpha: 0.0 found, a number above 0 expected'),
  ],
)
def test_a_model_that_means_nothing_is_refused(change, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(C, **change)
  if 'heads' not in ''.join(change) and 'sections' not in change:
    with pytest.raises(ValueError, match=words):
      dataclasses.replace(qwen2_vl.SIZES['smoke'], **change)


def test_a_tower_of_another_width_is_refused():
  with pytest.raises(ValueError, match='embeddings of width 3584, the language model has 1536'):
    qwen2_vl.Config(qwen2.SIZES['vl-2b'], qwen2_vl.SIZES['7b'].image)


def test_rotating_is_multiplying_by_a_complex_number():
  x = jax.random.normal(jax.random.key(0), (1, 1, 3, 8))
  position, frequency = np.array([[[0, 1, 30]]]), rope.rope_frequencies(4, 100.0)
  np.testing.assert_allclose(frequency, [1, 100**-0.25, 0.1, 100**-0.75], rtol=1e-6)
  y = rope.apply_rope(x, rope.rope_angles(jnp.asarray(position), np.zeros(4, int), frequency))
  z = np.asarray(x[..., :4]) + 1j * np.asarray(x[..., 4:])
  z *= np.exp(1j * position[0, 0][:, None] * frequency[None])[None, None]
  np.testing.assert_allclose(y, np.concatenate([z.real, z.imag], -1), atol=1e-5)
