"""Ink to letters: the grid of cells and the letters that explain the ink best, jointly.

M numbers grids; each is a (side of a cell, top, left), in pixels."""

import functools

import numpy as np
from scipy import ndimage

from vargrl.scenes import font

STEPS = np.linspace(-0.5, 0.5, 5)  # of a cell, by which the grid's corner may be off
SCALES = (0.94, 1.0, 1.06)
BLURS = (0.0, 0.1, 0.2)  # share of a cell's ink that each neighbour has got
MAX_GRIDS = 9  # grids that are read for all blurs
DAMPING = 0.05
MIN_INK = 0.45  # share of ink from which a pixel belongs to a letter
MAX_MISFIT = 0.1  # mean square over a letter's cells and the gap after it; '?' above it


def read_word(ink_yx, cell):
  """The word written in one line; '' if nothing is, '?' for letters that cannot be read.

  ink_yx: share of ink of each pixel. cell: the side of a cell, in pixels."""
  dark_yx = ink_yx > MIN_INK
  if dark_yx.sum() < 3 * cell**2:
    return ''
  (top, bottom), (left, right) = (np.flatnonzero(dark_yx.any(axis))[[0, -1]] for axis in (1, 0))
  if bottom - top + 1 > 1.5 * font.HEIGHT * cell or bottom - top + 1 < 0.6 * font.HEIGHT * cell:
    return '?'
  width = max(1, round((right - left + 1) / cell)) + 1
  grids = [
    (scale * cell, top + dy * cell, left + dx * cell)
    for scale in SCALES
    for dy in STEPS
    for dx in STEPS
  ]
  cells_Myx = sample_cells(ink_yx, np.array(grids), width)
  inside_M = cells_Myx[:, 1:-1, 1:-1].sum((1, 2))
  missed_M = inside_M.max() - inside_M
  order_M, readings = None, []
  for blur in BLURS:
    some_M = np.arange(len(cells_Myx)) if order_M is None else order_M[:MAX_GRIDS]
    total_M, m, start, letters = decode(sharpen(cells_Myx[some_M], blur), missed_M[some_M])
    if order_M is None:
      order_M = total_M.argsort()
    if letters:
      readings.append((cells_Myx[some_M[m]], start, letters))
  # Sharpening makes letters of noise: which reading is right, the ink as it is must say.
  tried = [explain(*reading, blur) for reading in readings for blur in BLURS]
  return min(tried)[1] if tried else '?'


def blur_cells(cells_yx, share):
  """The cells after each has given `share` to each neighbour in its column, then in its row."""
  for axis in (0, 1):
    cells_yx = ndimage.convolve1d(cells_yx, [share, 1 - 2 * share, share], axis, mode='constant')
  return cells_yx


def explain(cells_yx, start, letters, blur):
  """(squares of the ink left by these letters, blurred; the letters, '?' if too much is left)."""
  bits_yx = font.word(letters)
  model_yx = np.zeros(cells_yx.shape)
  model_yx[1:-1, start + 1 : start + 1 + bits_yx.shape[1]] = bits_yx
  model_yx = blur_cells(model_yx, blur)
  pale = np.clip((cells_yx * model_yx).sum() / (model_yx**2).sum(), 0.5, 1.1)
  rest_x = ((cells_yx - pale * model_yx) ** 2).sum(0) / pale**2
  read, at = '', start + 1
  for name in letters:
    width = font.letter(name).shape[1]
    read += name if rest_x[at : at + width + 1].mean() < MAX_MISFIT * font.HEIGHT else '?'
    at += width + 1
  return rest_x.sum(), read


def sharpen(cells_Myx, blur):
  """The cells of letters, without those around them, as before a blur."""
  rows_yy, columns_xx = (deblur_matrix(n, blur) for n in cells_Myx.shape[1:])
  cells_Myx = (rows_yy @ cells_Myx @ columns_xx.T)[:, 1:-1, 1:-1]
  return np.clip(cells_Myx / max(0.5, np.percentile(cells_Myx, 97)), 0, 1)


def sample_cells(ink_yx, grids_M3, width):
  """[M, 7, width + 2]: mean ink of the cells of each grid and of one more on each side."""
  sums_yx = np.pad(np.cumsum(np.cumsum(np.clip(ink_yx, 0, 1), 0), 1), ((1, 0), (1, 0)))
  cell_M, top_M, left_M = grids_M3.T
  y_Mi = top_M[:, None] + cell_M[:, None] * np.arange(-1, font.HEIGHT + 2)
  x_Mj = left_M[:, None] + cell_M[:, None] * np.arange(-1, width + 2)
  shape = len(grids_M3), font.HEIGHT + 3, width + 3
  points = [np.broadcast_to(y_Mi[:, :, None], shape), np.broadcast_to(x_Mj[:, None], shape)]
  corners_Mij = ndimage.map_coordinates(sums_yx, points, order=1, mode='nearest')
  return np.diff(np.diff(corners_Mij, axis=1), axis=2) / cell_M[:, None, None] ** 2


def decode(cells_Myx, missed_M):
  """(least squares of each grid [M], the best grid, its first column, its letters).

  Least over all ways to cut the columns into letters, by dynamic programming. missed_M: ink outside
  a grid, to be explained too."""
  M, _, width = cells_Myx.shape
  blank_Mx = (cells_Myx**2).sum(1)
  costs = {
    name: cost(cells_Myx, blank_Mx, bits)
    for name in font.ROWS
    if (bits := font.letter(name).astype(float)).shape[1] <= width
  }
  names, lead_Mx = list(costs), np.pad(np.cumsum(blank_Mx, 1), ((0, 0), (1, 0)))
  # Least cost of the columns before x if a letter may begin there, or if one ends there; and that
  # letter.
  begin_Mx, end_Mx = lead_Mx.copy(), np.full((M, width + 1), np.inf)
  last_Mx = np.zeros((M, width + 1), int)
  for x in range(width):
    if x:
      begin_Mx[:, x] = np.minimum(begin_Mx[:, x], end_Mx[:, x - 1] + blank_Mx[:, x - 1])
    for i, name in enumerate(names):
      to = x + font.letter(name).shape[1]
      if to > width:
        continue
      total_M = begin_Mx[:, x] + costs[name][:, x]
      better_M = total_M < end_Mx[:, to]
      end_Mx[better_M, to], last_Mx[better_M, to] = total_M[better_M], i
  whole_Mx = end_Mx + lead_Mx[:, -1:] - lead_Mx + missed_M[:, None]
  m, to = np.unravel_index(whole_Mx.argmin(), whole_Mx.shape)

  found = ''
  if not np.isfinite(whole_Mx[m, to]):
    return whole_Mx.min(1), m, 0, found
  while True:
    name = names[last_Mx[m, to]]
    to, found = to - font.letter(name).shape[1], name + found
    if begin_Mx[m, to] == lead_Mx[m, to]:
      return whole_Mx.min(1), m, to, found
    to -= 1


def cost(cells_Myx, blank_Mx, bits):
  """[M, x]: the squares that are left when a letter begins at column x; bits: its cells [5, w]."""
  w = bits.shape[1]
  windows_Myxw = np.lib.stride_tricks.sliding_window_view(cells_Myx, w, 2)
  squares_Mx = np.lib.stride_tricks.sliding_window_view(blank_Mx, w, 1).sum(-1)
  return squares_Mx - 2 * np.einsum('Myxw,yw->Mx', windows_Myxw, bits) + bits.sum()


@functools.cache
def deblur_matrix(n, share):
  """[n, n]: undoes `blur_cells` along one axis of n cells, damped, as ink is not exact."""
  blur = (1 - 2 * share) * np.eye(n) + share * (np.eye(n, k=1) + np.eye(n, k=-1))
  return np.linalg.solve(blur.T @ blur + DAMPING * share * np.eye(n), blur.T)
