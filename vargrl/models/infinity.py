"""Infinity: bitwise next-scale prediction from text (https://arxiv.org/abs/2412.04431), as in
FoundationVision/Infinity.

A token is e bits, each of which has its own two logits. The decoder is conditioned on one vector
(AdaLN, and the first token) and on a memory (cross-attention). Alone, both come of given text
features: `forward`, `prefill`, `extend`. A unified model gives them itself, and the hidden states
of each scale: `decode`, `open`, `proceed`. Its memory has parts, so that what a group of rollouts
has in common stays one copy."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vargrl.models import decoder, schedules
from vargrl.models.layers import attention, masks, norms
from vargrl.models.layers import cache as caches
from vargrl.models.layers.einsum import Einsum, normal, with_axes
from vargrl.models.var import WRAPPERS
from vargrl.parallel.rules import gather, shard
from vargrl.types import TorchLayout, bounds, offsets


@dataclasses.dataclass(frozen=True)
class Config:
  depth: int
  width: int
  heads: int
  scales: tuple | str = (
    '1M'  # or '0.25M 1.333' (height / width), see models/schedules.py; or sides and pairs (h, w)
  )
  bits: int = 32  # of a token
  text: int = 2048  # width of the text features
  text_length: int = (
    512  # as many learned features stand for no text, so many tokens a prompt may have
  )
  levels: int = 15  # how many scales the table of their embeddings has room for
  # (h, w) that the positions of all scales are spread over; (): schedules.grid(scales)
  grid: tuple = ()
  mlp_ratio: int = 4
  gamma: float = 5e-6  # scale of the residual gates at init
  export_chunks: int = 8  # that the blocks of an exported file lie in
  dtype: str = 'float32'
  attention: str = 'dense'  # or 'splash', on a TPU: see layers/splash.py
  remat: str = 'none'  # 'blocks' or 'dots' keep less for the backward pass; see stack.REMAT
  lora_rank: int = (
    0  # > 0: adapters beside q k v o fc1 fc2 and those of cross-attention; see Einsum
  )
  lora_alpha: float = 0.0  # they count alpha / rank

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
    return tuple(self.grid) or schedules.grid(self.scales)  # not kept: other scales have another

  @property
  def length(self):
    return self.offsets[-1]

  @property
  def channels(self):
    return self.bits  # of an input

  @property
  def mlp(self):
    return 256 * max(1, round(self.mlp_ratio * self.width / 256))  # half to even

  @property
  def pool_heads(self):
    return max(1, self.text // (64 if self.width > 4096 else 128))

  @property
  def ada_std(self):
    return 1e-3

  @property
  def shared_adaln(self):
    return True

  @property
  def l2_norm(self):
    return True

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
HUB = 'FoundationVision/infinity'  # where the published files are, on huggingface.co

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


@functools.lru_cache(8)
def rope_grid_angles(c):
  """float32 [L, H]: the angle that a position turns each channel of a head by; the first half of
  the channels is apply_rope_2d by rows, the other by columns, two neighbours alike."""
  quarter = c.head_dim // 4
  theta = 10000.0 ** (-np.arange(quarter) / quarter)
  angle_L2Q = schedules.token_positions(c.scales, c.rope_grid)[:, :, None] * theta[None, None]
  return angle_L2Q.reshape(len(angle_L2Q), -1).repeat(2, 1).astype(np.float32)


def apply_rope_2d(x_BNLH, angle_LH):
  """Each pair of neighbouring channels (a, b) -> (a cos - b sin, a sin + b cos)."""
  even = (np.arange(x_BNLH.shape[-1]) % 2 == 0)[None, None, None]
  other_BNLH = jnp.where(even, -jnp.roll(x_BNLH, -1, -1), jnp.roll(x_BNLH, 1, -1))
  return x_BNLH * np.cos(angle_LH)[None, None] + other_BNLH * np.sin(angle_LH)[None, None]


class Cross(nn.Module):
  """x_BLD + what it reads from a memory, without a gate."""

  c: Config

  def setup(self):
    c, std = self.c, 1 / math.sqrt(3 * self.c.width)
    shape = c.width, c.heads, c.head_dim
    einsum = lambda eqn, shape, std, bias='': Einsum(
      eqn, shape, bias=bias, init=normal(std), **c.lora
    )
    self.scale = self.param('scale', with_axes(nn.initializers.ones, 'D'), (c.width,))
    self.bias = self.param('bias', with_axes(nn.initializers.zeros, 'D'), (c.width,))
    self.q = einsum('BLD,DNH->BNLH', shape, std, 'NH')
    self.k, self.v = einsum('BSD,DNH->BNSH', shape, std), einsum('BSD,DNH->BNSH', shape, std, 'NH')
    self.o = einsum('BNLH,NHD->BLD', (*shape[1:], c.width), std / math.sqrt(2 * c.depth), 'D')

  def keys(self, memory_BSD):
    """(k_BNSH, v_BNSH) of a memory."""
    return self.k(memory_BSD), self.v(memory_BSD)

  def __call__(self, x_BLD, keys, masks):
    """keys, masks: of the parts of a memory."""
    scale, bias = (gather(w, 'd', 'D')[None, None] for w in (self.scale, self.bias))
    y_BLD = (norms.layer_norm(x_BLD) * scale + bias).astype(x_BLD.dtype)
    parts = [(*pair, mask_BS[:, None]) for pair, mask_BS in zip(keys, masks, strict=True)]
    return x_BLD + self.o(attention.attend(self.q(y_BLD), parts, scale=self.c.head_dim**-0.5))


class Block(nn.Module):
  c: Config

  def setup(self):
    self.core, self.cross = decoder.Block(self.c), Cross(self.c)

  def __call__(self, *arguments):
    return decoder.apply_streams(self.layer, *arguments)

  def layer(self, x_BLD, cond, prefix, keep_B2, masked, keep_cache):
    """cond: {'ada' [B, 6, D], 'memory' ([B, S, D], ...), 'mask' ([B, S], ...)}. With a cache,
    prefix has the modulation and the memory's keys and values, and cond the masks alone."""
    known, past = prefix is not None, () if prefix is None else prefix['segments']
    ada_B6D = prefix['ada'] if known else self.core.modulation(cond['ada'])
    memory = prefix['memory'] if known else tuple(self.cross.keys(part) for part in cond['memory'])
    start, parts = sum(k.shape[2] for k, _ in past), jnp.split(ada_B6D, 6, 1)
    apply_rope = functools.partial(
      apply_rope_2d, angle_LH=rope_grid_angles(self.c)[start : start + x_BLD.shape[1]]
    )
    x_BLD, (k, v) = self.core.attention(x_BLD, parts[::2], past, keep_B2, masked, apply_rope)
    x_BLD = self.core.mlp(self.cross(x_BLD, memory, cond['mask']), parts[1::2], keep_B2)
    kept = {'k': k, 'v': v} if keep_cache else None
    if keep_cache and not known:
      kept |= {'ada': ada_B6D, 'memory': memory}
    return x_BLD, kept


class Model(nn.Module):
  """A prompt is {'text': features [B, S, d], 'length' [B]: so many of them count; negative, so many
  learned ones do in their place, which stand for no text}. forward: teacher forcing. prefill +
  extend: the same numbers, scale by scale, with a cache."""

  c: Config

  def setup(self):
    c, std = self.c, 1 / math.sqrt(3 * self.c.width)
    init, heads = normal(std), (c.text, c.pool_heads, c.width // c.pool_heads)
    self.blocks = decoder.scan_blocks(Block, c)
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

  # What is read of a text.

  def unconditional(self, prompt):
    """The prompt that stands for none: of the same length, as the learned features are cut to
    it.
    """
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
    """cond_BD: what one learned query finds in text features."""
    y_BSD = self.normalize_text(text_BSD)
    q_BN1H = self.pool_q.astype(y_BSD.dtype)[None, :, None].repeat(len(y_BSD), 0)
    segment = self.pool_k(y_BSD), self.pool_v(y_BSD), mask_BS[:, None]
    return self.pool_o(attention.attend(q_BN1H, [segment], scale=q_BN1H.shape[-1] ** -0.5))[:, 0]

  def memory(self, text_BSD):
    """memory_BSD of text features."""
    return self.memory2(jax.nn.gelu(self.memory1(self.normalize_text(text_BSD)), approximate=True))

  # Hidden states in.

  def first_input(self, cond_BD):
    """The first token's hidden state, x_B1D."""
    return (cond_BD + self.start.astype(cond_BD.dtype)[None])[:, None]

  def embed(self, inputs_BLC):
    """The hidden states of the others, from the tokenizer's inputs."""
    return self.words(inputs_BLC.astype(self.c.dtype))

  def add_scale_embedding(self, x_BLD, start):
    """The embedding of their scales added to tokens start, start + 1, ..."""
    level_L = masks.scale_index(self.c.scales)[start : start + x_BLD.shape[1]]
    return x_BLD + self.levels[level_L].astype(x_BLD.dtype)[None]

  def decode(self, x_BLD, cond_BD, memory, masks, drop_path_BX2=None, n_detached=0):
    """Teacher forcing on hidden states of whole scales, from the first one -> (x_BLD, head_B2D);
    see decoder.teacher_forced. memory: parts [B, S, D] with masks [B, S]."""
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
    """The first scale: its logits [B, 1, e, 2] and the cache, which keeps the memory's keys and
    values.
    """
    cond = {'ada': self.shared(cond_BD), 'memory': tuple(memory), 'mask': tuple(masks)}
    x_B1D, kept = decoder.apply_layers(
      self.blocks, self.add_scale_embedding(x_B1D, 0), cond, None, None, False, True
    )
    prompt_state = {
      'ada': kept['ada'],
      'memory': kept['memory'],
      'mask': cond['mask'],
      'head': self.head_ada(cond_BD),
    }
    return self.logits(x_B1D, prompt_state['head']), caches.Cache(
      ((kept['k'], kept['v']),), None, prompt_state
    )

  def next_scale(self, x_BLD, cache, scale):
    """Logits of scale number `scale` > 0 from its hidden states, and the cache extended by it."""
    begin, stop = self.c.offsets[scale : scale + 2]
    assert (cache.length, x_BLD.shape[1]) == (begin, stop - begin)
    prompt_state = cache.prompt_state
    prefix = {
      'segments': caches.freeze(cache).shared,
      'ada': prompt_state['ada'],
      'memory': prompt_state['memory'],
    }
    x_BLD, new = decoder.apply_layers(
      self.blocks,
      self.add_scale_embedding(x_BLD, begin),
      {'mask': prompt_state['mask']},
      prefix,
      None,
      False,
      True,
    )
    return self.logits(x_BLD, prompt_state['head']), caches.append(cache, (new['k'], new['v']))

  # Text and codes in.

  def forward(self, prompt, inputs_BLC, drop_path_BX2=None, n_detached=0):
    """inputs_BLC: tokens 1 .. L-1 of the schedule, or fewer whole scales. -> (x_BLD, head_B2D).

    drop_path_BX2: drop-path factors of each row, layer and branch (0 or 1 / kept share); None: no
    drop. n_detached: so many of the last rows have no gradient."""
    cond_BD, memory_BSD, mask_BS = self.read_prompt(prompt)
    x_BLD = jnp.concatenate([self.first_input(cond_BD), self.embed(inputs_BLC)], 1)
    return self.decode(x_BLD, cond_BD, (memory_BSD,), (mask_BS,), drop_path_BX2, n_detached)

  def prefill(self, prompt):
    """The first scale, which only the prompt decides: see `open`."""
    cond_BD, memory_BSD, mask_BS = self.read_prompt(prompt)
    return self.first_scale(self.first_input(cond_BD), cond_BD, (memory_BSD,), (mask_BS,))

  def extend(self, inputs_BLC, cache, scale):
    return self.next_scale(self.embed(inputs_BLC), cache, scale)

  def logits(self, x_BLD, head_B2D):
    """float32 [B, L, e, 2]; x_BLD may be any slice of positions."""
    return self.head_logits(self.before_head(x_BLD, head_B2D))

  def before_head(self, x_BLD, head_B2D):
    """What `head_logits` reads of hidden states."""
    return decoder.before_head(x_BLD, head_B2D, self.c.dtype)

  def head_logits(self, y_BLD):
    """float32 [B, L, e, 2]: of each bit, those of 0 and of 1."""
    logits_BLV = self.head(y_BLD)
    return logits_BLV.reshape(*logits_BLV.shape[:2], self.c.bits, 2)


def prompt_features(c):
  """{feature of the data: (shape of a row, dtype)}: what a prompt is made of."""
  return {'text': ((c.text_length, c.text), 'float32'), 'length': ((), 'int32')}


def init(model, key):
  """Boxed parameters (each knows its letters). With adapters, the others are those that the key
  gives without.
  """
  c, one = model.c, jnp.ones(1, jnp.int32)
  inputs_BLC = jnp.zeros(
    (1, offsets(c.scales[:2])[-1] - 1, c.bits)
  )  # of two scales: weights do not know how many
  return decoder.init_params(
    model, key, {'text': jnp.zeros((1, 1, c.text)), 'length': one}, inputs_BLC
  )


def torch_layouts(c):
  """The official state dict, its blocks in chunks or not, alone or in a checkpoint of the official
  trainer; see types.TorchLayout. The temperatures are [1, H, 1, 1], or [1, 1, H, 1] where another
  attention was built."""
  size = c.depth // c.export_chunks
  chunked = (
    f'block_chunks.{{X/{size}}}.module.{{X%{size}}}',
    lambda i: f'block_chunks.{i // size}.module.{i % size}',
  )
  plain = 'blocks.{X}', lambda i: f'blocks.{i}'
  return tuple(
    TorchLayout(
      torch_table(c, block, shape),
      torch_constants(c, numbered),
      ignored=('lvl_1L', 'attn_bias_for_masking'),
      nested_at=('trainer/gpt_fsdp', 'trainer/gpt_ema_fsdp'),
      prefixes=WRAPPERS,
      resized=('cfg_uncond',),
    )
    for block, numbered in (chunked, plain)
    for shape in ('1 N 1 1', '1 1 N 1')
  )


def torch_table(c, block, shape):
  cross, pool = f'{block}.ca', 'text_proj_for_sos.ca'
  return (
    decoder.TORCH
    | decoder.SHARED_ADALN
    | decoder.torch_block('blocks/core', block, 'sa')
    | {
      'uncond': ('cfg_uncond', 's D -> s D'),
      'memory1/w': ('text_proj_for_ca.0.weight', 'F D -> D F'),
      'memory1/b': ('text_proj_for_ca.0.bias', 'F -> F'),
      'memory2/w': ('text_proj_for_ca.2.weight', 'D F -> F D'),
      'memory2/b': ('text_proj_for_ca.2.bias', 'D -> D'),
      'text_norm': ('text_norm.weight', 'D -> D'),
      'pool_q': (f'{pool}.mat_q', '1 N H -> N H'),
      'pool_{k,v}/w': (f'{pool}.mat_kv.weight', '(g N H) D -> g D N H'),
      'pool_v/b': (f'{pool}.v_bias', '(N H) -> N H'),
      'pool_o/w': (f'{pool}.proj.weight', 'D (N H) -> N H D'),
      'pool_o/b': (f'{pool}.proj.bias', 'D -> D'),
      'blocks/core/ada': (f'{block}.ada_gss', '1 1 c D -> c D'),
      'blocks/core/temperature': (f'{block}.sa.scale_mul_1H11', f'{shape} -> N'),
      'blocks/cross/scale': (f'{block}.ca_norm.weight', 'D -> D'),
      'blocks/cross/bias': (f'{block}.ca_norm.bias', 'D -> D'),
      'blocks/cross/q/w': (f'{cross}.mat_q.weight', '(N H) D -> D N H'),
      'blocks/cross/q/b': (f'{cross}.mat_q.bias', '(N H) -> N H'),
      'blocks/cross/{k,v}/w': (f'{cross}.mat_kv.weight', '(g N H) D -> g D N H'),
      'blocks/cross/v/b': (f'{cross}.v_bias', '(N H) -> N H'),
      'blocks/cross/o/w': (f'{cross}.proj.weight', 'D (N H) -> N H D'),
      'blocks/cross/o/b': (f'{cross}.proj.bias', 'D -> D'),
    }
  )


def torch_constants(c, numbered):
  """Buffers of the official state dict: the biases that keys do not have."""
  names = ['text_proj_for_sos.ca'] + [
    f'{numbered(i)}.{part}' for i in range(c.depth) for part in ('sa', 'ca')
  ]
  return {f'{name}.zero_k_bias': np.zeros(c.width, np.float32) for name in names}


def flops(c, row):
  """{'': multiply-adds x 2 of one forward pass} over one row, a types.RowShape of whole scales,
  with a prompt of `text_length` tokens."""
  return {'': picture_flops(c, row.picture_tokens, row.skip)}


def picture_flops(c, length, skip=0, context=0):
  """Multiply-adds x 2 of one forward pass over the first `length` tokens of a picture, of which
  `skip` are known, with a prompt of `text_length`, or the memory of `context` tokens that another
  model has made.

  Attention is counted block-causally: a token of scale i meets the keys of scales <= i alone.
  """
  count, new = context or c.text_length, length - skip
  dense = 2 * c.depth * (6 * c.width + 2 * c.mlp) * c.width * new
  memory = 4 * count * c.depth * c.width**2
  if not context:
    memory += 2 * count * (c.width**2 + 3 * c.text * c.width)
  rank = 2 * c.depth * c.lora_rank
  adapters = rank * (14 * c.width + 2 * c.mlp) * new + rank * 4 * c.width * count * (not skip)
  scales = [(a, b) for a, b in bounds(c.scales) if skip <= a < length]
  attention = c.depth * sum(4 * c.width * (b - a) * (b + count) for a, b in scales)
  ends = 2 * c.width * c.bits * (3 * new - (not skip))
  once = memory + 2 * c.width**2 * 8
  return dense + adapters + attention + ends + once * (not skip)
