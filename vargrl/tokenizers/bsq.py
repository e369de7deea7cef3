"""Infinity's bitwise tokenizer (https://arxiv.org/abs/2412.04431): binary spherical codes
(https://arxiv.org/abs/2406.07548) of a residual, scale by scale.

Tokens of all scales are concatenated coarse to fine, e bits each, int32 t_BLe. A scale's codes, +-1
/ sqrt(C) in each channel, are brought to the latent grid by bilinear resampling and summed."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vargrl.io import numbers
from vargrl.models import schedules
from vargrl.models.layers.norms import l2_normalize
from vargrl.models.layers.stack import DTYPES
from vargrl.tokenizers import autoencoder, multiscale
from vargrl.tokenizers.resize import area, bilinear, resize
from vargrl.types import TorchLayout, bounds, offsets, sides

CONDITIONAL = False  # decode needs nothing but tokens
HUB = 'FoundationVision/Infinity'  # where the published files are, on huggingface.co


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the networks and of the codes. channels: C, bits of a latent. width, mults, blocks: of
  the convolutional encoder and decoder, channels at the finest level, their multiples at each, and
  residual blocks of each. dtype: of their products. Raises ValueError for what does not fit."""

  channels: int = 32
  width: int = 128
  mults: tuple[int, ...] = (1, 2, 4, 4, 4)
  blocks: int = 2
  scales: tuple | str = (
    '1M'  # of tokens; or '0.25M 1.333' (height / width), see models/schedules.py
  )
  patch: int = 1  # a token is so many places of the latent grid, squared
  commitment: float = 0.25  # weights of the two terms of the loss
  entropy: float = 0.1
  scale_dropout: float = 0.0  # share of the scales that training leaves out, never the last
  dtype: str = 'float32'

  def __post_init__(self):
    object.__setattr__(self, 'scales', schedules.scales(self.scales))
    if self.width % 32:
      raise ValueError(f'tokenizer.width: {self.width}, expected a multiple of 32')
    if self.dtype not in DTYPES:
      raise ValueError(f'tokenizer.dtype: {self.dtype!r}, expected one of {DTYPES}')
    numbers.check_number('tokenizer.scale_dropout', self.scale_dropout, least=0, below=1)

  @property
  def bits(self):
    return self.channels * self.patch**2  # of a token

  @property
  def grid(self):
    return self.latent(len(self.scales) - 1)

  @property
  def image_size(self):
    y, x = (n * 2 ** (len(self.mults) - 1) for n in self.grid)
    return y if y == x else (y, x)

  @property
  def length(self):
    return self.offsets[-1]

  @property
  def offsets(self):
    return offsets(self.scales)

  def latent(self, i):
    """(h, w) of scale i in latents."""
    return tuple(self.patch * n for n in sides(self.scales[i]))


# https://github.com/FoundationVision/Infinity. The released ones do not depend on the schedule. The
# last four are for a laptop: images of 32 and 64 pixels, and of 8 x 8 or 16 x 8.
SIZES = {
  'd16': Config(16),
  'd24': Config(24),
  'd32': Config(32),
  'd64': Config(64),
  'd56': Config(14, mults=(1, 2, 4, 4), patch=2),  # of the 8B model
  'small': Config(16, 64, (1, 2, 2), 1, (1, 2, 3, 4, 6, 8)),
  'small-64': Config(16, 64, (1, 2, 2), 1, (1, 2, 4, 6, 8, 12, 16)),
  'smoke': Config(4, 32, (1, 1), 1, (1, 2, (4, 2))),
  'smoke-square': Config(4, 32, (1, 1), 1, (1, 2, 4)),
}


def to_patches(x_BhwC, p):
  """[B, p h, p w, C] -> [B, h w, C p p], the channel slowest, then rows."""
  B, h, w, C = x_BhwC.shape
  return (
    x_BhwC.reshape(B, h // p, p, w // p, p, C).transpose(0, 1, 3, 5, 2, 4).reshape(B, -1, C * p * p)
  )


def from_patches(x_BLe, side, p):
  """The inverse; side: (h, w)."""
  B, _, e = x_BLe.shape
  h, w = side
  return (
    x_BLe.reshape(B, h, w, e // p**2, p, p).transpose(0, 1, 4, 2, 5, 3).reshape(B, p * h, p * w, -1)
  )


def entropies(u_BhwC):
  """(entropy of a place's bits in nats, summed over them, mean over places [B]; how often each bit
  is 1, mean over places [B, C]), both of soft bits.

  As in BitVAE: the logit of a bit is 400 u / sqrt(C), and logarithms are of 1e-8 at least."""
  p_BhwC = jax.nn.sigmoid(400 / math.sqrt(u_BhwC.shape[-1]) * u_BhwC)
  return entropy(p_BhwC).sum(-1).mean((1, 2)), p_BhwC.mean((1, 2))


def entropy(p):
  """Entropy in nats of a bit that is 1 with probability p."""
  # Not 1 - p + 1e-8, which a compiler takes for 1 + 1e-8 - p, and that is 0 at p = 1.
  return -sum(q * jnp.log(jnp.maximum(q, 1e-8)) for q in (p, 1 - p))


class Model(nn.Module):
  c: Config

  def setup(self):
    c = self.c
    self.encoder = autoencoder.Encoder(c.width, c.mults, c.blocks, c.channels, attention=False)
    self.decoder = autoencoder.Decoder(c.width, c.mults, c.blocks, attention=False)

  def __call__(self, image_Byxc):
    """Without the quantizer: an image of any size."""
    return self.decode_latent(self.features(image_Byxc))

  def features(self, image_Byxc):
    """The quantizer's input f_BhwC, float32."""
    return self.encoder(image_Byxc.astype(self.c.dtype)).astype(jnp.float32)

  def resample(self, z_BhwC, before, after, how):
    """z_BhwC of one grid (h, w) on another. how: a function of tokenizers/resize.py."""
    if before == after:
      return z_BhwC
    return resize(z_BhwC, *(how(n, m) for n, m in zip(before, after)))

  def downsample(self, residual_BhwC, i):
    """The residual on the grid of scale i, whose signs are its bits."""
    return self.resample(residual_BhwC, self.c.grid, self.c.latent(i), area)

  def upsample(self, h_BhwC, i):
    """Codes of scale i on the latent grid, z_BhwC."""
    return self.resample(h_BhwC, self.c.latent(i), self.c.grid, bilinear)

  def scale_latent(self, t_BLe, i):
    """What the tokens of scale i add to the latent, z_BhwC."""
    codes_BLe = (2 * t_BLe.astype(jnp.float32) - 1) / math.sqrt(self.c.channels)
    return self.upsample(from_patches(codes_BLe, sides(self.c.scales[i]), self.c.patch), i)

  def quantize(self, f_BhwC, flips_BLe=None):
    """f -> (t_BLe, z_BhwC). flips: 1 where a bit is flipped before its code is added to the latent;
    t_BLe has the bits before that. Finer scales then learn to correct it: bitwise self-correction.
    """
    z, tokens = jnp.zeros_like(f_BhwC), []
    for i, (a, b) in enumerate(bounds(self.c.scales)):
      t_BLe = to_patches((self.downsample(f_BhwC - z, i) > 0).astype(jnp.int32), self.c.patch)
      tokens.append(t_BLe)
      z = z + self.scale_latent(t_BLe if flips_BLe is None else t_BLe ^ flips_BLe[:, a:b], i)
    return jnp.concatenate(tokens, 1), z

  def encode(self, image_Byxc):
    """image_Byxc in [-1, 1] -> t_BLe."""
    return self.quantize(self.features(image_Byxc))[0]

  def encode_with_flips(self, image_Byxc, flips_BLe):
    """(t_BLe that a model learns to predict, the flipped t_BLe that it reads)."""
    t_BLe = self.quantize(self.features(image_Byxc), flips_BLe)[0]
    return t_BLe, t_BLe ^ flips_BLe

  def embed(self, t_BLe):
    """Teacher-forcing inputs of tokens 1 .. L-1, [B, L-1, e]: what `step` returns, for all scales.
    t_BLe may be the tokens of the first few scales alone."""
    z_BhwC = self.zeros(len(t_BLe))
    return multiscale.teacher_inputs(self.step, z_BhwC, t_BLe, self.c.scales, self.c.bits)

  def zeros(self, batch):
    return jnp.zeros((batch, *self.c.grid, self.c.channels))

  def step(self, z_BhwC, t_BLe, i):
    """(z_BhwC with the tokens of scale i, the inputs of scale i + 1, None after the last)."""
    z_BhwC = z_BhwC + self.scale_latent(t_BLe, i)
    if i + 1 == len(self.c.scales):
      return z_BhwC, None
    # Bilinear where the residual's is area, and without antialias: what the released models were
    # trained with.
    return z_BhwC, to_patches(
      self.resample(z_BhwC, self.c.grid, self.c.latent(i + 1), bilinear), self.c.patch
    )

  def decode_latent(self, z_BhwC):
    """z_BhwC -> image_Byxc, not clamped (training needs the gradient beyond [-1, 1])."""
    return self.decoder(z_BhwC.astype(self.c.dtype)).astype(jnp.float32)

  def decode(self, t_BLe):
    """t_BLe -> image_Byxc in [-1, 1]."""
    z_BhwC = multiscale.latent(self.scale_latent, t_BLe, self.c.scales)
    return jnp.clip(self.decode_latent(z_BhwC), -1, 1)

  def reconstruct(self, image_Byxc, keep_Bs=None):
    """(image_Byxc not clamped, loss_B of the quantizer, t_BLe), straight-through, each residual
    with its gradient.

    keep_Bs: 1 for the scales that an image has, 0 for others; None: all. The loss is the mean over
    an image's scales of commitment |u - sg(code)|^2, u the normalized residual, plus entropy / 100
    times (the entropy of a place's bits, minus that of the batch's mean bits): each bit should be
    sure, and be 1 as often as 0."""
    c, residual, stop = self.c, self.features(image_Byxc), jax.lax.stop_gradient
    keep_Bs = jnp.ones((len(residual), len(c.scales))) if keep_Bs is None else keep_Bs
    z, tokens, losses = jnp.zeros_like(residual), [], []
    for i in range(len(c.scales)):
      u = l2_normalize(small := self.downsample(residual, i))
      code, keep_B = jnp.where(small > 0, 1.0, -1.0) / math.sqrt(c.channels), keep_Bs[:, i]
      h = self.upsample(u + stop(code - u), i) * keep_B[:, None, None, None]
      z, residual = z + h, residual - h
      tokens.append(to_patches((small > 0).astype(jnp.int32), c.patch))
      place_B, p_BC = entropies(u)
      p_C = (p_BC * keep_B[:, None]).sum(0) / jnp.maximum(keep_B.sum(), 1)
      commitment_B = ((u - stop(code)) ** 2).mean((1, 2, 3))
      losses.append(
        keep_B * (c.commitment * commitment_B + c.entropy / 100 * (place_B - entropy(p_C).sum()))
      )
    return self.decode_latent(z), sum(losses) / keep_Bs.sum(1), jnp.concatenate(tokens, 1)


def sample_scale_dropout(c, rng, batch):
  """keep_Bs of `reconstruct`, or None where c.scale_dropout is 0."""
  if not c.scale_dropout:
    return None
  keep_Bs = jax.random.uniform(rng, (batch, len(c.scales))) >= c.scale_dropout
  return keep_Bs.at[:, -1].set(True).astype(jnp.float32)


def init(model, key):
  """Boxed parameters (each knows its letters)."""
  size = 2 ** (len(model.c.mults) - 1)
  return model.init(key, jnp.zeros((1, size, size, 3)))['params']


def torch_layouts(c):
  """The official file, whose weights lie under 'vae', in both spellings that its loader knows; and
  those within the folder of VARGPT-v1.1. See types.TorchLayout.

  The masks are powers of two that nothing is learned in, and that 64 bits have no room for:
  whatever they hold is ignored."""
  mask = np.left_shift(np.int64(1), np.arange(c.channels - 1, -1, -1, dtype=np.int64))
  constants = {f'{name}.lfq.mask': mask for name in ('quantizer', 'quantize')}
  tables = {
    inner: autoencoder.torch_table(c.mults, c.blocks, attend=False, inner=inner)
    for inner in (True, False)
  }
  alone = tuple(
    TorchLayout(table, constants, ignored=tuple(constants), nested_at=('vae',))
    for table in tables.values()
  )
  inside = {
    ours: (f'vae_local.{theirs}', pattern) for ours, (theirs, pattern) in tables[True].items()
  }
  masks = {'vae_local.quantizer.lfq.mask': mask}
  return *alone, TorchLayout(inside, masks, ignored=(r'(?!vae_local\.).*', *masks))
