"""A plain convolutional classifier: a frozen reward on small images, and VGG16 (for LPIPS)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vargrl.models.layers.einsum import Conv, Einsum


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes. image_size: pixels a side. shift, scale: of colours in [-1, 1], (x - shift) / scale."""

  stages: tuple[tuple[int, int], ...]  # (channels, convolutions), a 2x2 max pool between stages
  classes: int
  image_size: int
  shift: tuple[float, ...] = (0.0, 0.0, 0.0)
  scale: tuple[float, ...] = (1.0, 1.0, 1.0)


SIZES = {
  # https://arxiv.org/abs/1409.1556, inputs scaled as in
  # https://github.com/richzhang/PerceptualSimilarity
  'vgg16': Config(
    ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
    1000,
    224,
    (-0.030, -0.088, -0.188),
    (0.458, 0.448, 0.450),
  ),
  'digits': Config(((32, 2), (64, 2)), 10, 8),
  'smoke': Config(((8, 1), (8, 1)), 10, 8),
}


class Model(nn.Module):
  """image_Byxc in [-1, 1] -> logits_BV."""

  c: Config

  @nn.compact
  def __call__(self, image_Byxc):
    x_BD = self.features(image_Byxc)[-1].mean((1, 2))
    return Einsum('BD,DV->BV', (x_BD.shape[-1], self.c.classes), bias='V', name='head')(x_BD)

  @nn.compact
  def features(self, image_Byxc):
    """image_Byxc in [-1, 1] -> the activations at the end of each stage."""
    shift_111c, scale_111c = (jnp.array(v)[None, None, None] for v in (self.c.shift, self.c.scale))
    x, out = (image_Byxc - shift_111c) / scale_111c, []
    for stage, (features, count) in enumerate(self.c.stages):
      if stage:
        x = nn.max_pool(x, (2, 2), (2, 2))
      for i in range(count):
        x = jax.nn.relu(Conv(features, name=f'conv_{stage}_{i}')(x))
      out.append(x)
    return out


def init(model, key):
  """Boxed parameters (each knows its letters)."""
  size = model.c.image_size
  return model.init(key, jnp.zeros((1, size, size, 3)))['params']
