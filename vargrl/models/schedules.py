"""Infinity's dynamic schedules (https://arxiv.org/abs/2412.04431): scales (h, w) for each aspect
ratio and size.
"""

import re

import numpy as np

from vargrl.types import sides

# {height / width: scales of the transformer}; those of 1 / ratio are the same, transposed.
# https://github.com/FoundationVision/Infinity/blob/main/infinity/utils/dynamic_resolution.py
TALL = {
  1.0: '1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64',
  1.25: '1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56',
  1.333: '1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54',
  1.5: '1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52',
  1.75: '1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48',
  2.0: '1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45',
  2.5: '1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40',
  3.0: '1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37',
}
SIZES = {'0.06M': 7, '0.25M': 10, '0.60M': 12, '1M': 13}  # how many of the scales


def table():
  """{height / width: all its scales} of the fifteen ratios, in rising order."""
  tall = {ratio: parse(text) for ratio, text in TALL.items()}
  wide = {
    int(1000 / ratio) / 1000: tuple((w, h) for h, w in scales)
    for ratio, scales in tall.items()
    if ratio > 1
  }
  return dict(sorted((tall | wide).items()))


def parse(text):
  """'1x1 2x2' -> ((1, 1), (2, 2))."""
  return tuple(tuple(map(int, scale.split('x'))) for scale in text.split())


TABLE = table()


def scales(what):
  """The tuple of scales, each (h, w) or the side of a square, that `what` says: '0.25M' (squares),
  '0.25M 1.333' (of that height / width), '1x1 2x2 4x3', or the scales themselves. Raises ValueError
  for anything else."""
  if not isinstance(what, str) or re.fullmatch(r'\d+x\d+( \d+x\d+)*', what):
    given = (
      parse(what)
      if isinstance(what, str)
      else tuple(s if isinstance(s, int) else tuple(s) for s in what)
    )
    if not given or any(len(sides(s)) != 2 or min(sides(s)) < 1 for s in given):
      raise ValueError(
        f'scales: {what!r} found, sides or pairs (height, width) of at least 1 expected'
      )
    return given
  size, _, ratio = what.partition(' ')
  if size not in SIZES:
    raise ValueError(f'scales: {what!r} found, its size one of {", ".join(SIZES)} expected')
  try:
    return TABLE[float(ratio or 1)][: SIZES[size]]
  except (KeyError, ValueError) as e:
    raise ValueError(
      f'scales: {what!r} found, its height / width one of {", ".join(map(str, TABLE))} expected'
    ) from e


def grid(found):
  """(h, w) that the positions of all scales are spread over: the finest scale of the 1M schedule
  that these scales begin, whatever their number; their own last one, if they are of no schedule."""
  pairs = tuple(map(sides, found))
  return next(
    (s[-1] for s in TABLE.values() if pairs in [s[:n] for n in SIZES.values()]), pairs[-1]
  )


def token_positions(found, over):
  """int32 [L, 2]: row and column of each token on the grid `over`, (H, W): round(i H / h), half to
  even, in float32 as torch computes it."""

  def axis(n, N):
    return np.round(np.arange(n, dtype=np.float32) * np.float32(N / n)).astype(np.int32)

  parts = []
  for h, w in map(sides, found):
    y, x = np.meshgrid(axis(h, over[0]), axis(w, over[1]), indexing='ij')
    parts.append(np.stack([y.reshape(-1), x.reshape(-1)], -1))
  return np.concatenate(parts)
