"""CLIP (https://arxiv.org/abs/2103.00020): two transformers that put images and texts into one
space.

Weights of OpenAI, of LAION, and of what was tuned from them (PickScore, HPSv2) have these shapes.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vargrl.models.layers import attention, stack
from vargrl.models.layers.einsum import Einsum, normal, torch_mlp, with_axes
from vargrl.models.layers.norms import Norm, torch_norm
from vargrl.parallel.rules import shard
from vargrl.types import TorchLayout

ACTS = ('quick_gelu', 'gelu')
EPS = 1e-5  # of the norms


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes of both towers: width, layers and heads of each. embed: E, width of the common space.
  act: of the MLPs. patch, image_size: pixels a side. context: the most tokens of a text. Raises
  ValueError for what does not fit."""

  image_width: int
  image_layers: int
  image_heads: int
  text_width: int
  text_layers: int
  text_heads: int
  embed: int
  act: str  # 'gelu' is the exact one
  patch: int = 14
  image_size: int = 224
  vocab: int = 49408  # the last two tokens are start and end
  context: int = 77
  dtype: str = 'float32'  # of the products in the blocks; all else is float32

  def __post_init__(self):
    for tower in ('image', 'text'):
      width, heads = getattr(self, f'{tower}_width'), getattr(self, f'{tower}_heads')
      if width % heads:
        raise ValueError(f'clip: {tower} width {width}, expected a multiple of {heads} heads')
    if self.image_size % self.patch:
      raise ValueError(
        f'clip: image size {self.image_size}, expected a multiple of the patch, {self.patch}'
      )
    if self.act not in ACTS:
      raise ValueError(f'clip: act {self.act!r}, expected one of {ACTS}')
    if self.dtype not in stack.DTYPES:
      raise ValueError(f'dtype: {self.dtype!r}, expected one of {stack.DTYPES}')

  @property
  def start(self):
    return self.vocab - 2

  @property
  def end(self):
    return self.vocab - 1

  @property
  def grid(self):
    return self.image_size // self.patch


SIZES = {
  # https://huggingface.co/openai/clip-vit-large-patch14 and -base-patch32; LAION's of these shapes
  # have gelu.
  'l14': Config(1024, 24, 16, 768, 12, 12, 768, 'quick_gelu'),
  'b32': Config(768, 12, 12, 512, 12, 8, 512, 'quick_gelu', patch=32),
  # https://huggingface.co/laion/CLIP-ViT-H-14-laion2B-s32B-b79K
  'h14': Config(1280, 32, 16, 1024, 24, 16, 1024, 'gelu'),
  'smoke': Config(32, 2, 2, 32, 2, 2, 16, 'quick_gelu', patch=7, image_size=14, vocab=130),
}


class Block(nn.Module):
  """x + attention, x + mlp; the sum stays in float32, the products are in c.dtype."""

  c: Config
  width: int
  heads: int

  @nn.compact
  def __call__(self, x_BLD, mask_LS):
    c, D, N, H = self.c, self.width, self.heads, self.width // self.heads
    project = lambda name: Einsum('BLD,DNH->BNLH', (D, N, H), bias='NH', name=name)
    y_BLD = Norm(EPS, name='norm1')(x_BLD).astype(c.dtype)
    q_BNLH, k_BNSH, v_BNSH = project('q')(y_BLD), project('k')(y_BLD), project('v')(y_BLD)
    o_BNLH = attention.attend(q_BNLH, [(k_BNSH, v_BNSH, mask_LS)], scale=1 / math.sqrt(H))
    x_BLD += Einsum('BNLH,NHD->BLD', (N, H, D), bias='D', out=jnp.float32, name='o')(o_BNLH)
    y_BLD = Norm(EPS, name='norm2')(x_BLD).astype(c.dtype)
    y_BLF = Einsum('BLD,DF->BLF', (D, 4 * D), bias='F', name='fc1')(y_BLD).astype(jnp.float32)
    y_BLF = (
      jax.nn.gelu(y_BLF, approximate=False)
      if c.act == 'gelu'
      else y_BLF * jax.nn.sigmoid(1.702 * y_BLF)
    ).astype(c.dtype)
    x_BLD += Einsum('BLF,FD->BLD', (4 * D, D), bias='D', out=jnp.float32, name='fc2')(y_BLF)
    return x_BLD, None


def scan_blocks(c, width, heads, count):
  """`count` Blocks whose weights are stacked along X."""
  return nn.scan(
    Block,
    variable_axes={'params': 0},
    split_rngs={'params': True},
    length=count,
    in_axes=nn.broadcast,
    metadata_params={nn.PARTITION_NAME: 'X'},
  )(c, width, heads)


class Image(nn.Module):
  """The tower of images, a pre-norm ViT: pixels -> e_BE."""

  c: Config

  def setup(self):
    c, D = self.c, self.c.image_width
    init = normal(1 / math.sqrt(D))
    self.patches = Einsum('Bhywxc,yxcD->BhwD', (c.patch, c.patch, 3, D))
    self.start = self.param('start', with_axes(init, 'D'), (D,))
    self.positions = self.param('positions', with_axes(init, 'LD'), (c.grid**2 + 1, D))
    self.pre, self.post = Norm(EPS), Norm(EPS)
    self.blocks = scan_blocks(c, D, c.image_heads, c.image_layers)
    self.project = Einsum('BD,DE->BE', (D, c.embed))

  def __call__(self, image_Byxc):
    """image_Byxc: c.image_size pixels a side, normalised as in rewards/preprocess.py. -> e_BE
    float32.
    """
    c, B = self.c, len(image_Byxc)
    x_Bhywxc = image_Byxc.astype(c.dtype).reshape(B, c.grid, c.patch, c.grid, c.patch, 3)
    x_BLD = self.patches(x_Bhywxc).astype(jnp.float32).reshape(B, -1, c.image_width)
    start_B1D = jnp.broadcast_to(self.start[None, None], (B, 1, c.image_width))
    x_BLD = jnp.concatenate([start_B1D, x_BLD], 1) + self.positions[None]
    x_BLD, _ = self.blocks(self.pre(shard(x_BLD, 'BLD')), None)
    return self.project(self.post(x_BLD[:, 0]))


class Text(nn.Module):
  """The tower of texts, causal: tokens -> e_BE, read at the first end token."""

  c: Config

  def setup(self):
    c, D = self.c, self.c.text_width
    self.tokens = self.param('tokens', with_axes(normal(0.02), 'VD'), (c.vocab, D))
    self.positions = self.param('positions', with_axes(normal(0.01), 'LD'), (c.context, D))
    self.blocks = scan_blocks(c, D, c.text_heads, c.text_layers)
    self.norm = Norm(EPS)
    self.project = Einsum('BD,DE->BE', (D, c.embed))

  def __call__(self, t_BL):
    """t_BL: tokens, at most c.context; what comes after the first end token is not seen. -> e_BE
    float32.
    """
    L = t_BL.shape[1]
    x_BLD = shard(self.tokens, 'VD')[t_BL] + self.positions[None, :L]
    x_BLD, _ = self.blocks(shard(x_BLD, 'BLD'), jnp.asarray(np.tri(L, dtype=bool)))
    end_B11 = jnp.argmax(t_BL == self.c.end, 1)[:, None, None]
    return self.project(self.norm(jnp.take_along_axis(x_BLD, end_B11, 1)[:, 0]))


class Model(nn.Module):
  """Both towers. A tower alone: Image(c).apply({'params': params['image']}, image_Byxc)."""

  c: Config

  def setup(self):
    self.image, self.text = Image(self.c), Text(self.c)
    self.logit_scale = self.param('logit_scale', nn.initializers.constant(math.log(1 / 0.07)), ())

  def __call__(self, image_Byxc, t_BL):
    """(image embeddings e_BE, text embeddings e_BE, log of the temperature's inverse), float32, not
    of unit length."""
    return self.image(image_Byxc), self.text(t_BL), self.logit_scale


def init(model, key):
  """Boxed parameters (each knows its letters)."""
  size = model.c.image_size
  return model.init(key, jnp.zeros((1, size, size, 3)), jnp.full((1, 1), model.c.end))['params']


def torch_layouts(c):
  """Of transformers' CLIPModel, and of open_clip (that of OpenAI's own state dict too)."""
  del c  # the tables are the same for all sizes
  ours = {
    'image': ('vision_model', 'visual_projection.weight'),
    'text': ('text_model', 'text_projection.weight'),
  }
  hf = {
    'logit_scale': ('logit_scale', '-> '),
    'image/start': ('vision_model.embeddings.class_embedding', 'D -> D'),
    'image/patches/w': ('vision_model.embeddings.patch_embedding.weight', 'D c y x -> y x c D'),
    'text/tokens': ('text_model.embeddings.token_embedding.weight', 'V D -> V D'),
  }
  for tower, (theirs, project) in ours.items():
    layer = f'{theirs}.encoder.layers.{{X}}'
    hf |= {
      f'{tower}/positions': (f'{theirs}.embeddings.position_embedding.weight', 'L D -> L D'),
      f'{tower}/project/w': (project, 'E D -> D E'),
    }
    hf |= torch_attention(
      tower, layer, [(n, f'self_attn.{n}_proj') for n in 'qkv'], 'self_attn.out_proj'
    )
    hf |= mlp_norms(tower, layer, 'mlp.fc1', 'mlp.fc2', 'layer_norm1', 'layer_norm2')
  # sic: 'layrnorm'
  hf |= torch_norm('image/pre', 'vision_model.pre_layrnorm') | torch_norm(
    'image/post', 'vision_model.post_layernorm'
  )
  hf |= torch_norm('text/norm', 'text_model.final_layer_norm')

  clip = {
    'logit_scale': ('logit_scale', '-> '),
    'image/start': ('visual.class_embedding', 'D -> D'),
    'image/positions': ('visual.positional_embedding', 'L D -> L D'),
    'image/patches/w': ('visual.conv1.weight', 'D c y x -> y x c D'),
    'image/project/w': ('visual.proj', 'D E -> D E'),
    'text/tokens': ('token_embedding.weight', 'V D -> V D'),
    'text/positions': ('positional_embedding', 'L D -> L D'),
    'text/project/w': ('text_projection', 'D E -> D E'),
  }
  for tower, theirs in (('image', 'visual.'), ('text', '')):
    layer = f'{theirs}transformer.resblocks.{{X}}'
    clip |= torch_attention(tower, layer, [('{q,k,v}', 'attn.in_proj')], 'attn.out_proj')
    clip |= mlp_norms(tower, layer, 'mlp.c_fc', 'mlp.c_proj', 'ln_1', 'ln_2')
  clip |= torch_norm('image/pre', 'visual.ln_pre') | torch_norm('image/post', 'visual.ln_post')
  clip |= torch_norm('text/norm', 'ln_final')
  return (
    TorchLayout(hf, ignored=(r'.*\.position_ids',)),
    TorchLayout(
      clip,
      ignored=(r'attn_mask|input_resolution|context_length|vocab_size',),
      nested_at=('state_dict',),
    ),
  )


def torch_attention(tower, layer, inputs, output):
  """inputs: (our name or names, their key); fused ones lie in the order of our names."""
  rows, out = {}, f'{layer}.{output}'
  for ours, theirs in inputs:
    dot, (left, right) = '_' if '{' in ours else '.', ('g ', 'g ') if '{' in ours else ('', '')
    rows[f'{tower}/blocks/{ours}/w'] = (
      f'{layer}.{theirs}{dot}weight',
      f'({left}N H) D -> {right}D N H',
    )
    rows[f'{tower}/blocks/{ours}/b'] = (f'{layer}.{theirs}{dot}bias', f'({left}N H) -> {right}N H')
  return rows | {
    f'{tower}/blocks/o/w': (f'{out}.weight', 'D (N H) -> N H D'),
    f'{tower}/blocks/o/b': (f'{out}.bias', 'D -> D'),
  }


def mlp_norms(tower, layer, fc1, fc2, norm1, norm2):
  blocks = f'{tower}/blocks'
  return (
    torch_mlp(blocks, f'{layer}.{fc1}', f'{layer}.{fc2}')
    | torch_norm(f'{blocks}/norm1', f'{layer}.{norm1}')
    | torch_norm(f'{blocks}/norm2', f'{layer}.{norm2}')
  )


def flops(c):
  """Multiply-adds x 2 of the image tower on one image."""
  D, L = c.image_width, c.grid**2 + 1
  dense = c.image_layers * L * (24 * D**2 + 4 * L * D)
  return dense + 2 * c.grid**2 * c.patch**2 * 3 * D + 2 * D * c.embed
