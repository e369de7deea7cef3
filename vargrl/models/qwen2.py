"""Qwen2 and Qwen2.5 (https://arxiv.org/abs/2407.10671), and the language model of Qwen2-VL.

The model reads embeddings, which need not come from its own table: a unified model puts those of
images among them."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vargrl.models.layers import attention, lora, masks, norms, rope, stack
from vargrl.models.layers import cache as caches
from vargrl.models.layers.einsum import Einsum, gathered_once, normal, with_axes
from vargrl.parallel.rules import gather, shard
from vargrl.types import TorchLayout


@dataclasses.dataclass(frozen=True)
class Config:
  """The sizes of a language model.

  Attributes:
    depth, width, mlp: layers, width of the hidden states, of the MLP.
    heads, kv_heads: of queries, and of keys and values.
    vocab: rows of the table of embeddings, padding included.
    tied: the head is the table of embeddings.
    theta: base of RoPE's frequencies.
    sections: of M-RoPE (https://arxiv.org/abs/2409.12191): how many pairs of a head's channels are
      rotated by time, by row and by column; (): all by time.
    eps: of RMSNorm.
    dtype: of activations; parameters are float32.
    attention: 'dense', or 'splash' on a TPU, see layers/splash.py.
    remat: 'blocks' or 'dots' keep less for the backward pass, see stack.REMAT.
    lora_rank: of the adapters beside q, k, v, o, gate, up and down; 0: none.
    lora_alpha: adapters count alpha / rank.
  """

  depth: int
  width: int
  heads: int
  kv_heads: int
  mlp: int
  vocab: int
  tied: bool = False
  theta: float = 1e6
  sections: tuple[int, ...] = ()
  eps: float = 1e-6
  dtype: str = 'float32'
  attention: str = 'dense'
  remat: str = 'none'
  lora_rank: int = 0
  lora_alpha: float = 0.0

  def __post_init__(self):
    if self.width % (2 * self.heads) or self.heads % self.kv_heads:
      raise ValueError(
        f'policy: width {self.width}, {self.heads} heads, {self.kv_heads} kv_heads; expected '
        'heads of '
        'even size, and a multiple of kv_heads'
      )
    if self.sections and (len(self.sections) != 3 or 2 * sum(self.sections) != self.head_dim):
      raise ValueError(
        f'policy.sections: {self.sections}, expected three numbers of sum {self.head_dim // 2}'
      )
    stack.check_options(self)

  next_token = -1  # no token ends a text to begin a picture

  @property
  def head_dim(self):
    return self.width // self.heads

  @property
  def lora(self):
    return {'rank': self.lora_rank, 'alpha': self.lora_alpha}


MROPE = (16, 24, 24)
# https://huggingface.co/Qwen: config.json of Qwen2-* and Qwen2.5-*, of which those from 14B on say
# eps 1e-6 where they end in -Instruct; the last three are within Qwen2-VL-*. Width, mlp and vocab
# include what was padded.
SIZES = {
  '0.5b': Config(24, 896, 14, 2, 4864, 151936, tied=True),
  '1.5b': Config(28, 1536, 12, 2, 8960, 151936, tied=True),
  '3b': Config(36, 2048, 16, 2, 11008, 151936, tied=True),
  '7b': Config(28, 3584, 28, 4, 18944, 152064),
  '14b': Config(48, 5120, 40, 8, 13824, 152064, eps=1e-5),
  '32b': Config(64, 5120, 40, 8, 27648, 152064, eps=1e-5),
  '72b': Config(80, 8192, 64, 8, 29568, 152064, eps=1e-5),
  'vl-2b': Config(28, 1536, 12, 2, 8960, 151936, tied=True, sections=MROPE),
  'vl-7b': Config(28, 3584, 28, 4, 18944, 152064, sections=MROPE),
  'vl-72b': Config(80, 8192, 64, 8, 29568, 152064, sections=MROPE),
  'tiny': Config(3, 128, 4, 2, 384, 128, tied=True, theta=1e4),  # with the characters of ASCII
  'smoke': Config(2, 32, 4, 2, 64, 512, theta=1e4, sections=(2, 1, 1)),
}
NET = 'models.nets.language'  # how rollouts and scores call it
HUB = 'Qwen/Qwen2.5-7B'  # of the published folders, on huggingface.co


class Block(nn.Module):
  """A layer: grouped-query attention and gated MLP, each after RMSNorm."""

  c: Config

  @nn.compact
  def __call__(self, x_BLD, layer, shared, private, segment_masks, angles, segment_BL, return_kv):
    """(x_BLD, the layer's own keys and values or None).

    layer: int32, which one it is. shared: pairs of keys and values of the tokens before, of this
    layer; private: a pair of all layers, or None; segment_masks: one for each of them, see `stack`.
    angles: what rope.rope_angles returns. segment_BL: None, or the sequence that each token is of.
    """
    c, L = self.c, x_BLD.shape[1]
    N, K, H, D, F = c.heads, c.kv_heads, c.head_dim, c.width, c.mlp
    einsum = lambda name, eqn, *shape, bias='': Einsum(
      eqn, shape, bias=bias, init=normal(0.02), name=name, **c.lora
    )
    y_BLD = norms.RMSNorm(c.eps, name='norm1')(x_BLD)
    q_BNLH = rope.apply_rope(einsum('q', 'BLD,DNH->BNLH', D, N, H, bias='NH')(y_BLD), angles)
    k_BKLH = rope.apply_rope(einsum('k', 'BLD,DKH->BKLH', D, K, H, bias='KH')(y_BLD), angles)
    v_BKLH = einsum('v', 'BLD,DKH->BKLH', D, K, H, bias='KH')(y_BLD)
    mask = np.tri(L, dtype=bool) if L > 1 else None
    if segment_BL is not None:
      mask = masks.SegmentMask(np.tri(L, dtype=bool), segment_BL)
    if private is not None:
      shared = (
        *shared,
        tuple(jax.lax.dynamic_index_in_dim(a, layer, keepdims=False) for a in private),
      )
    segments = [(*pair, mask_BLS) for pair, mask_BLS in zip(shared, segment_masks, strict=True)] + [
      (k_BKLH, v_BKLH, mask)
    ]
    o_BNLH = attention.attend(q_BNLH, segments, scale=1 / math.sqrt(H), kernel=c.attention)
    x_BLD += einsum('o', 'BNLH,NHD->BLD', N, H, D)(o_BNLH)

    y_BLD = norms.RMSNorm(c.eps, name='norm2')(x_BLD)
    gate_BLF, up_BLF = (
      einsum('gate', 'BLD,DF->BLF', D, F)(y_BLD),
      einsum('up', 'BLD,DF->BLF', D, F)(y_BLD),
    )
    x_BLD += einsum('down', 'BLF,FD->BLD', F, D)(jax.nn.silu(gate_BLF) * up_BLF)
    return x_BLD, (k_BKLH, v_BKLH) if return_kv else None


class Model(nn.Module):
  """`forward` is teacher forcing; `prefill` and `extend` give the same numbers with a cache. All
  are causal.

  position: int32 [B, L], or [3, B, L] by time, row and column (data/patches.py), which only a model
  with `sections` distinguishes."""

  c: Config

  def setup(self):
    c, skip = self.c, nn.broadcast
    self.blocks = stack.scan_layers(
      Block, c, c.depth, (0, 0, skip, skip, skip, skip, skip), static=(8,)
    )
    self.tokens = self.param('tokens', with_axes(normal(0.02), 'VD'), (c.vocab, c.width))
    self.norm = norms.RMSNorm(c.eps)
    if not c.tied:
      self.head = Einsum('BLD,DV->BLV', (c.width, c.vocab), init=normal(0.02), out=jnp.float32)

  def __call__(self, t_BL, position=None, segment_BL=None):
    """float32 logits_BLV of text. position: None is 0, 1, 2 ..."""
    return self.logits(self.forward(self.embed(t_BL), position, segment_BL))

  def embed(self, t_BL):
    """t_BL -> x_BLD."""
    return self.table()[t_BL]

  def table(self):
    """The table of embeddings [V, D], gathered over the mesh."""
    return gather(self.tokens.astype(self.c.dtype), 'VD', 'VD')

  def stack(self, x_BLD, position, cache, segment_BL, return_kv):
    """(x_BLD after all layers and the final norm, keys and values of all layers or None)."""
    c, size = self.c, self.c.head_dim // 2
    shared, private, segment_masks = (), None, ()
    if cache is not None:
      # An allocated private segment is passed as a whole: as a scan input, vmap would transpose the
      # cache at every token. The others are scan inputs: their gradients come layer by layer.
      shared, private = cache.pairs, None
      if cache.count is not None:
        shared, private = cache.shared, cache.private
      segment_masks = cache.masks
    if position is None:
      position = jnp.arange(x_BLD.shape[1])[None]
    axis_h = (
      np.repeat(np.arange(3), c.sections)
      if c.sections and position.ndim == 3
      else np.zeros(size, int)
    )
    angles = rope.rope_angles(
      position if position.ndim == 3 else position[None],
      axis_h,
      rope.rope_frequencies(size, c.theta),
    )
    x_BLD, new_kv = self.blocks(
      shard(x_BLD.astype(c.dtype), 'BLD'),
      jnp.arange(c.depth),
      shared,
      private,
      segment_masks,
      angles,
      segment_BL,
      return_kv,
    )
    return self.norm(x_BLD), new_kv

  def forward(self, x_BLD, position=None, segment_BL=None, cache=None):
    """x_BLD after the final norm. segment_BL: the sequence that a token is of, where rows hold
    several; a token sees its own alone, and padding is one too. cache: of tokens before, which all
    see."""
    return self.stack(x_BLD, position, cache, segment_BL, False)[0]

  def prefill(self, x_BLD, position=None, valid_BL=None, cache=None):
    """(x_BLD after the final norm, the cache with these tokens as one more read-only segment).
    valid_BL: bool, False at padding, which comes last."""
    x_BLD, new = self.stack(x_BLD, position, cache, None, True)
    return x_BLD, caches.append_prefix(new, valid_BL, cache)

  def extend(self, x_BLD, position, cache):
    """(x_BLD after the final norm, the cache with these tokens in its private segment)."""
    x_BLD, new = self.stack(x_BLD, position, cache, None, True)
    return x_BLD, caches.append(cache, new)

  def logits(self, x_BLD):
    """float32 logits_BLV of hidden states after the final norm, any slice of positions."""
    if not self.c.tied:
      return self.head(x_BLD.astype(self.c.dtype))
    table_VD = self.table()
    y_BLV = jnp.einsum(
      'BLD,VD->BLV', x_BLD.astype(table_VD.dtype), table_VD, preferred_element_type=jnp.float32
    )
    return shard(y_BLV, 'BLV')


def init(model, key):
  """Boxed parameters (each knows its letters). The base weights do not depend on adapters."""
  return lora.init_params(
    lambda c, key: Model(c).init(key, jnp.zeros((1, 1), jnp.int32))['params'], model.c, key
  )


def gather_head(c, params):
  """params whose table and head are gathered over the mesh once, for several calls of `logits` and
  `embed`."""
  params = params | {'tokens': gathered_once(params['tokens'], 'VD', c.dtype)}
  return (
    params
    if c.tied
    else params | {'head': {'w': gathered_once(params['head']['w'], 'DV', c.dtype)}}
  )


def splice_embeddings(x_BLD, index_BL, image_BTD):
  """x_BLD with embeddings image_BTD in the place of some tokens. index_BL: int32, which of the T,
  or -1 where a token of text stays."""
  rows_BLD = jnp.take_along_axis(
    image_BTD.astype(x_BLD.dtype), jnp.maximum(index_BL, 0)[..., None], 1
  )
  return jnp.where(index_BL[..., None] >= 0, rows_BLD, x_BLD)


def torch_layouts(c):
  """Of transformers' Qwen2ForCausalLM, and of the language model of a Qwen2-VL in both spellings;
  see types.TorchLayout."""
  more = (
    r'.*\.rotary_emb\.inv_freq',
    r'(model\.)?visual\..*',
    *((r'lm_head\.weight',) if c.tied else ()),
  )
  tables = [torch_table(c, theirs=theirs) for theirs in ('model.', 'model.language_model.')]
  return tuple(TorchLayout(table, ignored=more, config=hf_config(c)) for table in tables)


def torch_table(c, ours='', theirs='model.'):
  """{our name: (their key, pattern)}. ours, theirs: prefixes of the names."""
  mine, layer = f'{ours}blocks', f'{theirs}layers.{{X}}'
  table = {
    f'{ours}tokens': (f'{theirs}embed_tokens.weight', 'V D -> V D'),
    f'{ours}norm/scale': (f'{theirs}norm.weight', 'D -> D'),
    f'{mine}/norm1/scale': (f'{layer}.input_layernorm.weight', 'D -> D'),
    f'{mine}/norm2/scale': (f'{layer}.post_attention_layernorm.weight', 'D -> D'),
    f'{mine}/o/w': (f'{layer}.self_attn.o_proj.weight', 'D (N H) -> N H D'),
    f'{mine}/gate/w': (f'{layer}.mlp.gate_proj.weight', 'F D -> D F'),
    f'{mine}/up/w': (f'{layer}.mlp.up_proj.weight', 'F D -> D F'),
    f'{mine}/down/w': (f'{layer}.mlp.down_proj.weight', 'D F -> F D'),
  }
  for name, N in (('q', 'N'), ('k', 'K'), ('v', 'K')):
    key = f'{layer}.self_attn.{name}_proj'
    table |= {
      f'{mine}/{name}/w': (f'{key}.weight', f'({N} H) D -> D {N} H'),
      f'{mine}/{name}/b': (f'{key}.bias', f'({N} H) -> {N} H'),
    }
  return table if c.tied else table | {f'{ours}head/w': ('lm_head.weight', 'V D -> D V')}


def hf_config(c):
  """What config.json of a checkpoint folder says of a model of this Config."""
  config = {
    'architectures': ['Qwen2ForCausalLM'],
    'model_type': 'qwen2',
    'hidden_act': 'silu',
    'hidden_size': c.width,
    'num_hidden_layers': c.depth,
    'num_attention_heads': c.heads,
    'num_key_value_heads': c.kv_heads,
    'intermediate_size': c.mlp,
    'vocab_size': c.vocab,
    'tie_word_embeddings': c.tied,
    'rms_norm_eps': c.eps,
    'rope_theta': c.theta,
    'use_sliding_window': False,
    'max_position_embeddings': 32768,
    'max_window_layers': c.depth,
    'sliding_window': 32768,
    'attention_dropout': 0.0,
  }
  if not c.sections:
    return config
  return config | {'rope_scaling': {'type': 'mrope', 'mrope_section': [*c.sections]}}


def flops(c, row):
  """{'': FLOPs of one forward pass} over one row, a types.RowShape. A multiply-add is two."""
  return {'': text_flops(c, row.length, row.text)}


def text_flops(c, length, predicted):
  """FLOPs of one forward pass over `length` tokens, each of which attends to itself and the ones
  before it. predicted: for how many of them the next token is predicted."""
  D, H, r = c.width, c.head_dim, c.lora_rank
  dense = D * H * 2 * (c.heads + c.kv_heads) + 3 * D * c.mlp
  dense += r * (4 * D + 2 * H * (c.heads + c.kv_heads) + 3 * (D + c.mlp))
  attention = c.heads * H * (length + 1)  # L x L / 2, twice
  return 2 * (length * c.depth * (dense + attention) + predicted * D * c.vocab)
