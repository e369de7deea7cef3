"""The vision transformer of Qwen2-VL (https://arxiv.org/abs/2409.12191): patches of an image of any
size -> embeddings for its language model, one for each 2 x 2 of them."""

import dataclasses
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vargrl.models.layers import attention, rope, stack
from vargrl.models.layers.einsum import Einsum, torch_dense, torch_mlp
from vargrl.models.layers.norms import Norm, torch_norm
from vargrl.parallel.rules import shard
from vargrl.types import TorchLayout


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes: layers, width of an embedding, heads of attention. Raises ValueError for what does not
  fit."""

  depth: int
  width: int
  heads: int
  out: int  # width of the language model
  mlp_ratio: int = 4
  patch: int = 14  # pixels a side
  frames: int = 2  # in a patch; an image is repeated
  merge: int = 2  # patches a side that become one embedding
  dtype: str = 'float32'  # of the products in the blocks; sums and norms are float32
  remat: str = 'none'  # see stack.REMAT

  def __post_init__(self):
    if self.width % (4 * self.heads):
      raise ValueError(
        f'vision: width {self.width}, {self.heads} heads; expected a multiple of 4 for each head'
      )
    stack.check_options(self)

  @property
  def head_dim(self):
    return self.width // self.heads


SIZES = {  # https://huggingface.co/Qwen: vision_config of Qwen2-VL-*
  '2b': Config(32, 1280, 16, 1536),
  '7b': Config(32, 1280, 16, 3584),
  '72b': Config(32, 1280, 16, 8192),
  'smoke': Config(2, 32, 2, 32),
}


HUB = 'Qwen/Qwen2-VL-7B-Instruct'  # of the published folders, on huggingface.co


class Block(nn.Module):
  """x + attention, x + mlp; the sum stays in float32, the products are in c.dtype."""

  c: Config

  @nn.compact
  def __call__(self, x_BLD, angles, mask_BLS):
    c, D, N, H = self.c, self.c.width, self.c.heads, self.c.head_dim
    project = lambda name: Einsum('BLD,DNH->BNLH', (D, N, H), bias='NH', name=name)
    y_BLD = Norm(1e-6, name='norm1')(x_BLD).astype(c.dtype)
    q_BNLH, k_BNSH = (rope.apply_rope(project(name)(y_BLD), angles) for name in 'qk')
    o_BNLH = attention.attend(
      q_BNLH, [(k_BNSH, project('v')(y_BLD), mask_BLS)], scale=1 / math.sqrt(H)
    )
    x_BLD += Einsum('BNLH,NHD->BLD', (N, H, D), bias='D', out=jnp.float32, name='o')(o_BNLH)
    y_BLD = Norm(1e-6, name='norm2')(x_BLD).astype(c.dtype)
    y_BLF = Einsum('BLD,DF->BLF', (D, c.mlp_ratio * D), bias='F', name='fc1')(y_BLD).astype(
      jnp.float32
    )
    y_BLF = (y_BLF * jax.nn.sigmoid(1.702 * y_BLF)).astype(c.dtype)
    x_BLD += Einsum('BLF,FD->BLD', (c.mlp_ratio * D, D), bias='D', out=jnp.float32, name='fc2')(
      y_BLF
    )
    return x_BLD, None


class Merger(nn.Module):
  """merge x merge patches, which lie one after the other -> one embedding of width c.out."""

  c: Config

  @nn.compact
  def __call__(self, x_BLD):
    c, wide = self.c, self.c.merge**2 * self.c.width
    x_BLD = Norm(1e-6, name='norm')(x_BLD).astype(c.dtype).reshape(len(x_BLD), -1, wide)
    y_BLF = Einsum('BLD,DF->BLF', (wide, wide), bias='F', name='fc1')(x_BLD).astype(jnp.float32)
    y_BLF = jax.nn.gelu(y_BLF, approximate=False).astype(c.dtype)
    return Einsum('BLF,FD->BLD', (wide, c.out), bias='D', name='fc2')(y_BLF)


class Model(nn.Module):
  c: Config

  @nn.compact
  def __call__(self, patch_BLp, position_aBL, seen_BL=None):
    """Images as data/patches.py cuts them -> their embeddings x_BLD in c.dtype, L of them merge **
    2 times fewer.

    position_aBL: int32, row and column of each patch. seen_BL: bool, False at padding, which no
    patch looks at and whose embeddings mean nothing; or int32, the image that a patch is of, where
    a row has several; None: each row is one image."""
    c, (B, L, _), quarter = self.c, patch_BLp.shape, self.c.head_dim // 4
    x_BLctyx = patch_BLp.astype(c.dtype).reshape(B, L, 3, c.frames, c.patch, c.patch)
    x_BLD = Einsum('BLctyx,ctyxD->BLD', (*x_BLctyx.shape[2:], c.width), name='patches')(x_BLctyx)
    angles = rope.rope_angles(
      position_aBL, np.repeat([0, 1], quarter), np.tile(rope.rope_frequencies(quarter, 1e4), 2)
    )
    blocks = stack.scan_layers(Block, c, c.depth, nn.broadcast, name='blocks')
    mask_BLS = None if seen_BL is None else seen_BL[:, None]
    if seen_BL is not None and seen_BL.dtype == jnp.int32:
      mask_BLS = mask_BLS == seen_BL[:, :, None]
    x_BLD, _ = blocks(shard(x_BLD.astype(jnp.float32), 'BLD'), angles, mask_BLS)
    return Merger(c, name='merger')(x_BLD)


def init(model, key):
  """Boxed parameters (each knows its letters)."""
  c = model.c
  patch_BLp = jnp.zeros((1, c.merge**2, 3 * c.frames * c.patch**2))
  return model.init(key, patch_BLp, jnp.zeros((2, 1, c.merge**2), jnp.int32))['params']


def torch_layouts(c):
  """The part of a Qwen2-VL checkpoint that is this tower, in both spellings of its names."""
  return tuple(
    TorchLayout(
      torch_table(theirs=theirs),
      ignored=(rf'(?!{re.escape(theirs)}).*',),
      config={'vision_config': hf_config(c)},
    )
    for theirs in ('visual.', 'model.visual.')
  )


def torch_table(ours='', theirs='visual.'):
  """The TorchLayout's table. ours, theirs: what comes before the names."""
  mine, block = f'{ours}blocks', f'{theirs}blocks.{{X}}'
  table = {
    f'{ours}patches/w': (f'{theirs}patch_embed.proj.weight', 'D c t y x -> c t y x D'),
    f'{mine}/{{q,k,v}}/w': (f'{block}.attn.qkv.weight', '(g N H) D -> g D N H'),
    f'{mine}/{{q,k,v}}/b': (f'{block}.attn.qkv.bias', '(g N H) -> g N H'),
    **torch_dense(f'{mine}/o', f'{block}.attn.proj', 'D (N H) -> N H D'),
  }
  table |= torch_mlp(mine, f'{block}.mlp.fc1', f'{block}.mlp.fc2')
  table |= torch_mlp(f'{ours}merger', f'{theirs}merger.mlp.0', f'{theirs}merger.mlp.2')
  for name, key in (
    (f'{mine}/norm1', f'{block}.norm1'),
    (f'{mine}/norm2', f'{block}.norm2'),
    (f'{ours}merger/norm', f'{theirs}merger.ln_q'),
  ):
    table |= torch_norm(name, key)
  return table


def hf_config(c):
  """The vision_config in config.json of a Hugging Face folder with these weights."""
  return {
    'depth': c.depth,
    'embed_dim': c.width,
    'num_heads': c.heads,
    'hidden_size': c.out,
    'mlp_ratio': c.mlp_ratio,
    'patch_size': c.patch,
    'temporal_patch_size': c.frames,
    'spatial_merge_size': c.merge,
    'in_chans': 3,
    'hidden_act': 'quick_gelu',
  }


def flops(c, length):
  """Multiply-adds x 2 for one image of `length` patches."""
  D, wide = c.width, c.merge**2 * c.width
  blocks = c.depth * length * ((4 + 2 * c.mlp_ratio) * D**2 + 2 * length * D)
  merger = length // c.merge**2 * (wide**2 + wide * c.out)
  return 2 * (blocks + merger + length * 3 * c.frames * c.patch**2 * D)
