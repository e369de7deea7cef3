"""Inception-v3 of 2015-12-05, whose features FID, IS, precision and recall are defined by.

Architecture: https://arxiv.org/abs/1512.00567, as in the TensorFlow graph that the field compares
with and its PyTorch ports, https://github.com/mseitzer/pytorch-fid and
https://github.com/toshas/torch-fidelity (one key layout). It differs from torchvision's in its
average pools, which leave padding out, in the last block, which takes a maximum instead, and in
having 1008 outputs."""

import dataclasses
from functools import partial

from flax import traverse_util
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vargrl.models.layers.einsum import with_axes
from vargrl.types import TorchLayout

EPS = 1e-3  # of the batch norms
FULL = jax.lax.Precision.HIGHEST  # of products: accelerators' default moves FID in the second digit


@dataclasses.dataclass(frozen=True)
class Config:
  divisor: int = 1  # of all widths
  image_size: int = 299
  classes: int = 1008

  @property
  def features(self):
    return 2048 // self.divisor


SIZES = {'fid': Config(), 'smoke': Config(divisor=16, image_size=75)}


class ConvNorm(nn.Module):
  """Convolution without bias, batch norm by stored moments, relu."""

  features: int
  kernel: tuple[int, int]
  stride: int
  pad: tuple[int, int]

  @nn.compact
  def __call__(self, x_Byxc):
    he = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal', (0, 1, 2), 3)
    w = self.param('w', with_axes(he, 'yxcD'), (*self.kernel, x_Byxc.shape[-1], self.features))
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    scale, bias, mean, var = (
      self.param(name, with_axes(init, 'D'), (self.features,))
      for name, init in (('scale', ones), ('bias', zeros), ('mean', zeros), ('var', ones))
    )
    y, x = self.pad
    x_Byxc = jax.lax.conv_general_dilated(
      x_Byxc,
      w,
      (self.stride,) * 2,
      ((y, y), (x, x)),
      precision=FULL,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    gain = scale * jax.lax.rsqrt(var + EPS)
    return jax.nn.relu(x_Byxc * gain[None, None, None] + (bias - mean * gain)[None, None, None])


class Model(nn.Module):
  """Pixels [B, y, x, 3], uint8 or floats in 0 .. 255 -> (pool_BD, logits_BV), float32."""

  c: Config

  @nn.compact
  def __call__(self, pixels_Byxc):
    conv, c = self.conv, self.c
    x = (corner_bilinear(pixels_Byxc, c.image_size) - 128) / 128
    x = conv(x, 'Conv2d_1a_3x3', 32, 3, stride=2, pad=0)
    x = conv(x, 'Conv2d_2a_3x3', 32, 3, pad=0)
    x = conv(x, 'Conv2d_2b_3x3', 64, 3)
    x = conv(max_pool_half(x), 'Conv2d_3b_1x1', 80, 1)
    x = conv(x, 'Conv2d_4a_3x3', 192, 3, pad=0)
    x = max_pool_half(x)
    for name, pooled in (('5b', 32), ('5c', 64), ('5d', 64)):
      x = self.fine(x, f'Mixed_{name}', pooled)
    x = self.fine_to_middle(x, 'Mixed_6a')
    for name, inner in (('6b', 128), ('6c', 160), ('6d', 160), ('6e', 192)):
      x = self.middle(x, f'Mixed_{name}', inner)
    x = self.middle_to_coarse(x, 'Mixed_7a')
    x = self.coarse(x, 'Mixed_7b', mean_pool)
    x = self.coarse(
      x, 'Mixed_7c', partial(nn.max_pool, window_shape=(3, 3), padding=((1, 1), (1, 1)))
    )
    pool_BD = x.mean((1, 2))
    head = nn.initializers.normal(c.features**-0.5)
    w_DV = self.param('fc.w', with_axes(head, 'DV'), (c.features, c.classes))
    b_V = self.param('fc.b', with_axes(nn.initializers.zeros, 'V'), (c.classes,))
    return pool_BD, jnp.einsum('BD,DV->BV', pool_BD, w_DV, precision=FULL) + b_V[None]

  def conv(self, x, name, features, kernel, *, stride=1, pad=None):
    """pad None: as much as keeps the size."""
    kernel = (kernel,) * 2 if isinstance(kernel, int) else kernel
    pad = tuple(k // 2 for k in kernel) if pad is None else (pad,) * 2
    return ConvNorm(features // self.c.divisor, kernel, stride, pad, name=name)(x)

  def chain(self, x, block, *convs):
    """One branch: convolutions (name, features, kernel) after each other."""
    for name, features, kernel in convs:
      x = self.conv(x, f'{block}.{name}', features, kernel)
    return x

  def fine(self, x, block, pooled):
    chain = lambda x, *convs: self.chain(x, block, *convs)
    return concat(
      chain(x, ('branch1x1', 64, 1)),
      chain(x, ('branch5x5_1', 48, 1), ('branch5x5_2', 64, 5)),
      chain(x, ('branch3x3dbl_1', 64, 1), ('branch3x3dbl_2', 96, 3), ('branch3x3dbl_3', 96, 3)),
      chain(mean_pool(x), ('branch_pool', pooled, 1)),
    )

  def fine_to_middle(self, x, block):
    conv = partial(self.conv, stride=2, pad=0)
    y = self.chain(x, block, ('branch3x3dbl_1', 64, 1), ('branch3x3dbl_2', 96, 3))
    return concat(
      conv(x, f'{block}.branch3x3', 384, 3),
      conv(y, f'{block}.branch3x3dbl_3', 96, 3),
      max_pool_half(x),
    )

  def middle(self, x, block, inner):
    chain = lambda x, *convs: self.chain(x, block, *convs)
    wide, tall = (1, 7), (7, 1)
    return concat(
      chain(x, ('branch1x1', 192, 1)),
      chain(x, ('branch7x7_1', inner, 1), ('branch7x7_2', inner, wide), ('branch7x7_3', 192, tall)),
      chain(
        x,
        ('branch7x7dbl_1', inner, 1),
        ('branch7x7dbl_2', inner, tall),
        ('branch7x7dbl_3', inner, wide),
        ('branch7x7dbl_4', inner, tall),
        ('branch7x7dbl_5', 192, wide),
      ),
      chain(mean_pool(x), ('branch_pool', 192, 1)),
    )

  def middle_to_coarse(self, x, block):
    conv = partial(self.conv, stride=2, pad=0)
    a = self.chain(x, block, ('branch3x3_1', 192, 1))
    b = self.chain(
      x,
      block,
      ('branch7x7x3_1', 192, 1),
      ('branch7x7x3_2', 192, (1, 7)),
      ('branch7x7x3_3', 192, (7, 1)),
    )
    return concat(
      conv(a, f'{block}.branch3x3_2', 320, 3),
      conv(b, f'{block}.branch7x7x3_4', 192, 3),
      max_pool_half(x),
    )

  def coarse(self, x, block, pool):
    chain = lambda x, *convs: self.chain(x, block, *convs)
    split = lambda x, a, b: concat(chain(x, (a, 384, (1, 3))), chain(x, (b, 384, (3, 1))))
    return concat(
      chain(x, ('branch1x1', 320, 1)),
      split(chain(x, ('branch3x3_1', 384, 1)), 'branch3x3_2a', 'branch3x3_2b'),
      split(
        chain(x, ('branch3x3dbl_1', 448, 1), ('branch3x3dbl_2', 384, 3)),
        'branch3x3dbl_3a',
        'branch3x3dbl_3b',
      ),
      chain(pool(x), ('branch_pool', 192, 1)),
    )


def concat(*branches):
  """Branches beside each other in the channels."""
  return jnp.concatenate(branches, -1)


def max_pool_half(x):
  """The maximum of 3 x 3 pixels at every second place."""
  return nn.max_pool(x, (3, 3), (2, 2))


def mean_pool(x):
  """Means over 3 x 3 of the pixels that are there."""
  return nn.avg_pool(x, (3, 3), padding=((1, 1), (1, 1)), count_include_pad=False)


def corner_bilinear(x_Byxc, size):
  """TensorFlow 1's bilinear resize to a square, whose grids share the upper left corner of their
  first pixels.

  float32. Exact where the size stays. https://github.com/pytorch/pytorch/issues/10604
  """

  def matrix(n):
    # float32, as there: floor depends on it.
    at = np.arange(size, dtype=np.float32) * np.float32(n / size)
    low = at.astype(int)
    out = np.zeros((size, n), np.float32)
    np.add.at(out, (np.arange(size), low), 1 - (at - low))
    np.add.at(out, (np.arange(size), np.minimum(low + 1, n - 1)), at - low)
    return out

  _, height, width, _ = x_Byxc.shape
  x = jnp.einsum('Byxc,iy->Bixc', x_Byxc.astype(jnp.float32), matrix(height), precision=FULL)
  return jnp.einsum('Bixc,jx->Bijc', x, matrix(width), precision=FULL)


def init(model, key):
  """Boxed parameters (each knows its letters)."""
  return model.init(key, jnp.zeros((1, model.c.image_size, model.c.image_size, 3)))['params']


def torch_layouts(c):
  """The one layout of pt_inception-2015-12-05-6726825d.pth and
  weights-inception-2015-12-05-6726825d.pth.
  """
  shapes = traverse_util.flatten_dict(
    nn.unbox(jax.eval_shape(lambda key: init(Model(c), key), jax.random.key(0))), sep='/'
  )
  kinds = {
    'w': ('conv.weight', 'D c y x -> y x c D'),
    'scale': ('bn.weight', 'D -> D'),
    'bias': ('bn.bias', 'D -> D'),
    'mean': ('bn.running_mean', 'D -> D'),
    'var': ('bn.running_var', 'D -> D'),
    'fc.w': ('fc.weight', 'V D -> D V'),
    'fc.b': ('fc.bias', 'V -> V'),
  }
  table = {}
  for name in shapes:
    *block, kind = name.split('/')
    theirs, pattern = kinds[kind]
    table[name] = ('.'.join([*block, theirs]), pattern)
  return (TorchLayout(table, ignored=(r'.*\.num_batches_tracked',)),)
