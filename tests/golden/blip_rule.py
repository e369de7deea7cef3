"""The weights and inputs that tests/golden/blip.npz was computed with (NumPy only); keys are
ImageReward's.
"""

import fill
import numpy as np

# Three layers, and widths that no other number equals.
SIZES = dict(
  image_width=48,
  image_layers=3,
  image_heads=3,
  text_width=32,
  text_layers=3,
  text_heads=2,
  patch=7,
  image_size=28,
  vocab=96,
  positions=40,
)
LENGTHS = (9, 5, 35)  # of the prompts, of 35 tokens


def weights(key, shape):
  """float32 array of the checkpoint key."""
  if 'LayerNorm.weight' in key:
    return 1 + 0.1 * fill.fill(key + '.', (*shape, 1))[..., 0]
  if key.endswith(('cls_token', 'pos_embed', 'embeddings.weight')):
    return 0.5 * fill.fill(key, (*shape, 1))[..., 0]
  gain = (
    3 if '.query' in key or '.key' in key else 1.5 if key.startswith('mlp.') else 1
  )  # no flat attention
  return (gain * fill.fill(key, shape)).astype(np.float32)


def inputs():
  """(image_Byxc float32 as after normalisation, t_BL int32, mask_BL bool)."""
  rng = np.random.default_rng(3)
  image_Byxc = rng.standard_normal(
    (len(LENGTHS), SIZES['image_size'], SIZES['image_size'], 3)
  ).astype(np.float32)
  t_BL = rng.integers(1, SIZES['vocab'], (len(LENGTHS), 35)).astype(np.int32)
  mask_BL = np.arange(35)[None] < np.array(LENGTHS)[:, None]
  return image_Byxc, t_BL * mask_BL, mask_BL
