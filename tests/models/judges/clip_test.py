"""CLIP against numbers of transformers and open_clip (tests/golden/clip_reference.py), through both
layouts.
"""

import functools
import json
import pathlib
import re

import clip_golden
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.checkpoint import torch_format
from vargrl.models.judges import clip

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'
LAYOUTS = ('hf', 'open_clip')


@functools.lru_cache(None)
def stored():
  return json.loads((GOLDEN / 'clip.json').read_text()), dict(np.load(GOLDEN / 'clip.npz'))


def shapes(c):
  model = clip.Model(c)
  return nn.unbox(jax.eval_shape(lambda key: clip.init(model, key), jax.random.key(0)))


def loaded(arch, layout, state=None):
  c = clip.Config(**clip_golden.CONFIGS[arch])
  if state is None:
    state = {
      k: clip_golden.weight(k, shape)
      for k, shape in stored()[0]['keys'][f'{arch}_{layout}'].items()
    }
  return c, torch_format.from_state_dict(
    clip.torch_layouts(c)[LAYOUTS.index(layout)].table, state, shapes(c)
  )


@functools.lru_cache(None)
def both(c):
  return jax.jit(lambda params, image, ids: clip.Model(c).apply({'params': params}, image, ids))


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('arch', sorted(clip_golden.CONFIGS))
def test_embeddings_are_those_of_transformers_and_open_clip(arch, layout):
  c, params = loaded(arch, layout)
  image, ids = clip_golden.inputs(clip_golden.CONFIGS[arch])
  image_BE, text_BE, logit_scale = both(c)(params, image, ids)
  arrays = stored()[1]
  for name, ours in (('image', image_BE), ('text', text_BE), ('logit_scale', logit_scale)):
    theirs = arrays[f'{arch}_{layout}_{name}']
    assert ours.dtype == jnp.float32 and ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4, err_msg=name)
  assert abs(arrays[f'{arch}_{layout}_image']).mean() > 0.1


def test_what_follows_the_end_of_a_text_is_not_seen_nor_how_long_it_is():
  c, params = loaded('l', 'hf')
  ids = clip_golden.inputs(clip_golden.CONFIGS['l'])[1][:2]
  text = jax.jit(lambda params, ids: clip.Text(c).apply({'params': params}, ids))
  e_BE = text(params['text'], ids)
  after = np.where(np.arange(77)[None] > np.argmax(ids == c.end, 1)[:, None], 7, ids)
  np.testing.assert_array_equal(text(params['text'], after), e_BE)
  np.testing.assert_allclose(text(params['text'], ids[:, :9]), e_BE, atol=2e-6)


@pytest.mark.parametrize(
  'size,count,tensors',
  [('l14', 427_616_513, 590), ('h14', 986_109_441, 910), ('b32', 151_277_313, 398)],
)
def test_published_sizes_have_the_published_number_of_parameters_and_tensors(size, count, tensors):
  c = clip.SIZES[size]
  tree = shapes(c)
  assert sum(np.prod(x.shape, dtype=int) for x in jax.tree.leaves(tree)) == count
  flat = {
    jax.tree_util.keystr(k, simple=True, separator='/'): x
    for k, x in jax.tree_util.tree_leaves_with_path(tree)
  }
  rows = [list(torch_format.entries(layout.table, flat)) for layout in clip.torch_layouts(c)]
  assert len({key for _, _, key, _ in rows[0]}) == tensors
  for layout in rows:  # every parameter in exactly one row, but for the layers
    found = [name for names, layer, _, _ in layout if not layer for name in names]
    assert sorted(found) == sorted(flat)


def test_export_of_import_is_the_state_dict_bit_for_bit():
  for layout in LAYOUTS:
    state = {k: clip_golden.weight(k, s) for k, s in stored()[0]['keys'][f'h_{layout}'].items()}
    c, params = loaded('h', layout, state)
    out = torch_format.to_state_dict(clip.torch_layouts(c)[LAYOUTS.index(layout)].table, params, {})
    assert out.keys() == state.keys()
    for key, value in state.items():
      np.testing.assert_array_equal(out[key], value, err_msg=key)


def test_buffers_of_older_files_are_ignored():
  hf, openai = (layout.ignored[0] for layout in clip.torch_layouts(clip.SIZES['smoke']))
  assert re.fullmatch(hf, 'text_model.embeddings.position_ids')
  assert all(
    re.fullmatch(openai, key)
    for key in ('attn_mask', 'input_resolution', 'context_length', 'vocab_size')
  )
  keys = [k for keys in stored()[0]['keys'].values() for k in keys]
  assert not any(re.fullmatch(p, k) for p in (hf, openai) for k in keys)


def test_products_in_bfloat16_move_cosines_by_less_than_a_group_differs():
  c, params = loaded('l', 'hf')
  image = np.random.default_rng(0).standard_normal((16, 28, 28, 3)).astype(np.float32)
  embedded = lambda dtype: np.asarray(
    jax.jit(
      lambda p, x: clip.Image(clip.Config(**{**vars(c), 'dtype': dtype})).apply({'params': p}, x)
    )(params['image'], image)
  )
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  a, b = unit(embedded('float32')), unit(embedded('bfloat16'))
  assert embedded('bfloat16').dtype == np.float32
  assert 1 - (a * b).sum(-1).min() < 1e-4


@pytest.mark.parametrize(
  'change,message',
  [
    ({'image_heads': 5}, 'image width 32, expected a multiple of 5'),
    ({'patch': 5}, 'image size 14, expected a multiple of the patch, 5'),
    ({'act': 'relu'}, "act 'relu', expected one of"),
    ({'dtype': 'int8'}, "dtype: 'int8'"),
  ],
)
def test_a_size_that_cannot_be_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    clip.Config(**{**vars(clip.SIZES['smoke']), **change})
