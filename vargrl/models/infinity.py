"""Infinity: bitwise next-scale prediction from text (https://arxiv.org/abs/2412.04431), as in
FoundationVision/Infinity.

A token is e bits, each of which has its own two logits. The decoder is conditioned on one vector
(AdaLN, and the first token) and on a memory (cross-attention). By itself it makes both from text
features: `forward`, `prefill`, `extend`. A unified model brings its own, and the hidden states of
each scale: `decode`, `first_scale`, `next_scale`."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vargrl.models import decoder, infinity_block, infinity_flops, infinity_layouts, schedules
from vargrl.models.layers import attention
from vargrl.models.layers import cache as caches
from vargrl.models.layers.einsum import Einsum, normal, with_axes
from vargrl.models.layers.masks import scale_index
from vargrl.parallel.rules import gather, shard
from vargrl.types import offsets


@dataclasses.dataclass(frozen=True)
class Config:
  """The sizes of a decoder of bits.

  Attributes:
    depth, width, heads: layers, width of the hidden states, heads of attention.
    scales: sides or pairs (h, w), coarse to fine; or what models/schedules.py reads, such as '1M'
      or '0.25M 1.333' (height / width).
    bits: of a token.
    text: width of the text features of a prompt.
    text_length: how many learned features stand for no text; a prompt has at most as many.
    levels: how many scales there are embeddings for.
    grid: (h, w) that the positions of all scales are spread over; () is schedules.grid(scales).
    mlp_ratio: width of the MLP in units of `width`, rounded to a multiple of 256.
    gamma: standard deviation of the residual gates at init, in units of 1 / sqrt(width).
    export_chunks: how many chunks an exported file has its blocks in.
    dtype: of activations; parameters are float32.
    attention: 'dense', or 'splash' on a TPU, see layers/splash.py.
    remat: 'blocks' or 'dots' keep less for the backward pass, see stack.REMAT.
    lora_rank: of the adapters beside q, k, v, o, fc1, fc2 and those of cross-attention; 0: none.
    lora_alpha: adapters count alpha / rank.
  """

  depth: int
  width: int
  heads: int
  scales: tuple | str = '1M'
  bits: int = 32
  text: int = 2048
  text_length: int = 512
  levels: int = 15
  grid: tuple = ()
  mlp_ratio: int = 4
  gamma: float = 5e-6
  export_chunks: int = 8
  dtype: str = 'float32'
  attention: str = 'dense'
  remat: str = 'none'
  lora_rank: int = 0
  lora_alpha: float = 0.0

  ada_std = 1e-3  # of scales and shifts at init, as a factor
  shared_adaln, l2_norm = True, True  # options of decoder.Block that VAR has

  def __post_init__(self):
    object.__setattr__(self, 'scales', schedules.scales(self.scales))
    decoder.check(self)
    if self.head_dim % 4:
      raise ValueError(
        f'policy: width {self.width} with {self.heads} heads, a head of a multiple of 4 expected'
      )
    if self.width % self.pool_heads:
      raise ValueError(
        f'policy: width {self.width}, expected a multiple of the {self.pool_heads} heads that read '
        'text'
      )
    if len(self.scales) > self.levels:
      raise ValueError(
        f'policy.scales: {len(self.scales)} scales, at most {self.levels} (policy.levels) expected'
      )
    if self.depth % self.export_chunks:
      raise ValueError(
        f'policy.export_chunks: {self.export_chunks}, expected a divisor of the depth {self.depth}'
      )

  @property
  def rope_grid(self):
    """(h, w); not a field that is filled in, as other scales have another."""
    return tuple(self.grid) or schedules.grid(self.scales)

  @property
  def length(self):
    return self.offsets[-1]

  @property
  def channels(self):
    """Of an input."""
    return self.bits

  @property
  def mlp(self):
    return 256 * max(1, round(self.mlp_ratio * self.width / 256))  # half to even

  @property
  def pool_heads(self):
    return max(1, self.text // (64 if self.width > 4096 else 128))

  @property
  def head_dim(self):
    return self.width // self.heads

  @property
  def offsets(self):
    return offsets(self.scales)

  @property
  def lora(self):
    return {'rank': self.lora_rank, 'alpha': self.lora_alpha}


NET = 'models.nets.next_scale'  # how rollouts and scores call it
torch_layouts, flops = infinity_layouts.torch_layouts, infinity_flops.flops
HUB = 'FoundationVision/Infinity'  # where the published files are, on huggingface.co

# https://github.com/FoundationVision/Infinity; '125m' to '8.8b' are those of its paper, '2b' and
# '8b' were released.
SIZES = {
  '125m': Config(12, 768, 8, export_chunks=4),
  '360m': Config(16, 1152, 12, export_chunks=4),
  '940m': Config(24, 1536, 16, export_chunks=4),
  '2.3b': Config(32, 2080, 20, export_chunks=4),
  '4.7b': Config(40, 2688, 24, export_chunks=4),
  '8.8b': Config(48, 3360, 28, export_chunks=4),
  '2b': Config(32, 2048, 16),
  '8b': Config(40, 3584, 28, bits=56),
  # Small ones: same modules, for a laptop.
  'small': Config(
    6, 192, 4, (1, 2, 3, 4, 6, 8), 16, text=64, text_length=64, gamma=0.1, export_chunks=1
  ),
  'smoke': Config(2, 32, 2, (1, 2, (4, 2)), 4, text=16, text_length=8, gamma=0.1, export_chunks=1),
}


class Model(nn.Module):
  """A prompt is {'text': features [B, S, d], 'length': int32 [B]}: the first `length` features
  count, or, where it is negative, as many learned ones that stand for no text. `forward` is teacher
  forcing; `prefill` and `extend` give the same numbers scale by scale, with a cache."""

  c: Config

  def setup(self):
    c, std = self.c, 1 / math.sqrt(3 * self.c.width)
    init, heads = normal(std), (c.text, c.pool_heads, c.width // c.pool_heads)
    self.blocks = decoder.scan_blocks(infinity_block.Block, c)
    uncond = normal(1.2 / math.sqrt(c.text))
    self.uncond = self.param('uncond', with_axes(uncond, 'sD'), (c.text_length, c.text))
    self.text_norm = self.param('text_norm', with_axes(nn.initializers.ones, 'D'), (c.text,))
    self.pool_q = self.param('pool_q', with_axes(init, 'NH'), heads[1:])
    self.pool_k = Einsum('BSD,DNH->BNSH', heads, init=init)
    self.pool_v = Einsum('BSD,DNH->BNSH', heads, bias='NH', init=init)
    self.pool_o = Einsum('BNLH,NHD->BLD', (*heads[1:], c.width), bias='D', init=init)
    self.memory1 = Einsum('BSD,DF->BSF', (c.text, c.width), bias='F', init=init)
    self.memory2 = Einsum('BSF,FD->BSD', (c.width, c.width), bias='D', init=init)
    self.levels = self.param('levels', with_axes(init, 'sD'), (c.levels, c.width))
    self.start = self.param('start', with_axes(init, 'D'), (c.width,))
    self.words = Einsum('BLC,CD->BLD', (c.bits, c.width), bias='D', init=init)
    self.shared = decoder.AdaLN(6, c.width, (1.0,) * 6, std)
    self.head_ada = decoder.AdaLN(2, c.width, (c.ada_std,) * 2, std)
    self.head = Einsum(
      'BLD,DV->BLV',
      (c.width, 2 * c.bits),
      bias='V',
      init=normal(0.02 * std),
      out=jnp.float32,
    )

  def __call__(self, prompt, inputs_BLC, drop_path_BX2=None):
    return self.logits(*self.forward(prompt, inputs_BLC, drop_path_BX2))

  # Text features to what the layers are conditioned on.

  def unconditional(self, prompt):
    """The prompt that stands for none, of the same length."""
    return prompt | {'length': -abs(prompt['length'])}

  def read_prompt(self, prompt):
    """(cond_BD, memory_BSD, mask_BS) of a prompt."""
    S = prompt['text'].shape[1]
    if S > self.c.text_length:
      raise ValueError(
        f'prompt: {S} text features, at most {self.c.text_length} (policy.text_length) expected'
      )
    length_B1 = prompt['length'][:, None]
    text_BSD = jnp.where(length_B1[..., None] < 0, self.null_text(S), prompt['text'])
    mask_BS = jnp.arange(S)[None] < abs(length_B1)
    return self.condition(text_BSD, mask_BS), self.memory(text_BSD), mask_BS

  def null_text(self, length):
    """The learned features that stand for no text, [1, length, d]."""
    return gather(self.uncond, 'sD', 'sD')[None, :length]

  def normalize_text(self, text_BSD):
    """RMSNorm, in float32."""
    text_BSD = text_BSD.astype(jnp.float32)
    text_BSD *= jax.lax.rsqrt(jnp.mean(text_BSD**2, -1, keepdims=True) + 1e-6)
    return (text_BSD * gather(self.text_norm, 'd', 'D')[None, None]).astype(self.c.dtype)

  def condition(self, text_BSD, mask_BS):
    """cond_BD: text features, pooled by attention of one learned query."""
    y_BSD = self.normalize_text(text_BSD)
    q_BN1H = self.pool_q.astype(y_BSD.dtype)[None, :, None].repeat(len(y_BSD), 0)
    segment = self.pool_k(y_BSD), self.pool_v(y_BSD), mask_BS[:, None]
    return self.pool_o(attention.attend(q_BN1H, [segment], scale=q_BN1H.shape[-1] ** -0.5))[:, 0]

  def memory(self, text_BSD):
    """memory_BSD of text features, for cross-attention."""
    return self.memory2(jax.nn.gelu(self.memory1(self.normalize_text(text_BSD)), approximate=True))

  # Hidden states to logits.

  def first_input(self, cond_BD):
    """The hidden state of the first token, x_B1D."""
    return (cond_BD + self.start.astype(cond_BD.dtype)[None])[:, None]

  def embed(self, inputs_BLC):
    """The hidden states of the others, from the tokenizer's inputs."""
    return self.words(inputs_BLC.astype(self.c.dtype))

  def add_scale_embedding(self, x_BLD, start):
    """x_BLD, of tokens start, start + 1, ..., with the embeddings of their scales added."""
    level_L = scale_index(self.c.scales)[start : start + x_BLD.shape[1]]
    return x_BLD + self.levels[level_L].astype(x_BLD.dtype)[None]

  def decode(self, x_BLD, cond_BD, memory, masks, drop_path_BX2=None, n_detached=0):
    """Teacher forcing on hidden states of whole scales, from the first one: (x_BLD, head_B2D), see
    decoder.teacher_forced. memory, masks: parts [B, S, D] with bool [B, S]."""
    cond = {
      'ada': self.shared(cond_BD),
      'memory': tuple(shard(part, 'BSD') for part in memory),
      'mask': tuple(masks),
    }
    return decoder.teacher_forced(
      self.blocks,
      self.add_scale_embedding(x_BLD, 0),
      cond,
      self.head_ada(cond_BD),
      drop_path_BX2,
      n_detached,
    )

  def first_scale(self, x_B1D, cond_BD, memory, masks):
    """(logits [B, 1, e, 2] of the first scale, the cache, which has the memory's keys and
    values)."""
    cond = {'ada': self.shared(cond_BD), 'memory': tuple(memory), 'mask': tuple(masks)}
    x_B1D, new_kv = decoder.apply_layers(
      self.blocks, self.add_scale_embedding(x_B1D, 0), cond, None, None, False, True
    )
    prompt_state = {
      'ada': new_kv['ada'],
      'memory': new_kv['memory'],
      'mask': cond['mask'],
      'head': self.head_ada(cond_BD),
    }
    return self.logits(x_B1D, prompt_state['head']), caches.Cache(
      ((new_kv['k'], new_kv['v']),), None, prompt_state
    )

  def next_scale(self, x_BLD, cache, scale):
    """(logits of scale number `scale` > 0 from its hidden states, the cache with it)."""
    begin, stop = self.c.offsets[scale : scale + 2]
    assert (cache.length, x_BLD.shape[1]) == (begin, stop - begin)
    prompt_state = cache.prompt_state
    prefix = {
      'segments': caches.freeze(cache).shared,
      'ada': prompt_state['ada'],
      'memory': prompt_state['memory'],
    }
    x_BLD, new_kv = decoder.apply_layers(
      self.blocks,
      self.add_scale_embedding(x_BLD, begin),
      {'mask': prompt_state['mask']},
      prefix,
      None,
      False,
      True,
    )
    return self.logits(x_BLD, prompt_state['head']), caches.append(
      cache, (new_kv['k'], new_kv['v'])
    )

  # A prompt and the tokenizer's inputs to logits.

  def forward(self, prompt, inputs_BLC, drop_path_BX2=None, n_detached=0):
    """(x_BLD, head_B2D) of tokens 0 .. L-1, from the inputs of tokens 1 .. L-1, of all scales or
    the first few.

    drop_path_BX2: factors of each row, layer and branch, 0 or 1 / share that is kept; None: no
    drop. n_detached: so many of the last rows have no gradient."""
    cond_BD, memory_BSD, mask_BS = self.read_prompt(prompt)
    x_BLD = jnp.concatenate([self.first_input(cond_BD), self.embed(inputs_BLC)], 1)
    return self.decode(x_BLD, cond_BD, (memory_BSD,), (mask_BS,), drop_path_BX2, n_detached)

  def prefill(self, prompt):
    """(logits of the first scale, which only the prompt decides, the cache)."""
    cond_BD, memory_BSD, mask_BS = self.read_prompt(prompt)
    return self.first_scale(self.first_input(cond_BD), cond_BD, (memory_BSD,), (mask_BS,))

  def extend(self, inputs_BLC, cache, scale):
    """(logits of scale number `scale` > 0 from its inputs, the cache with it)."""
    return self.next_scale(self.embed(inputs_BLC), cache, scale)

  def logits(self, x_BLD, head_B2D):
    """float32 [B, L, e, 2] of hidden states after all layers, any slice of positions."""
    return self.head_logits(self.before_head(x_BLD, head_B2D))

  def before_head(self, x_BLD, head_B2D):
    """What `head_logits` reads of hidden states."""
    return decoder.before_head(x_BLD, head_B2D, self.c.dtype)

  def head_logits(self, y_BLD):
    """float32 [B, L, e, 2]: of each bit, those of 0 and of 1."""
    logits_BLV = self.head(y_BLD)
    return logits_BLV.reshape(*logits_BLV.shape[:2], self.c.bits, 2)


def prompt_features(c):
  """Batch features a prompt is built from: {name: (per-row shape, dtype)}."""
  return {'text': ((c.text_length, c.text), 'float32'), 'length': ((), 'int32')}


def init(model, key):
  """Boxed parameters (each knows its letters). The base weights do not depend on adapters."""
  c, one = model.c, jnp.ones(1, jnp.int32)
  # Of two scales: no weight depends on how many there are.
  inputs_BLC = jnp.zeros((1, offsets(c.scales[:2])[-1] - 1, c.bits))
  return decoder.init_params(
    model, key, {'text': jnp.zeros((1, 1, c.text)), 'length': one}, inputs_BLC
  )
