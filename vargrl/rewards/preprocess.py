"""Pictures as reward networks were trained to see them; on the device, equal to PIL up to a grey
level.
"""

import jax
import jax.numpy as jnp

from vargrl.data.image import MEAN, STD

HOW = ('pil', 'float')


def to_grey_levels(image_Byxc):
  """[-1, 1] -> float32 whole numbers 0 .. 255, rounded: all published scores are of 8-bit
  pictures.
  """
  return jnp.clip(jnp.round((image_Byxc.astype(jnp.float32) + 1) / 2 * 255), 0, 255)


def clip_input(image_Byxc, size, *, how):
  """[-1, 1] -> the shortest edge `size` pixels, the centre of it, normalised: [B, size, size, 3]
  float32.

  how: 'pil' rounds after each of the resize's two passes, as PIL does; 'float' resizes without
  rounding, as HPSv2 does, and may leave [0, 1] a little. Resizing is bicubic with antialias: jax's
  kernel is PIL's."""
  if how not in HOW:
    raise ValueError(f'preprocessing: {how!r} found, expected one of {HOW}')
  x_Byxc = to_grey_levels(image_Byxc)
  y, x = x_Byxc.shape[1:3]
  tall, wide = size * y // min(y, x), size * x // min(y, x)
  whole = lambda v: jnp.clip(jnp.floor(v + 0.5), 0, 255) if how == 'pil' else v
  x_Byxc = whole(resize(x_Byxc, y, wide))  # PIL's order: first along x
  x_Byxc = whole(resize(x_Byxc, tall, wide))
  top, left = round((tall - size) / 2), round((wide - size) / 2)
  x_Byxc = x_Byxc[:, top : top + size, left : left + size]
  return (x_Byxc / 255 - jnp.array(MEAN)[None, None, None]) / jnp.array(STD)[None, None, None]


def resize(x_Byxc, y, x):
  B, _, _, c = x_Byxc.shape
  return jax.image.resize(x_Byxc, (B, y, x, c), 'cubic', antialias=True)
