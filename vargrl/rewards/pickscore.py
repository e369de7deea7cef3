"""PickScore (https://arxiv.org/abs/2305.01569): a CLIP tuned on what people picked of two
pictures.
"""

import numpy as np

from vargrl.rewards import towers

HOST = False
FILES = ('file', 'tokenizer')


def judge(*, file, size, dtype, tokenizer, template, names):
  """r = exp(logit_scale) * cosine(image, prompt) / 26: 17 .. 24 as published, hence about 0.65 ..
  0.92.

  The division is that of https://github.com/yifan123/flow_grpo. Options as in rewards/clip.py.
  """
  source = towers.source(
    file=file, size=size, dtype=dtype, download={'h14': 'yuvalkirstain/PickScore_v1'}
  )

  def scale(mesh):
    return np.exp(np.float64(towers.load_params(source, 'logit_scale', mesh))) / 26

  return towers.text_judge(
    source, tokenizer=tokenizer, template=template, names=names, how='pil', scale=scale
  )
