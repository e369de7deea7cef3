"""The convolutional encoder and decoder of VAR's tokenizer (VQGAN's, attention at the coarsest
level), and of Infinity's, which has no attention.

Exact structure: FoundationVision/VAR models/basic_vae.py. Images and latents are NHWC.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vargrl.models.layers.einsum import Conv
from vargrl.models.layers.norms import GroupNorm


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
    logits_BLS = jnp.einsum('BLC,BSC->BLS', q_BLC * C**-0.5, k_BSC).astype(jnp.float32)
    o_BLC = jnp.einsum('BLS,BSC->BLC', jax.nn.softmax(logits_BLS, -1).astype(v_BSC.dtype), v_BSC)
    return x_BhwC + Conv(C, size=1, pad=(0, 0), name='proj_out')(o_BLC.reshape(x_BhwC.shape))


def middle(x, features, attention):
  x = ResBlock(features, name='mid_block_1')(x)
  if attention:
    x = Attention(name='mid_attn_1')(x)
  return ResBlock(features, name='mid_block_2')(x)


class Encoder(nn.Module):
  """image_Byxc in [-1, 1] -> [B, y / 2^(levels-1), x / 2^(levels-1), channels]."""

  width: int
  mults: tuple[int, ...]
  blocks: int
  channels: int
  attention: bool = True

  @nn.compact
  def __call__(self, x):
    x = Conv(self.width, name='conv_in')(x)
    last = len(self.mults) - 1
    for level, mult in enumerate(self.mults):
      for i in range(self.blocks):
        x = ResBlock(self.width * mult, name=f'down_{level}_block_{i}')(x)
        if self.attention and level == last:
          x = Attention(name=f'down_{level}_attn_{i}')(x)
      if level < last:  # torch pads right and bottom alone before the stride
        x = Conv(x.shape[-1], stride=2, pad=(0, 1), name=f'down_{level}_downsample')(x)
    x = middle(x, self.width * self.mults[-1], self.attention)
    return Conv(self.channels, name='conv_out')(jax.nn.silu(GroupNorm(name='norm_out')(x)))


class Decoder(nn.Module):
  """z_BhwC -> image_Byxc, not clamped. Level 0 is the finest and comes last."""

  width: int
  mults: tuple[int, ...]
  blocks: int
  attention: bool = True

  @nn.compact
  def __call__(self, x):
    last, coarse = len(self.mults) - 1, self.width * self.mults[-1]
    x = middle(Conv(coarse, name='conv_in')(x), coarse, self.attention)
    for level in range(last, -1, -1):
      for i in range(self.blocks + 1):
        x = ResBlock(self.width * self.mults[level], name=f'up_{level}_block_{i}')(x)
        if self.attention and level == last:
          x = Attention(name=f'up_{level}_attn_{i}')(x)
      if level:
        x = x.repeat(2, 1).repeat(2, 2)
        x = Conv(x.shape[-1], name=f'up_{level}_upsample')(x)
    return Conv(3, name='conv_out')(jax.nn.silu(GroupNorm(name='norm_out')(x)))


def torch_conv(ours, theirs):
  """Rows of a TorchLayout's table for a convolution."""
  return {
    f'{ours}/w': (f'{theirs}.weight', 'o i y x -> y x i o'),
    f'{ours}/b': (f'{theirs}.bias', 'o -> o'),
  }


def torch_table(mults, blocks, attend=True, inner=False):
  """The same for encoder and decoder; inner: convolutions and norms lie in a module of their own,
  as Infinity's.
  """
  table = {}

  def conv(ours, theirs):
    table.update(torch_conv(ours, theirs + '.conv' * inner))

  def norm(ours, theirs):
    theirs += '.norm' * inner
    table[f'{ours}/scale'] = (f'{theirs}.weight', 'c -> c')
    table[f'{ours}/bias'] = (f'{theirs}.bias', 'c -> c')

  def block(ours, theirs, shortcut=False):
    for i in (1, 2):
      norm(f'{ours}/norm{i}', f'{theirs}.norm{i}')
      conv(f'{ours}/conv{i}', f'{theirs}.conv{i}')
    if shortcut:
      conv(f'{ours}/nin_shortcut', f'{theirs}.nin_shortcut')

  def attention(ours, theirs):
    norm(f'{ours}/norm', f'{theirs}.norm')
    for name in ('qkv', 'proj_out'):
      conv(f'{ours}/{name}', f'{theirs}.{name}')

  def side(name, word, blocks, before, sampler):
    """before: channels that enter the first block of each level."""
    for end in ('conv_in', 'conv_out'):
      conv(f'{name}/{end}', f'{name}.{end}')
    norm(f'{name}/norm_out', f'{name}.norm_out')
    for i in (1, 2):
      block(f'{name}/mid_block_{i}', f'{name}.mid.block_{i}')
    if attend:
      attention(f'{name}/mid_attn_1', f'{name}.mid.attn_1')
    last = len(mults) - 1
    for level, mult in enumerate(mults):
      for i in range(blocks):
        changes = i == 0 and before[level] != mult
        block(f'{name}/{word}_{level}_block_{i}', f'{name}.{word}.{level}.block.{i}', changes)
        if attend and level == last:
          attention(f'{name}/{word}_{level}_attn_{i}', f'{name}.{word}.{level}.attn.{i}')
      if level < last if word == 'down' else level:
        conv(f'{name}/{word}_{level}_{sampler}', f'{name}.{word}.{level}.{sampler}.conv')

  side('encoder', 'down', blocks, (1, *mults), 'downsample')
  side('decoder', 'up', blocks + 1, (*mults[1:], mults[-1]), 'upsample')
  return table
