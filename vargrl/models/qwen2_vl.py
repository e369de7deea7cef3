"""Qwen2-VL (https://arxiv.org/abs/2409.12191): a language model (qwen2.py) that reads what a tower
(vit.py) sees.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vargrl.models import qwen2, vit
from vargrl.models.layers import stack
from vargrl.types import TorchLayout


@dataclasses.dataclass(frozen=True)
class Config:
  """Both parts; the other options are those of both, or of the language model alone where the tower
  has no such option. Raises ValueError for parts that do not fit together."""

  text: qwen2.Config
  image: vit.Config
  dtype: str = 'float32'
  attention: str = 'dense'
  remat: str = 'none'
  lora_rank: int = 0
  lora_alpha: float = 0.0

  def __post_init__(self):
    if self.text.width != self.image.out:
      raise ValueError(
        f'policy: the tower gives embeddings of width {self.image.out}, the language model has '
        f'{self.text.width}'
      )
    stack.check_options(self)

  @property
  def lm(self):
    knobs = ('dtype', 'attention', 'remat', 'lora_rank', 'lora_alpha')
    return dataclasses.replace(self.text, **{name: getattr(self, name) for name in knobs})

  @property
  def vision(self):
    return dataclasses.replace(self.image, dtype=self.dtype, remat=self.remat)


SIZES = {
  '2b': Config(qwen2.SIZES['vl-2b'], vit.SIZES['2b']),
  '7b': Config(qwen2.SIZES['vl-7b'], vit.SIZES['7b']),
  '72b': Config(qwen2.SIZES['vl-72b'], vit.SIZES['72b']),
  'smoke': Config(qwen2.SIZES['smoke'], vit.SIZES['smoke']),
}
HUB = 'Qwen/Qwen2-VL-7B-Instruct'  # of the published folders, on huggingface.co


class Model(nn.Module):
  """A part alone: qwen2.Model(c.lm).apply({'params': params['lm']}, ...), and so
  vit.Model(c.vision).
  """

  c: Config

  def setup(self):
    self.lm, self.vision = qwen2.Model(self.c.lm), vit.Model(self.c.vision)

  def __call__(self, t_BL, position_3BL, place_BL, patch_ILp, position_aIL, seen_IL=None):
    """float32 logits_BLV. I images of L patches each (see vit.Model); place_BL: which of all their
    embeddings stands for a token, one image after the other, -1 where none."""
    image_TD = self.vision(patch_ILp, position_aIL, seen_IL).reshape(-1, self.c.lm.width)
    image_BTD = jnp.broadcast_to(image_TD[None], (len(t_BL), *image_TD.shape))
    x_BLD = qwen2.splice_embeddings(self.lm.embed(t_BL), place_BL, image_BTD)
    return self.lm.logits(self.lm.forward(x_BLD, position_3BL))


def init(model, key):
  """Boxed parameters (each knows its letters)."""
  c = model.c
  return {
    'lm': qwen2.init(qwen2.Model(c.lm), key),
    'vision': vit.init(vit.Model(c.vision), jax.random.fold_in(key, 1)),
  }


# Tokens of the published models, whose code looks for them in config.json.
TOKENS = {
  'bos': 151643,
  'eos': 151645,
  'vision_start': 151652,
  'vision_end': 151653,
  'vision': 151654,
  'image': 151655,
  'video': 151656,
}


def hf_config(c):
  """config.json of a Hugging Face folder with these weights; with the special tokens' ids where the
  vocabulary is as large as that of the published models."""
  found = qwen2.hf_config(c.lm) | {
    'architectures': ['Qwen2VLForConditionalGeneration'],
    'model_type': 'qwen2_vl',
    'vision_config': vit.hf_config(c.vision),
  }
  if c.lm.vocab <= max(TOKENS.values()):
    return found
  return found | {f'{name}_token_id': number for name, number in TOKENS.items()}


def torch_layouts(c):
  """Of transformers' Qwen2VLForConditionalGeneration: as the hub has it, and as it is since
  transformers 4.52.
  """
  spellings = ('model.', 'visual.'), ('model.language_model.', 'model.visual.')
  tables = [
    qwen2.torch_table(c.lm, 'lm/', text) | vit.torch_table('vision/', image)
    for text, image in spellings
  ]
  more = (r'.*\.rotary_(pos_)?emb\.inv_freq', *((r'lm_head\.weight',) if c.lm.tied else ()))
  return tuple(TorchLayout(table, ignored=more, config=hf_config(c)) for table in tables)
