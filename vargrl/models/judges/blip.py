"""BLIP's image-grounded text encoder (https://arxiv.org/abs/2201.12086), with ImageReward's head.

A ViT looks at the image; a BERT whose layers also attend to the ViT's tokens reads the prompt; an
affine head on its first position is the score (https://arxiv.org/abs/2304.05977)."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vargrl.models.layers import attention, stack
from vargrl.models.layers.einsum import Einsum, normal, torch_dense, torch_mlp, with_axes
from vargrl.models.layers.norms import Norm, torch_norm
from vargrl.parallel.rules import shard
from vargrl.types import TorchLayout

# Layers of the head and their widths; between them was dropout, no activation.
HEAD = {0: 1024, 2: 128, 4: 64, 6: 16, 7: 1}


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes: width, layers and heads of the image's and the text's tower. patch, image_size: pixels a
  side. positions: the most tokens of a text. Raises ValueError for what does not fit."""

  image_width: int
  image_layers: int
  image_heads: int
  text_width: int
  text_layers: int
  text_heads: int
  patch: int = 16
  image_size: int = 224
  vocab: int = 30524  # bert-base-uncased, [DEC] and [ENC]
  positions: int = 512
  dtype: str = 'float32'  # of the products in the blocks; all else is float32

  def __post_init__(self):
    for tower in ('image', 'text'):
      width, heads = getattr(self, f'{tower}_width'), getattr(self, f'{tower}_heads')
      if width % heads:
        raise ValueError(f'blip: {tower} width {width}, expected a multiple of {heads} heads')
    if self.image_size % self.patch:
      raise ValueError(
        f'blip: image size {self.image_size}, expected a multiple of the patch, {self.patch}'
      )
    if self.dtype not in stack.DTYPES:
      raise ValueError(f'dtype: {self.dtype!r} found, expected one of {stack.DTYPES}')

  @property
  def grid(self):
    return self.image_size // self.patch


SIZES = {
  'large': Config(1024, 24, 16, 768, 12, 12),
  'smoke': Config(32, 2, 2, 24, 2, 2, patch=7, image_size=28, vocab=96, positions=40),
}


class Attention(nn.Module):
  """Attention of x_BLD over y_BSd, which may be another tower's; products in `dtype`, the result
  float32."""

  width: int
  heads: int
  dtype: str

  @nn.compact
  def __call__(self, x_BLD, y_BSd, mask_BLS=None):
    D, N, H = self.width, self.heads, self.width // self.heads
    project = lambda name, x: Einsum('BLD,DNH->BNLH', (x.shape[-1], N, H), bias='NH', name=name)(
      x.astype(self.dtype)
    )
    q_BNLH, k_BNSH, v_BNSH = project('q', x_BLD), project('k', y_BSd), project('v', y_BSd)
    o_BNLH = attention.attend(q_BNLH, [(k_BNSH, v_BNSH, mask_BLS)], scale=1 / math.sqrt(H))
    return Einsum('BNLH,NHD->BLD', (N, H, D), bias='D', out=jnp.float32, name='o')(o_BNLH)


class MLP(nn.Module):
  """Two layers with a gelu between, four times as wide; the result float32."""

  width: int
  dtype: str

  @nn.compact
  def __call__(self, x_BLD):
    D, F = self.width, 4 * self.width
    y_BLF = Einsum('BLD,DF->BLF', (D, F), bias='F', name='fc1')(x_BLD.astype(self.dtype))
    y_BLF = jax.nn.gelu(y_BLF.astype(jnp.float32), approximate=False).astype(self.dtype)
    return Einsum('BLF,FD->BLD', (F, D), bias='D', out=jnp.float32, name='fc2')(y_BLF)


class ImageBlock(nn.Module):
  """x + attention, x + mlp, of normalised x."""

  c: Config

  @nn.compact
  def __call__(self, x_BLD, _):
    c = self.c
    y_BLD = Norm(1e-6, name='norm1')(x_BLD)
    x_BLD += Attention(c.image_width, c.image_heads, c.dtype, name='attn')(y_BLD, y_BLD)
    x_BLD += MLP(c.image_width, c.dtype, name='mlp')(Norm(1e-6, name='norm2')(x_BLD))
    return x_BLD, None


class TextBlock(nn.Module):
  """BERT's norms stand after the sums."""

  c: Config

  @nn.compact
  def __call__(self, x_BLD, mask_BLS, image_BSD):
    c = self.c
    attend = lambda name: Attention(c.text_width, c.text_heads, c.dtype, name=name)
    x_BLD = Norm(1e-12, name='norm1')(x_BLD + attend('self')(x_BLD, x_BLD, mask_BLS))
    x_BLD = Norm(1e-12, name='norm2')(x_BLD + attend('cross')(x_BLD, image_BSD))
    return Norm(1e-12, name='norm3')(x_BLD + MLP(c.text_width, c.dtype, name='mlp')(x_BLD)), None


def scan_blocks(block, c, count):
  """`count` blocks whose weights are stacked along X."""
  return nn.scan(
    block,
    variable_axes={'params': 0},
    split_rngs={'params': True},
    length=count,
    in_axes=nn.broadcast,
    metadata_params={nn.PARTITION_NAME: 'X'},
  )(c)


class Image(nn.Module):
  c: Config

  def setup(self):
    c, D = self.c, self.c.image_width
    init = normal(0.02)
    self.patches = Einsum('Bhywxc,yxcD->BhwD', (c.patch, c.patch, 3, D), bias='D')
    self.start = self.param('start', with_axes(init, 'D'), (D,))
    self.positions = self.param('positions', with_axes(init, 'LD'), (c.grid**2 + 1, D))
    self.blocks, self.norm = scan_blocks(ImageBlock, c, c.image_layers), Norm(1e-6)

  def __call__(self, image_Byxc):
    """image_Byxc: c.image_size pixels a side, normalised as in rewards/preprocess.py. -> x_BSD
    float32, all tokens, the class token first."""
    c, B = self.c, len(image_Byxc)
    x_Bhywxc = image_Byxc.astype(c.dtype).reshape(B, c.grid, c.patch, c.grid, c.patch, 3)
    x_BLD = self.patches(x_Bhywxc).astype(jnp.float32).reshape(B, -1, c.image_width)
    start_B1D = jnp.broadcast_to(self.start[None, None], (B, 1, c.image_width))
    x_BLD = jnp.concatenate([start_B1D, x_BLD], 1) + self.positions[None]
    return self.norm(self.blocks(shard(x_BLD, 'BLD'), None)[0])


class Text(nn.Module):
  c: Config

  def setup(self):
    c, D = self.c, self.c.text_width
    self.tokens = self.param('tokens', with_axes(normal(0.02), 'VD'), (c.vocab, D))
    self.positions = self.param('positions', with_axes(normal(0.02), 'LD'), (c.positions, D))
    self.norm, self.blocks = Norm(1e-12), scan_blocks(TextBlock, c, c.text_layers)

  def __call__(self, t_BL, mask_BL, image_BSD):
    """t_BL: tokens; mask_BL: False at padding; image_BSD: of Image. -> x_BD float32, position 0."""
    L = t_BL.shape[1]
    x_BLD = self.norm(shard(self.tokens, 'VD')[t_BL] + self.positions[None, :L])
    return self.blocks(shard(x_BLD, 'BLD'), mask_BL[:, None], image_BSD)[0][:, 0]


class Head(nn.Module):
  """x_BD -> r_B: five affine layers, hence one; see rewards/image_reward.py."""

  @nn.compact
  def __call__(self, x_BD):
    for layer, width in HEAD.items():
      x_BD = Einsum('BD,DE->BE', (x_BD.shape[-1], width), bias='E', name=str(layer))(x_BD)
    return x_BD[:, 0]


class Model(nn.Module):
  """All of it. A part alone: Image(c).apply({'params': params['image']}, image_Byxc)."""

  c: Config

  def setup(self):
    self.image, self.text, self.head = Image(self.c), Text(self.c), Head()

  def __call__(self, image_Byxc, t_BL, mask_BL):
    return self.head(self.text(t_BL, mask_BL, self.image(image_Byxc)))


def init(model, key):
  """Boxed parameters (each knows its letters)."""
  size = model.c.image_size
  t_BL = jnp.zeros((1, 1), jnp.int32)
  return model.init(key, jnp.zeros((1, size, size, 3)), t_BL, t_BL == 0)['params']


def torch_layouts(c):
  """Of ImageReward.pt, https://huggingface.co/THUDM/ImageReward: BLIP's own names, and a head
  `mlp`.
  """
  del c  # the table is the same for all sizes
  image, text = 'blip.visual_encoder', 'blip.text_encoder'
  table = {
    'image/start': (f'{image}.cls_token', '1 1 D -> D'),
    'image/positions': (f'{image}.pos_embed', '1 L D -> L D'),
    'image/patches/w': (f'{image}.patch_embed.proj.weight', 'D c y x -> y x c D'),
    'image/patches/b': (f'{image}.patch_embed.proj.bias', 'D -> D'),
    'text/tokens': (f'{text}.embeddings.word_embeddings.weight', 'V D -> V D'),
    'text/positions': (f'{text}.embeddings.position_embeddings.weight', 'L D -> L D'),
  }
  table |= torch_norm('image/norm', f'{image}.norm') | torch_norm(
    'text/norm', f'{text}.embeddings.LayerNorm'
  )
  block = f'{image}.blocks.{{X}}'
  table |= {
    'image/blocks/attn/{q,k,v}/w': (f'{block}.attn.qkv.weight', '(g N H) D -> g D N H'),
    'image/blocks/attn/{q,k,v}/b': (f'{block}.attn.qkv.bias', '(g N H) -> g N H'),
  }
  table |= out('image/blocks/attn', f'{block}.attn.proj')
  table |= torch_norm('image/blocks/norm1', f'{block}.norm1') | torch_norm(
    'image/blocks/norm2', f'{block}.norm2'
  )
  table |= torch_mlp('image/blocks/mlp', f'{block}.mlp.fc1', f'{block}.mlp.fc2')

  block = f'{text}.encoder.layer.{{X}}'
  for i, (ours, theirs) in enumerate((('self', 'attention'), ('cross', 'crossattention')), 1):
    for name in ('query', 'key', 'value'):
      mine, key = f'text/blocks/{ours}/{name[0]}', f'{block}.{theirs}.self.{name}'
      table |= {
        f'{mine}/w': (f'{key}.weight', '(N H) D -> D N H'),
        f'{mine}/b': (f'{key}.bias', '(N H) -> N H'),
      }
    table |= out(f'text/blocks/{ours}', f'{block}.{theirs}.output.dense')
    table |= torch_norm(f'text/blocks/norm{i}', f'{block}.{theirs}.output.LayerNorm')
  table |= torch_norm('text/blocks/norm3', f'{block}.output.LayerNorm')
  table |= torch_mlp('text/blocks/mlp', f'{block}.intermediate.dense', f'{block}.output.dense')
  for layer in HEAD:
    table |= torch_dense(f'head/{layer}', f'mlp.layers.{layer}', 'E D -> D E')
  # What BLIP was pretrained with and a score does not use.
  ignored = (r'blip\.(vision_proj|text_proj|itm_head)\..*', r'.*\.position_ids', r'blip\.temp')
  return (TorchLayout(table, ignored=ignored),)


def out(ours, theirs):
  return torch_dense(f'{ours}/o', theirs, 'D (N H) -> N H D')
