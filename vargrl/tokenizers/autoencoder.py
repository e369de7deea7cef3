"""The convolutional encoder and decoder of VAR's tokenizer (VQGAN's, attention at the coarsest level).

Exact structure: FoundationVision/VAR models/basic_vae.py. Images and latents are NHWC.
"""
import flax.linen as nn
import jax
import jax.numpy as jnp

from vargrl.models.layers import Conv, GroupNorm


class ResBlock(nn.Module):
  features: int

  @nn.compact
  def __call__(self, x):
    h = Conv(self.features, name='conv1')(jax.nn.silu(GroupNorm(name='norm1')(x)))
    h = Conv(self.features, name='conv2')(jax.nn.silu(GroupNorm(name='norm2')(h)))
    if x.shape[-1] != self.features:
      x = Conv(self.features, size=1, pad=(0, 0), name='nin_shortcut')(x)
    return x + h


class Attention(nn.Module):
  """Single head over all positions, residual."""

  @nn.compact
  def __call__(self, x_BhwC):
    B, h, w, C = x_BhwC.shape
    qkv = Conv(3 * C, size=1, pad=(0, 0), name='qkv')(GroupNorm(name='norm')(x_BhwC))
    q_BLC, k_BSC, v_BSC = jnp.split(qkv.reshape(B, h * w, 3 * C), 3, -1)
    logits_BLS = jnp.einsum('BLC,BSC->BLS', q_BLC * C ** -.5, k_BSC).astype(jnp.float32)
    o_BLC = jnp.einsum('BLS,BSC->BLC', jax.nn.softmax(logits_BLS, -1).astype(v_BSC.dtype), v_BSC)
    return x_BhwC + Conv(C, size=1, pad=(0, 0), name='proj_out')(o_BLC.reshape(x_BhwC.shape))


def middle(x, features):
  x = ResBlock(features, name='mid_block_1')(x)
  x = Attention(name='mid_attn_1')(x)
  return ResBlock(features, name='mid_block_2')(x)


class Encoder(nn.Module):
  """image_Byxc in [-1, 1] -> [B, y / 2^(levels-1), x / 2^(levels-1), channels]."""
  width: int
  mults: tuple[int, ...]
  blocks: int
  channels: int

  @nn.compact
  def __call__(self, x):
    x = Conv(self.width, name='conv_in')(x)
    last = len(self.mults) - 1
    for level, mult in enumerate(self.mults):
      for i in range(self.blocks):
        x = ResBlock(self.width * mult, name=f'down_{level}_block_{i}')(x)
        if level == last: x = Attention(name=f'down_{level}_attn_{i}')(x)
      if level < last:  # torch pads right and bottom alone before the stride
        x = Conv(x.shape[-1], stride=2, pad=(0, 1), name=f'down_{level}_downsample')(x)
    x = middle(x, self.width * self.mults[-1])
    return Conv(self.channels, name='conv_out')(jax.nn.silu(GroupNorm(name='norm_out')(x)))


class Decoder(nn.Module):
  """z_BhwC -> image_Byxc, not clamped. Level 0 is the finest and comes last."""
  width: int
  mults: tuple[int, ...]
  blocks: int

  @nn.compact
  def __call__(self, x):
    last = len(self.mults) - 1
    x = middle(Conv(self.width * self.mults[-1], name='conv_in')(x), self.width * self.mults[-1])
    for level in range(last, -1, -1):
      for i in range(self.blocks + 1):
        x = ResBlock(self.width * self.mults[level], name=f'up_{level}_block_{i}')(x)
        if level == last: x = Attention(name=f'up_{level}_attn_{i}')(x)
      if level:
        x = x.repeat(2, 1).repeat(2, 2)
        x = Conv(x.shape[-1], name=f'up_{level}_upsample')(x)
    return Conv(3, name='conv_out')(jax.nn.silu(GroupNorm(name='norm_out')(x)))
