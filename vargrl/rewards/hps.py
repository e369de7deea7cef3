"""HPSv2, v2.1 (https://arxiv.org/abs/2306.09341): a CLIP tuned on what people preferred; the file
says which.
"""

from vargrl.rewards import towers

HOST = False
FILES = ('file', 'tokenizer')


def judge(*, file, size, dtype, tokenizer, template, names):
  """r = cosine(image, prompt), about 0.2 .. 0.35; published tables have 100 times that.

  file: HPS_v2_compressed.pt or HPS_v2.1_compressed.pt. Options as in rewards/clip.py; the picture
  is resized without rounding, as the official scorer does."""
  download = {'h14': 'xswu/HPSv2 HPS_v2.1_compressed.pt'}
  source = towers.source(file=file, size=size, dtype=dtype, download=download)
  return towers.text_judge(
    source, tokenizer=tokenizer, template=template, names=names, how='float', scale=lambda mesh: 1.0
  )
