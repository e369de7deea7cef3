"""BLIP and ImageReward's head against transformers' BLIP at small width
(tests/golden/make_blip.py).
"""

import math
import pathlib
import re

import blip_rule as rule
from flax import traverse_util
import flax.linen as nn
import jax
import numpy as np

from vargrl.checkpoint import torch_format
from vargrl.models.judges import blip

GOLDEN = np.load(pathlib.Path(__file__).parents[2] / 'golden' / 'blip.npz')
C = blip.Config(**rule.SIZES)


def shapes(c):
  return nn.unbox(jax.eval_shape(lambda: blip.init(blip.Model(c), jax.random.key(0))))


def their_shapes(layout, found):
  """{their key: shape}, by the table."""
  out, flat = {}, traverse_util.flatten_dict(found, sep='/')
  for names, layer, key, pattern in torch_format.entries(layout.table, flat):
    left, right = pattern.split('->')
    shape = flat[names[0]].shape[layer is not None :]
    size = dict(zip(right.split(), shape if len(names) == 1 else (len(names), *shape))) | {'1': 1}
    groups = re.findall(r'\(([^)]*)\)|(\S+)', left)
    out[key] = tuple(math.prod(size[a] for a in (many or one).split()) for many, one in groups)
  return out


def test_the_reference_is_reached_through_the_layout_of_imagereward():
  [layout] = blip.torch_layouts(C)
  theirs = their_shapes(layout, shapes(C))
  assert set(theirs) == set(GOLDEN['keys'])
  params = torch_format.from_state_dict(
    layout.table, {k: rule.weights(k, s) for k, s in theirs.items()}, shapes(C)
  )
  image_Byxc, t_BL, mask_BL = rule.inputs()

  @jax.jit
  def run(params, image_Byxc, t_BL, mask_BL):
    part = lambda module, name, *x: module.apply({'params': params[name]}, *x)
    image_BSD = part(blip.Image(C), 'image', image_Byxc)
    x_BD = part(blip.Text(C), 'text', t_BL, mask_BL, image_BSD)
    other_BD = part(blip.Text(C), 'text', t_BL + ~mask_BL * 7, mask_BL, image_BSD)
    return image_BSD, x_BD, other_BD, part(blip.Head(), 'head', x_BD)

  image_BSD, x_BD, other_BD, r_B = run(params, image_Byxc, t_BL, mask_BL)
  np.testing.assert_allclose(image_BSD[:, ::3], GOLDEN['image'], atol=1e-4)
  np.testing.assert_allclose(x_BD, GOLDEN['state'], atol=1e-4)
  np.testing.assert_array_equal(other_BD, x_BD)  # padding is not seen
  np.testing.assert_allclose(
    (r_B - 0.16717362830052426) / 1.0333394966054072, GOLDEN['reward'], atol=1e-4, rtol=1e-5
  )


def test_the_published_size_has_the_published_shapes():
  c = blip.SIZES['large']
  [layout] = blip.torch_layouts(c)
  theirs = their_shapes(layout, shapes(c))
  assert theirs['blip.visual_encoder.blocks.23.attn.qkv.weight'] == (3072, 1024)
  assert theirs['blip.visual_encoder.pos_embed'] == (1, 197, 1024)
  assert theirs['blip.text_encoder.encoder.layer.11.crossattention.self.key.weight'] == (768, 1024)
  assert theirs['blip.text_encoder.embeddings.word_embeddings.weight'] == (30524, 768)
  assert theirs['mlp.layers.0.weight'] == (1024, 768)
  count = lambda start: sum(math.prod(s) for k, s in theirs.items() if k.startswith(start))
  assert count('blip.visual_encoder.') == 303_301_632  # timm's ViT-L/16 at 224 without its classes
  assert len(theirs) == 4 + 2 + 24 * 12 + 2 + 2 + 12 * 26 + 10
