"""Small Qwen2 and Qwen2-VL models, what they are given, and pictures; NumPy only. Weights: fill.py,
by their keys.
"""

import fill
import numpy as np

TEXT = {
  'untied': dict(depth=2, width=32, heads=4, kv_heads=2, mlp=48, vocab=96, tied=False, theta=1e4),
  'tied': dict(
    depth=3, width=32, heads=2, kv_heads=1, mlp=40, vocab=80, tied=True, theta=1e6, eps=1e-5
  ),
}
LM = dict(depth=2, width=32, heads=4, kv_heads=2, mlp=48, vocab=96, sections=(2, 1, 1))
VISION = dict(depth=2, width=32, heads=2, out=32)
PAD, START, END = 90, 88, 89  # tokens of pictures
# The first two are not resized: versions of Pillow differ by a grey level.
PICTURES = {
  (56, 84): {},
  (28, 112): {},
  (60, 90): {},
  (30, 100): {},
  (250, 167): dict(max_pixels=28 * 28 * 20),
  (20, 25): dict(min_pixels=28 * 28 * 9),
}
LENGTHS = (12, 7, 9)
PROMPTS, NEW = ((3, 14, 15, 92, 65), (35, 89, 79, 3, 23, 84, 62, 64, 33)), 12


def picture(height, width):
  """uint8 [height, width, 3]."""
  return np.rint(
    (fill.image(height + width, (height, width)).transpose(1, 2, 0) + 1) * 127.5
  ).astype(np.uint8)


def tokens(vocab):
  """int32 [3, 12], of which LENGTHS are true, and the others 0."""
  t_BL = (
    np.random.default_rng(vocab).integers(1, vocab, (len(LENGTHS), max(LENGTHS))).astype(np.int32)
  )
  return np.where(np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None], t_BL, 0)


def dialogues(embeddings):
  """Two rows of tokens around pictures of so many embeddings each: both pictures; the second and
  more text.
  """
  first, second = ([START, *[PAD] * n, END] for n in embeddings)
  words = np.random.default_rng(5).integers(1, 80, 40).tolist()
  return [*words[:3], *first, *words[3:5], *second, *words[5:9]], [
    *words[9:11],
    *second,
    *words[11:20],
  ]


def weights(key, shape):
  return fill.fill(key, shape) + np.float32(
    key.endswith('ln_q.weight')
  )  # a norm without the word in its name
