"""CLIP score: how well the image fits a prompt of its class (https://arxiv.org/abs/2104.08718)."""

from vargrl.rewards import towers

HOST = False
FILES = ('file', 'tokenizer')


def judge(*, file, size, dtype, tokenizer, template, names, scale):
  """r = scale * cosine(image, prompt); for related pictures cosines are about 0.15 .. 0.35.

  file: folder of Hugging Face or file, in the layout of transformers or open_clip; '' for random
  weights of size 'smoke'. size: l14, h14, b32, smoke. dtype: of the blocks' products; bfloat16
  moves a cosine by about 2e-4, which matters where a group's differ by less than 5e-3. tokenizer:
  folder or file, '' for `file`'s. template: a string with {class}, or several, of which the mean is
  taken. names: see data/names.py."""
  scale, source = (
    float(scale),
    towers.source(file=file, size=size, dtype=dtype, download=towers.HUB),
  )
  return towers.text_judge(
    source, tokenizer=tokenizer, template=template, names=names, how='pil', scale=lambda mesh: scale
  )
