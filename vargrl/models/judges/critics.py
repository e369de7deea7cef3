"""Judges of pixels: the adversarial PatchGAN and the perceptual distance of frozen features."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vargrl.models.layers.einsum import Conv
from vargrl.models.layers.norms import GroupNorm


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of a PatchGAN. width: channels of the first layer, doubled at each level up to 8 times.
  levels: after the first layer; all but the last halve the image. image_size: pixels a side."""

  width: int
  levels: int
  image_size: int


SIZES = {
  'patch': Config(64, 3, 256),  # the 70x70 discriminator of https://arxiv.org/abs/1611.07004
  'digits': Config(32, 1, 8),
  'smoke': Config(32, 1, 8),
}


class Model(nn.Module):
  """image_Byxc -> a map of logits [B, h, w, 1], higher where a patch looks real."""

  c: Config

  @nn.compact
  def __call__(self, x):
    leaky = lambda x: jax.nn.leaky_relu(x, 0.2)
    x = leaky(Conv(self.c.width, size=4, stride=2, name='conv_in')(x))
    for level in range(1, self.c.levels + 1):
      stride = 2 if level < self.c.levels else 1
      x = Conv(
        self.c.width * min(2**level, 8), size=4, stride=stride, pad=(1, 2), name=f'conv_{level}'
      )(x)
      x = leaky(GroupNorm(name=f'norm_{level}')(x))
    return Conv(1, size=4, pad=(1, 2), name='conv_out')(x)


def init(model, key):
  """Boxed parameters (each knows its letters)."""
  size = model.c.image_size
  return model.init(key, jnp.zeros((1, size, size, 3)))['params']


def perceptual(features_a, features_b):
  """distance_B of two lists of activations: LPIPS (https://arxiv.org/abs/1801.03924) with equal
  weights.
  """

  def unit(x):
    return x * jax.lax.rsqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-10)

  return sum(
    jnp.sum((unit(a) - unit(b)) ** 2, -1).mean((1, 2)) for a, b in zip(features_a, features_b)
  )
