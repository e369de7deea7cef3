"""VAR: next-scale prediction (https://arxiv.org/abs/2404.02905), as in FoundationVision/VAR.

The decoder sees continuous inputs: for scale i the tokenizer's reconstruction from scales < i,
resized to scale i. It does not know the tokenizer, the rewards, or who computes its loss.
"""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vargrl.models import decoder
from vargrl.models.layers import cache as caches
from vargrl.models.layers import masks
from vargrl.models.layers.einsum import Einsum, normal, with_axes
from vargrl.parallel.rules import gather
from vargrl.types import TorchLayout, bounds, offsets

SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


@dataclasses.dataclass(frozen=True)
class Config:
  """The sizes of a decoder of codes.

  Attributes:
    depth, width, heads: layers, width of the hidden states, heads of attention.
    scales: sides, coarse to fine.
    vocab, channels: codes of the tokenizer, and channels of its latents.
    classes: a prompt is a class 0 .. classes - 1; `classes` is the unconditional one.
    mlp_ratio: width of the MLP in units of `width`.
    shared_adaln: one AdaLN for all layers plus an offset for each, as d36-512 has.
    l2_norm: unit queries and keys, with a learned temperature for each head.
    gamma: standard deviation of the residual gates at init, in units of AdaLN's own.
    dtype: of activations; parameters are float32.
    attention: 'dense', or 'splash' on a TPU, see layers/splash.py.
    remat: 'blocks' or 'dots' keep less for the backward pass, see stack.REMAT.
    lora_rank: of the adapters beside q, k, v, o, fc1 and fc2; 0: none.
    lora_alpha: adapters count alpha / rank.
  """

  depth: int
  width: int
  heads: int
  scales: tuple[int, ...] = SCALES_256
  vocab: int = 4096
  channels: int = 32
  classes: int = 1000
  mlp_ratio: int = 4
  shared_adaln: bool = False
  l2_norm: bool = True
  gamma: float = 1e-3
  dtype: str = 'float32'
  attention: str = 'dense'
  remat: str = 'none'
  lora_rank: int = 0
  lora_alpha: float = 0.0

  def __post_init__(self):
    decoder.check(self)

  @property
  def length(self):
    return self.offsets[-1]

  @property
  def mlp(self):
    return self.mlp_ratio * self.width

  @property
  def ada_std(self):
    """Of scales and shifts at init, as a factor."""
    return 0.5

  @property
  def head_dim(self):
    return self.width // self.heads

  @property
  def offsets(self):
    return offsets(self.scales)

  @property
  def lora(self):
    return {'rank': self.lora_rank, 'alpha': self.lora_alpha}


def published(depth, gamma, **changes):
  return Config(depth=depth, width=64 * depth, heads=depth, gamma=gamma, **changes)


NET = 'models.nets.next_scale'  # how rollouts and scores call it
HUB = 'FoundationVision/var'  # where the published files are, on huggingface.co

# https://github.com/FoundationVision/VAR
SIZES = {
  'd16': published(16, 1e-3),
  'd20': published(20, 1e-3),
  'd24': published(24, 1e-4),
  'd30': published(30, 1e-5),
  'd36-512': published(36, 5e-6, scales=SCALES_512, shared_adaln=True),
  # Small ones: same modules, for a laptop.
  'digits': Config(3, 96, 3, scales=(1, 2, 3, 4), vocab=128, channels=8, classes=10, gamma=0.1),
  'smoke': Config(2, 32, 2, scales=(1, 2, 4), vocab=32, channels=4, classes=10, gamma=0.1),
}


class Model(nn.Module):
  """A prompt is a class, int32 [B]. `forward` is teacher forcing; `prefill` and `extend` give the
  same numbers scale by scale, with a cache."""

  c: Config

  def setup(self):
    c = self.c
    init = normal(1 / math.sqrt(3 * c.width))
    self.blocks = decoder.scan_blocks(decoder.Block, c)
    table = lambda name, *shape: self.param(
      name, with_axes(init, 'VD' if len(shape) > 1 else 'D'), shape
    )
    self.classes = table('classes', c.classes + 1, c.width)
    self.levels = self.param('levels', with_axes(init, 'sD'), (len(c.scales), c.width))
    self.positions = self.param('positions', with_axes(init, 'LD'), (c.length, c.width))
    self.start = table('start', c.width)
    self.words = Einsum('BLC,CD->BLD', (c.channels, c.width), bias='D', init=init)
    if c.shared_adaln:
      self.shared = decoder.AdaLN(6, c.width, (1.0,) * 6, 1 / math.sqrt(3 * c.width))
    self.head_ada = decoder.AdaLN(2, c.width, (0.5,) * 2, 1 / math.sqrt(3 * c.width))
    self.head = Einsum(
      'BLD,DV->BLV',
      (c.width, c.vocab),
      bias='V',
      init=normal(0.02 / math.sqrt(3 * c.width)),
      out=jnp.float32,
    )

  def __call__(self, label_B, inputs_BLC, drop_path_BX2=None):
    return self.logits(*self.forward(label_B, inputs_BLC, drop_path_BX2))

  def unconditional(self, label):
    """The prompt that stands for none."""
    return jnp.full_like(label, self.c.classes)

  def condition(self, label_B):
    """(class embedding [B, D], what the layers are conditioned on, head_B2D)."""
    class_BD = gather(self.classes.astype(self.c.dtype), 'VD', 'VD')[label_B]
    return (
      class_BD,
      self.shared(class_BD) if self.c.shared_adaln else class_BD,
      self.head_ada(class_BD),
    )

  def embed(self, start, inputs_BLC):
    """x_BLD of tokens start, start + 1, ... (start > 0), from the tokenizer's inputs."""
    stop = start + inputs_BLC.shape[1]
    return self.words(inputs_BLC.astype(self.c.dtype)) + self.place_embedding(start, stop)

  def place_embedding(self, start, stop):
    """[1, L, D]: embeddings of scale and position of tokens start .. stop - 1."""
    level_L = masks.scale_index(self.c.scales)[start:stop]
    return (self.levels[level_L] + self.positions[start:stop]).astype(self.c.dtype)[None]

  def forward(self, label_B, inputs_BLC, drop_path_BX2=None, n_detached=0):
    """(x_BLD, head_B2D) of tokens 0 .. L-1, from the inputs of tokens 1 .. L-1, of all scales or
    the first few.

    drop_path_BX2: factors of each row, layer and branch, 0 or 1 / share that is kept; None: no
    drop. n_detached: so many of the last rows have no gradient."""
    class_BD, cond, head_B2D = self.condition(label_B)
    x_B1D = (class_BD + self.start.astype(class_BD.dtype)[None])[:, None] + self.place_embedding(
      0, 1
    )
    x_BLD = jnp.concatenate([x_B1D, self.embed(1, inputs_BLC)], 1)
    return decoder.teacher_forced(self.blocks, x_BLD, cond, head_B2D, drop_path_BX2, n_detached)

  def prefill(self, label_B):
    """(logits_B1V of the first scale, which only the label decides, the cache)."""
    class_BD, cond, head_B2D = self.condition(label_B)
    x_B1D = (class_BD + self.start.astype(class_BD.dtype)[None])[:, None] + self.place_embedding(
      0, 1
    )
    x_B1D, new_kv = decoder.apply_layers(self.blocks, x_B1D, cond, None, None, False, True)
    cache = caches.Cache(
      ((new_kv['k'], new_kv['v']),), None, {'ada': new_kv['ada'], 'head': head_B2D}
    )
    return self.logits(x_B1D, head_B2D), cache

  def extend(self, inputs_BLC, cache, scale):
    """(logits of scale number `scale` > 0 from its inputs, the cache with it)."""
    begin, stop = self.c.offsets[scale : scale + 2]
    assert (cache.length, inputs_BLC.shape[1]) == (begin, stop - begin)
    prefix = {'segments': caches.freeze(cache).shared, 'ada': cache.prompt_state['ada']}
    x_BLD, new_kv = decoder.apply_layers(
      self.blocks, self.embed(begin, inputs_BLC), None, prefix, None, False, True
    )
    return self.logits(x_BLD, cache.prompt_state['head']), caches.append(
      cache, (new_kv['k'], new_kv['v'])
    )

  def logits(self, x_BLD, head_B2D):
    """float32 logits_BLV of hidden states after all layers, any slice of positions."""
    return self.head_logits(self.before_head(x_BLD, head_B2D))

  def before_head(self, x_BLD, head_B2D):
    """What `head_logits` reads of hidden states."""
    return decoder.before_head(x_BLD, head_B2D, self.c.dtype)

  def head_logits(self, y_BLD):
    """float32 logits_BLV; y_BLD may be any slice of positions."""
    return self.head(y_BLD)


def init(model, key):
  """Boxed parameters (each knows its letters). The base weights do not depend on adapters."""
  return decoder.init_params(
    model, key, jnp.zeros(1, jnp.int32), jnp.zeros((1, model.c.length - 1, model.c.channels))
  )


def torch_layouts(c):
  """Of the official state dict, by itself or in a checkpoint of the official trainer."""
  return (TorchLayout(torch_table(c), torch_constants(c), nested_at=('trainer/var_wo_ddp',)),)


def torch_table(c):
  """{our name: (their key, pattern)}, see types.TorchLayout."""
  table = {'classes': ('class_emb.weight', 'V D -> V D'), 'positions': ('pos_1LC', '1 L D -> L D')}
  table |= decoder.TORCH | decoder.torch_block('blocks', 'blocks.{X}', 'attn')
  if c.l2_norm:
    table['blocks/temperature'] = ('blocks.{X}.attn.scale_mul_1H11', '1 N 1 1 -> N')
  if c.shared_adaln:
    return table | decoder.SHARED_ADALN | {'blocks/ada': ('blocks.{X}.ada_gss', '1 1 c D -> c D')}
  return table | {
    'blocks/ada/lin/w': ('blocks.{X}.ada_lin.1.weight', '(c d) D -> D c d'),
    'blocks/ada/lin/b': ('blocks.{X}.ada_lin.1.bias', '(c d) -> c d'),
  }


def torch_constants(c):
  """Buffers of the official state dict, which only the config decides."""
  level_L = masks.scale_index(c.scales)
  bias = np.where(masks.causal_by_scale(c.scales), 0.0, -np.inf).astype(np.float32)
  return {'lvl_1L': level_L[None].astype(np.int64), 'attn_bias_for_masking': bias[None, None]} | {
    f'blocks.{i}.attn.zero_k_bias': np.zeros(c.width, np.float32) for i in range(c.depth)
  }


def flops(c, row):
  """{'': FLOPs of one forward pass} over one row, a types.RowShape of whole scales. A multiply-add
  is two.

  Attention is counted block-causally: a token of scale i meets the keys of scales <= i alone.
  """
  L, skip = row.picture_tokens, row.skip
  dense = 2 * c.depth * (4 + 2 * c.mlp_ratio) * c.width**2 * (L - skip)
  dense += 2 * c.depth * (10 + 2 * c.mlp_ratio) * c.lora_rank * c.width * (L - skip)
  scales = [(a, b) for a, b in bounds(c.scales) if skip <= a < L]
  attention = c.depth * sum(4 * c.width * (b - a) * b for a, b in scales)
  ends = 2 * c.width * (c.vocab * (L - skip) + c.channels * (L - max(skip, 1)))
  adaln = 2 * c.width**2 * (6 * (1 if c.shared_adaln else c.depth) + 2)
  return {'': dense + attention + ends + adaln * (not skip)}
