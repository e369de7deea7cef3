"""VAR's multi-scale residual VQ tokenizer (https://arxiv.org/abs/2404.02905, section 3.2).

Tokens of all scales are concatenated coarse to fine, t_BL. A scale's codes are brought to the
latent grid by bicubic resampling, smoothed by one of a few shared residual convolutions (phi), and
summed."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vargrl.models.layers.einsum import Conv, with_axes
from vargrl.models.layers.stack import DTYPES
from vargrl.models.var import SCALES_256, SCALES_512
from vargrl.tokenizers import autoencoder, multiscale
from vargrl.tokenizers.resize import area, bicubic, resize
from vargrl.types import TorchLayout, offsets

CONDITIONAL = False  # decode needs nothing but tokens
HUB = 'FoundationVision/var'  # where the published files are, on huggingface.co


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of the networks and of the codebook. vocab: codes. channels: C, numbers of a code. width,
  mults, blocks: of the convolutional encoder and decoder, channels at the finest level, their
  multiples at each, and residual blocks of each. scales: sides of squares of tokens. commitment:
  weight of that term of the loss. dtype: of the networks' products. Raises ValueError for what does
  not fit."""

  vocab: int = 4096
  channels: int = 32
  width: int = 160
  mults: tuple[int, ...] = (1, 1, 2, 2, 4)
  blocks: int = 2
  scales: tuple[int, ...] = SCALES_256
  n_shared_convs: int = 4  # convolutions phi; each serves neighbouring scales
  residual: float = 0.5  # phi(h) = (1 - residual) h + residual conv(h)
  commitment: float = 0.25
  codebook_std: float = 0.0  # std of the codebook at init; 0: uniform in +-1 / vocab, as VQGAN
  dtype: str = 'float32'

  def __post_init__(self):
    if self.width % 32:
      raise ValueError(f'tokenizer.width: {self.width}, expected a multiple of 32')
    if self.dtype not in DTYPES:
      raise ValueError(f'tokenizer.dtype: {self.dtype!r}, expected one of {DTYPES}')

  @property
  def grid(self):
    return self.scales[-1]

  @property
  def image_size(self):
    return self.grid * 2 ** (len(self.mults) - 1)

  @property
  def length(self):
    return sum(s * s for s in self.scales)

  @property
  def offsets(self):
    return offsets(self.scales)


# https://github.com/FoundationVision/VAR: one tokenizer, two schedules. The others are for a
# laptop.
SIZES = {
  'var': Config(),
  'var-512': Config(scales=SCALES_512),
  'small': Config(width=32),
  'digits': Config(
    vocab=128, channels=8, width=32, mults=(1, 1), blocks=1, scales=(1, 2, 3, 4), codebook_std=0.1
  ),
  'smoke': Config(
    vocab=32, channels=4, width=32, mults=(1, 1), blocks=1, scales=(1, 2, 4), codebook_std=0.1
  ),
}


def phi_of_scale(count, n_shared_convs):
  """Which shared convolution each of `count` scales uses: the tick nearest to i / (count - 1).

  Some scales are ties in real arithmetic (2 and 7 of 10); float64 decides them, as in the original.
  """
  inset = 1 / 3 / n_shared_convs if n_shared_convs == 4 else 1 / 2 / n_shared_convs
  ticks = np.linspace(inset, 1 - inset, n_shared_convs)
  return [int(np.argmin(np.abs(ticks - i / (count - 1)))) if count > 1 else 0 for i in range(count)]


class Model(nn.Module):
  c: Config

  def setup(self):
    c = self.c
    self.encoder = autoencoder.Encoder(c.width, c.mults, c.blocks, c.channels)
    self.decoder = autoencoder.Decoder(c.width, c.mults, c.blocks)
    self.quant_conv, self.post_quant_conv = Conv(c.channels), Conv(c.channels)
    self.phi = [Conv(c.channels) for _ in range(c.n_shared_convs)]
    init = (
      nn.initializers.normal(c.codebook_std)
      if c.codebook_std
      else (
        lambda key, shape: jax.random.uniform(key, shape, minval=-1 / c.vocab, maxval=1 / c.vocab)
      )
    )
    self.codebook = self.param('codebook', with_axes(init, 'VC'), (c.vocab, c.channels))

  def __call__(self, image_Byxc):
    return self.reconstruct(image_Byxc)

  def features(self, image_Byxc):
    """The quantizer's input f_BhwC, float32."""
    return self.quant_conv(self.encoder(image_Byxc.astype(self.c.dtype))).astype(jnp.float32)

  def nearest(self, z_BLC):
    """Index of the nearest code, the lowest on a tie. Full precision: a flipped index moves all
    later residuals."""
    dots = jnp.einsum('BLC,VC->BLV', z_BLC, self.codebook, precision=jax.lax.Precision.HIGHEST)
    distance = (z_BLC**2).sum(-1, keepdims=True) + (self.codebook**2).sum(-1)[None, None] - 2 * dots
    return jnp.argmin(distance, -1).astype(jnp.int32)

  def scale_latent(self, t_BL, i):
    """What the tokens of scale i add to the latent, z_BhwC."""
    s, grid = self.c.scales[i], self.c.grid
    h = self.codebook[t_BL].reshape(-1, s, s, self.c.channels)
    if s != grid:
      h = resize(h, bicubic(s, grid))
    r = self.c.residual
    return h * (1 - r) + self.phi[phi_of_scale(len(self.c.scales), self.c.n_shared_convs)[i]](h) * r

  def quantize(self, f_BhwC):
    """f -> (t_BL, [cumulative z_BhwC after each scale]); gradients reach codebook and phi alone."""
    residual = jax.lax.stop_gradient(f_BhwC)
    z, tokens, steps = jnp.zeros_like(residual), [], []
    for i, s in enumerate(self.c.scales):
      small = residual if s == self.c.grid else resize(residual, area(self.c.grid, s))
      t_BL = self.nearest(small.reshape(len(small), s * s, -1))
      h = self.scale_latent(t_BL, i)
      z, residual = z + h, residual - jax.lax.stop_gradient(h)
      tokens.append(t_BL)
      steps.append(z)
    return jnp.concatenate(tokens, 1), steps

  def encode(self, image_Byxc):
    """image_Byxc in [-1, 1] -> t_BL."""
    return self.quantize(self.features(image_Byxc))[0]

  def embed(self, t_BL):
    """Teacher-forcing inputs of tokens 1 .. L-1, [B, L-1, C]: what `step` returns, for all scales.
    t_BL may be the tokens of the first few scales alone."""
    z_BhwC = self.zeros(len(t_BL))
    return multiscale.teacher_inputs(self.step, z_BhwC, t_BL, self.c.scales, self.c.channels)

  def zeros(self, batch):
    return jnp.zeros((batch, self.c.grid, self.c.grid, self.c.channels))

  def step(self, z_BhwC, t_BL, i):
    """(z_BhwC with the tokens of scale i, the inputs of scale i + 1, None after the last)."""
    z_BhwC = z_BhwC + self.scale_latent(t_BL, i)
    if i + 1 == len(self.c.scales):
      return z_BhwC, None
    small = resize(z_BhwC, area(self.c.grid, self.c.scales[i + 1]))
    return z_BhwC, small.reshape(len(small), -1, self.c.channels)

  def decode_latent(self, z_BhwC):
    """z_BhwC -> image_Byxc, not clamped (training needs the gradient beyond [-1, 1])."""
    z = self.post_quant_conv(z_BhwC.astype(self.c.dtype))
    return self.decoder(z).astype(jnp.float32)

  def decode(self, t_BL):
    """t_BL -> image_Byxc in [-1, 1]."""
    z_BhwC = multiscale.latent(self.scale_latent, t_BL, self.c.scales)
    return jnp.clip(self.decode_latent(z_BhwC), -1, 1)

  def reconstruct(self, image_Byxc):
    """(image_Byxc not clamped, loss_B of the quantizer, t_BL), straight-through.

    loss = mean over scales of commitment |sg(z_i) - f|^2 + |z_i - sg(f)|^2, z_i the cumulative
    latent."""
    f, sg = self.features(image_Byxc), jax.lax.stop_gradient
    t_BL, steps = self.quantize(f)
    mse = lambda a, b: jnp.mean((a - b) ** 2, (1, 2, 3))
    loss_B = sum(self.c.commitment * mse(sg(z), f) + mse(z, sg(f)) for z in steps) / len(steps)
    return self.decode_latent(f + sg(steps[-1] - f)), loss_B, t_BL


def init(model, key):
  """Boxed parameters (each knows its letters)."""
  size = model.c.image_size
  return model.init(key, jnp.zeros((1, size, size, 3)))['params']


def torch_layouts(c):
  """The official state dict, alone or in a checkpoint of the official trainer; see
  types.TorchLayout.

  The record of code usage is not learned, and its shape tells of another schedule where the weights
  are the same: whatever it holds is ignored. So are convolutions that a short schedule leaves
  without a scale."""
  constants = {'quantize.ema_vocab_hit_SV': np.zeros((len(c.scales), c.vocab), np.float32)}
  for i in sorted(
    set(range(c.n_shared_convs)) - set(phi_of_scale(len(c.scales), c.n_shared_convs))
  ):
    theirs, shape = f'quantize.quant_resi.qresi_ls.{i}', (c.channels, c.channels, 3, 3)
    constants |= {
      f'{theirs}.weight': np.zeros(shape, np.float32),
      f'{theirs}.bias': np.zeros(shape[0], np.float32),
    }
  return (
    TorchLayout(
      torch_table(c),
      constants,
      ignored=tuple(map(re.escape, constants)),
      nested_at=('trainer/vae_local',),
    ),
  )


def torch_table(c):
  table = {'codebook': ('quantize.embedding.weight', 'V C -> V C')} | autoencoder.torch_table(
    c.mults, c.blocks
  )
  for name in ('quant_conv', 'post_quant_conv'):
    table |= autoencoder.torch_conv(name, name)
  # A short schedule leaves some of the shared convolutions without a scale, and without weights.
  for i in sorted(set(phi_of_scale(len(c.scales), c.n_shared_convs))):
    table |= autoencoder.torch_conv(f'phi_{i}', f'quantize.quant_resi.qresi_ls.{i}')
  return table
