"""VARGPT-v1.1 (https://arxiv.org/abs/2504.02949): a language model (qwen2.py) that reads pictures
through a tower (vit.py) and draws others through a decoder (infinity.py), all in one sequence.

A picture that is drawn has a place in the language model's sequence for each token of its scales.
The hidden states that the decoder alone would start from are projected into the language model
(`into`); its output at these places is projected back (`out`), and is what the decoder's layers
work on. Their memory is the language model's output at all places before the picture. The language
model treats the places of a picture as those of text: causal, one after the other."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vargrl.io import numbers
from vargrl.models import infinity, infinity_flops, qwen2, qwen2_vl, vit
from vargrl.models.layers import norms, stack
from vargrl.models.layers.einsum import Einsum, normal, torch_dense, with_axes
from vargrl.parallel.rules import gather
from vargrl.types import TorchLayout


@dataclasses.dataclass(frozen=True)
class Config:
  """The sizes of the parts, and the options that they share.

  Attributes:
    text: of the language model.
    image: of the tower that reads pictures.
    image_decoder: of the decoder that draws them.
    image_tokens: ids of the tokens that begin and end a drawn picture, and that stand for a place
      of it.
    image_pad_to: a drawn picture has a multiple of so many places in training; 128 with the
      released weights.
    scales: of drawn pictures; (): those of `image_decoder`.
    dtype, attention, remat, lora_rank, lora_alpha: of all parts that have such an option.
  """

  text: qwen2.Config
  image: vit.Config
  image_decoder: infinity.Config
  image_tokens: tuple[int, int, int] = (151657, 151658, 151659)
  image_pad_to: int = 1
  scales: tuple | str = ()
  dtype: str = 'float32'
  attention: str = 'dense'
  remat: str = 'none'
  lora_rank: int = 0
  lora_alpha: float = 0.0

  def __post_init__(self):
    object.__setattr__(self, 'scales', self.scales or self.image_decoder.scales)
    object.__setattr__(self, 'scales', self.decoder.scales)  # of a schedule that was named
    if self.text.width != self.image.out:
      raise ValueError(
        f'policy: the tower gives embeddings of width {self.image.out}, the language model has '
        f'{self.text.width}'
      )
    numbers.check_number('policy.image_pad_to', self.image_pad_to, least=1, whole=True)
    stack.check_options(self)

  @property
  def lm(self):
    return dataclasses.replace(self.text, **self.shared_options(self.text))

  @property
  def vision(self):
    return dataclasses.replace(self.image, **self.shared_options(self.image))

  @property
  def decoder(self):
    return dataclasses.replace(
      self.image_decoder, scales=self.scales, **self.shared_options(self.image_decoder)
    )

  @property
  def next_token(self):
    """The id of the token that ends a text and begins a picture."""
    return self.image_tokens[0]

  @property
  def bits(self):
    return self.image_decoder.bits

  @property
  def depth(self):
    """Of the layers that stochastic depth drops."""
    return self.image_decoder.depth

  @property
  def image_places(self):
    """Places of a picture in the language model's sequence, in training."""
    return -(-self.decoder.length // self.image_pad_to) * self.image_pad_to

  def shared_options(self, part):
    """{option: value} of those that a part's Config has."""
    names = ('dtype', 'attention', 'remat', 'lora_rank', 'lora_alpha')
    return {name: getattr(self, name) for name in names if hasattr(part, name)}


LM = qwen2.SIZES
SIZES = {
  # As released: Qwen2-VL-7B-Instruct and Infinity-2B.
  'vargpt-v1.1': Config(
    LM['vl-7b'], vit.SIZES['7b'], dataclasses.replace(infinity.SIZES['2b'], scales='0.25M')
  ),
  # With Qwen2.5-0.5B, its heads of 64 rotated by M-RoPE in the proportions of Qwen2-VL, and
  # Infinity's smallest decoder.
  '0.5b': Config(
    dataclasses.replace(LM['0.5b'], sections=(8, 12, 12)),
    dataclasses.replace(vit.SIZES['2b'], out=896),
    dataclasses.replace(infinity.SIZES['125m'], scales='0.06M', text=768),
  ),
  # For a laptop, with the words of vargrl/scenes: pictures of 32 x 32 pixels are read as 4 x 4
  # embeddings.
  'small': Config(
    qwen2.Config(3, 128, 4, 2, 384, 256, tied=True, theta=1e4, sections=(4, 6, 6)),
    vit.Config(2, 96, 4, 128, patch=4, frames=1),
    infinity.Config(5, 160, 4, (1, 2, 4), 32, text=160, text_length=64, gamma=0.1, export_chunks=1),
    image_tokens=(6, 7, 8),
  ),
  'smoke': Config(
    dataclasses.replace(LM['smoke'], vocab=256),
    vit.Config(1, 32, 2, 32, patch=4, frames=1),
    dataclasses.replace(infinity.SIZES['smoke'], scales=(1, 2, 4)),
    image_tokens=(6, 7, 8),
  ),
}
NET = 'models.nets.unified'  # how rollouts and scores call it
HUB = 'VARGPT-family/VARGPT-v1.1'  # of the published folder, on huggingface.co
BUNDLED = {'tokenizer': 'vae_local.'}  # other weights in it, with the prefix of their keys


class Bridge(nn.Module):
  """An MLP from the hidden states of one part to those of another. scale and bias are parameters of
  a norm that the released code has and never applies."""

  ins: int
  outs: int
  dtype: str

  @nn.compact
  def __call__(self, x_BLD):
    init = normal(0.02)
    self.param('scale', with_axes(nn.initializers.ones, 'D'), (self.ins,))
    self.param('bias', with_axes(nn.initializers.zeros, 'D'), (self.ins,))
    x_BLF = Einsum('BLD,DF->BLF', (self.ins, self.ins), bias='F', init=init, name='fc1')(
      x_BLD.astype(self.dtype)
    )
    x_BLF = jax.nn.gelu(x_BLF, approximate=False)
    return Einsum('BLF,FD->BLD', (self.ins, self.outs), bias='D', init=init, name='fc2')(x_BLF)


class Model(nn.Module):
  """A part can be applied by itself: qwen2.Model(c.lm) to params['lm'], vit.Model(c.vision) to
  params['vision'], infinity.Model(c.decoder) to params['drawer'].

  A packed row holds sequences of text and pictures, see data/dialogue/pack.py: {'tokens' [B, S],
  'position' [B, 3, S], 'segment' [B, S]; of pictures that are read 'patches' [B, T, p],
  'patch_position' [B, 2, T], 'patch_segment' [B, T], 'image_index' [B, S]; of I pictures to draw
  'image_start' [B, I], the place where each begins, -1 if there is none, and 'context' [B, I, M],
  the places that its decoder attends to, padded with -1}."""

  c: Config

  def setup(self):
    c = self.c
    self.lm, self.vision, self.drawer = (
      qwen2.Model(c.lm),
      vit.Model(c.vision),
      infinity.Model(c.decoder),
    )
    self.into, self.out = (
      Bridge(*sizes, c.dtype)
      for sizes in ((c.image_decoder.width, c.text.width), (c.text.width, c.image_decoder.width))
    )
    self.start = self.param('start', with_axes(normal(0.02), 'D'), (c.image_decoder.text,))

  def __call__(self, row, inputs_BILC):
    """float32 logits of text [B, S, V] and of bits [B I, L, e, 2]; used to make all parameters."""
    h_BSD = self.forward(row, inputs_BILC)
    return self.lm.logits(h_BSD), self.drawer.logits(*self.decode(row, h_BSD))

  def embed_prompt(self, row):
    """x_BSD: the tokens, and in their places the pictures that are read."""
    x_BSD = self.lm.embed(row['tokens'])
    if 'patches' not in row or not row['patches'].shape[1]:
      return x_BSD
    image_BTD = self.vision(
      row['patches'], jnp.moveaxis(row['patch_position'], 1, 0), row['patch_segment']
    )
    return qwen2.splice_embeddings(x_BSD, row['image_index'], image_BTD)

  def condition(self, dropped_B):
    """cond_BD of the decoder, which no prompt changes: a learned one, or that of no text where
    dropped_B is True, as the released code drops conditions."""
    start_1D, nothing_1D = gather(self.start, 'd', 'D')[None], self.drawer.null_text(1)[0]
    text_BD = jnp.where(dropped_B[:, None], nothing_1D, start_1D)
    return self.drawer.condition(text_BD[:, None], jnp.ones((len(text_BD), 1), bool))

  def image_start(self, cond_BD):
    """The language model's embedding at a picture's first place, [B, 1, D]."""
    return self.into(self.drawer.first_input(cond_BD))

  def image_inputs(self, inputs_BLC):
    """The language model's embeddings at its other places, from the tokenizer's inputs."""
    return self.into(self.drawer.embed(inputs_BLC))

  def to_decoder(self, h_BLD):
    """The language model's output as the decoder's hidden states, or as its memory."""
    return self.out(h_BLD)

  def forward(self, row, inputs_BILC, dropped_BI=None):
    """h_BSD, the language model's output of packed rows. inputs_BILC: the tokenizer's, of tokens
    1 .. L-1 of the pictures to draw. dropped_BI: bool, see `condition`; None: no picture's."""
    c, x_BSD = self.c, self.embed_prompt(row)
    B, I, _, C = inputs_BILC.shape
    if I:
      cond_BD = self.cond(B, I, dropped_BI)
      x_BLD = jnp.concatenate(
        [self.drawer.first_input(cond_BD), self.drawer.embed(inputs_BILC.reshape(B * I, -1, C))], 1
      )
      x_BLD = self.into(jnp.pad(x_BLD, ((0, 0), (0, c.image_places - x_BLD.shape[1]), (0, 0))))
      place_BIS = jnp.arange(x_BSD.shape[1])[None, None] - row['image_start'][..., None]
      within_BIS = (
        (place_BIS >= 0) & (place_BIS < c.image_places) & (row['image_start'][..., None] >= 0)
      )
      place_BIS += c.image_places * jnp.arange(I)[None, :, None]
      place_BS = jnp.where(within_BIS, place_BIS, -1).max(1)
      x_BSD = qwen2.splice_embeddings(x_BSD, place_BS, x_BLD.reshape(B, I * c.image_places, -1))
    return self.lm.forward(x_BSD, jnp.moveaxis(row['position'], 1, 0), row['segment'])

  def decode(self, row, h_BSD, dropped_BI=None, drop_path_BX2=None):
    """(x_BLD, head_B2D) of the B I pictures to draw, for the decoder's `logits`. drop_path_BX2: of
    each picture, see infinity.Model.forward."""
    B, I, M = row['context'].shape
    at_BL = (
      jnp.maximum(row['image_start'], 0).reshape(B, I, 1)
      + jnp.arange(self.c.decoder.length)[None, None]
    )
    x_BLD = self.out(take_positions(h_BSD, at_BL.reshape(B, -1))).reshape(
      B * I, self.c.decoder.length, -1
    )
    memory_BSD = self.out(
      take_positions(h_BSD, jnp.maximum(row['context'], 0).reshape(B, -1))
    ).reshape(B * I, M, -1)
    mask_BS = (row['context'] >= 0).reshape(B * I, M)
    return self.drawer.decode(
      x_BLD, self.cond(B, I, dropped_BI), (memory_BSD,), (mask_BS,), drop_path_BX2
    )

  def cond(self, B, I, dropped_BI):
    """cond_BD of B I pictures."""
    return self.condition(jnp.zeros(B * I, bool) if dropped_BI is None else dropped_BI.reshape(-1))


def take_positions(h_BSD, at_BL):
  """h_BLD at the places at_BL of h_BSD."""
  return jnp.take_along_axis(h_BSD, at_BL[..., None], 1)


def init(model, key):
  """Boxed parameters (each knows its letters)."""
  c, keys = model.c, jax.random.split(key, 6)
  x_BLD = lambda width: jnp.zeros((1, 1, width))
  bridge = lambda key, *sizes: Bridge(*sizes, c.dtype).init(key, x_BLD(sizes[0]))['params']
  start = with_axes(normal(0.02), 'D')(keys[5], (c.image_decoder.text,), jnp.float32)
  return {
    'lm': qwen2.init(qwen2.Model(c.lm), keys[0]),
    'vision': vit.init(vit.Model(c.vision), keys[1]),
    'drawer': infinity.init(infinity.Model(c.decoder), keys[2]),
    'start': start,
    'into': bridge(keys[3], c.image_decoder.width, c.text.width),
    'out': bridge(keys[4], c.text.width, c.image_decoder.width),
  }


def parts(c):
  """{part: (its module, its Config)} of those that may have checkpoints of their own."""
  return {'lm': (qwen2, c.lm), 'vision': (vit, c.vision), 'drawer': (infinity, c.decoder)}


def torch_layouts(c):
  """Of the released folder, see types.TorchLayout; the tokenizer in it is read by
  tokenizers/bsq.py.

  The released code reads the last row of the table of start embeddings alone; the others are zeros
  on export."""
  more = (
    r'.*\.rotary_(pos_)?emb\.inv_freq',
    r'vae_local\..*',
    *((r'lm_head\.weight',) if c.lm.tied else ()),
  )
  drawers = infinity.torch_layouts(c.decoder)
  table = qwen2.torch_table(c.lm, 'lm/') | vit.torch_table('vision/')
  for ours, theirs in (('into', 'image_gen_projector'), ('out', 'image_gen_projector_out')):
    table |= norms.torch_norm(ours, f'{theirs}.ln_q')
    table |= torch_dense(f'{ours}/fc1', f'{theirs}.mlp.0', 'F D -> D F')
    table |= torch_dense(f'{ours}/fc2', f'{theirs}.mlp.2', 'D F -> F D')
  table |= {'start': ('sos_embedding.weight', '1 D -> D')}
  under = lambda rows: {
    f'drawer/{ours}': (f'vargpt_gen.{theirs}', pattern) for ours, (theirs, pattern) in rows.items()
  }
  constants = lambda layout: {f'vargpt_gen.{key}': value for key, value in layout.constants.items()}
  return tuple(
    TorchLayout(
      table | under(layout.table),
      constants(layout),
      ignored=more,
      resized=('vargpt_gen.cfg_uncond',),
      last_row_of={'sos_embedding.weight': c.image_tokens[0] + 1},
      config=hf_config(c),
    )
    for layout in drawers
  )


def hf_config(c):
  """What config.json of the released folder says, which is nothing of the decoder."""
  names = [f'image_gen_{part}' for part in ('start', 'end', 'pad')]
  special = {name: f'<|{name}|>' for name in names}
  special |= {f'{name}_token_id': number for name, number in zip(names, c.image_tokens)}
  return qwen2_vl.hf_config(c) | {
    'architectures': ['VARGPTQwen2VLForConditionalGeneration'],
    'model_type': 'vargpt_qwen2_vl',
    'rope_scaling': {'type': 'default', 'rope_type': 'default', 'mrope_section': [*c.lm.sections]},
    'special_tokens': special,
  }


def flops(c, row):
  """{part: FLOPs of one forward pass} over one row, a types.RowShape. A multiply-add is two.
  Patches count as if all were of one picture, and the bridges with the decoder; a prompt that rows
  share is not counted."""
  pair = (c.text.width + c.image_decoder.width) ** 2
  bridges = 2 * row.pictures * (row.picture_tokens + row.context) * pair
  drawn = infinity_flops.picture_flops(c.decoder, row.picture_tokens, context=row.context)
  return {
    'lm': qwen2.text_flops(c.lm, row.length, row.text),
    'vision': vit.flops(c.vision, row.patches) if row.patches else 0,
    'drawer': row.pictures * drawn + bridges,
  }
