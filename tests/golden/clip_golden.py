"""Small CLIPs whose weights and inputs follow from a rule; their results are in clip.npz
(clip_reference.py).
"""

import re

import fill
import numpy as np

SHAPE = dict(
  image_width=64,
  image_layers=3,
  image_heads=4,
  text_width=48,
  text_layers=3,
  text_heads=3,
  embed=24,
  patch=14,
  image_size=28,
  vocab=600,
)
CONFIGS = {
  'l': SHAPE | {'act': 'quick_gelu'},
  'h': SHAPE | {'act': 'gelu', 'image_width': 80, 'text_width': 64, 'text_heads': 4, 'embed': 32},
}
HEAD = 'aesthetic_v2_sac_logos_ava1_l14_linearMSE.pth'


def weight(key, shape):
  """Those of fill.py; it does not know open_clip's names of norms, nor scalars."""
  if key == 'logit_scale':
    return np.array(3.25, np.float32)
  value = fill.fill(key, shape)
  if re.search(r'(^|\.)ln_\w+\.weight$', key):
    value += 1
  if re.search(r'(position|positional)_embedding|class_embedding|token_embedding', key):
    value *= 4
  return value.astype(np.float32)


def inputs(c):
  """(normalised images [2, y, x, 3] float32, ids [4, 77] int32 padded with zeros, or with more
  ends).
  """
  images = np.stack([fill.image(seed, c['image_size']).transpose(1, 2, 0) for seed in (1, 2)])
  rng, ids = np.random.default_rng(3), np.zeros((4, 77), np.int32)
  for row, length in zip(ids, (2, 9, 40, 77)):
    row[:length] = [c['vocab'] - 2, *rng.integers(0, c['vocab'] - 2, length - 2), c['vocab'] - 1]
  ids[1, 9:] = c['vocab'] - 1
  return 2 * images, ids


def embeddings():
  """Unit vectors [16, 768] float32."""
  x = np.random.default_rng(5).standard_normal((16, 768))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
