"""Ink to letters: the grid of cells and the letters that explain the ink best, found together."""

import functools

import numpy as np
from scipy import ndimage

from vargrl.scenes import font

STEPS = np.linspace(-0.5, 0.5, 5)  # of a cell, by which the grid's corner may be off
SCALES = (0.94, 1.0, 1.06)
BLURS = (0.0, 0.1, 0.2)  # share of a cell's ink that each neighbour has got
FEW = 9  # grids that are read for all blurs
DAMPING = 0.05
DARK = 0.45  # share of ink from which a pixel belongs to a letter
UNLIKE = 0.1  # mean square, of a letter's cells and the gap's after it, from which it is none: '?'


def word(ink_yx, cell):
  """What is written in one line of cells of so many pixels; '' if nothing is."""
  dark_yx = ink_yx > DARK
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
  cells_Myx = sampled(ink_yx, np.array(grids), width)
  inside_M = cells_Myx[:, 1:-1, 1:-1].sum((1, 2))
  missed_M = inside_M.max() - inside_M
  order_M, readings = None, []
  for blur in BLURS:
    some_M = np.arange(len(cells_Myx)) if order_M is None else order_M[:FEW]
    total_M, m, start, letters = decoded(sharp(cells_Myx[some_M], blur), missed_M[some_M])
    if order_M is None:
      order_M = total_M.argsort()
    if letters:
      readings.append((cells_Myx[some_M[m]], start, letters))
  # Sharpening makes letters of noise: which reading is right, the ink as it is must say.
  tried = [explained(*reading, blur) for reading in readings for blur in BLURS]
  return min(tried)[1] if tried else '?'


def blurs(cells_yx, share):
  """The cells after each has given that share to each neighbour in its column, then in its row."""
  for axis in (0, 1):
    cells_yx = ndimage.convolve1d(cells_yx, [share, 1 - 2 * share, share], axis, mode='constant')
  return cells_yx


def explained(cells_yx, start, letters, blur):
  """(squares left of the ink by these letters, blurred; the letters, '?' for one that leaves too
  much).
  """
  bits_yx = font.word(letters)
  model_yx = np.zeros(cells_yx.shape)
  model_yx[1:-1, start + 1 : start + 1 + bits_yx.shape[1]] = bits_yx
  model_yx = blurs(model_yx, blur)
  pale = np.clip((cells_yx * model_yx).sum() / (model_yx**2).sum(), 0.5, 1.1)
  rest_x = ((cells_yx - pale * model_yx) ** 2).sum(0) / pale**2
  said, at = '', start + 1
  for name in letters:
    width = font.letter(name).shape[1]
    said += name if rest_x[at : at + width + 1].mean() < UNLIKE * font.HEIGHT else '?'
    at += width + 1
  return rest_x.sum(), said


def sharp(cells_Myx, blur):
  """The cells of letters, without those around them, as they were before a blur."""
  rows_yy, columns_xx = (unblurred(n, blur) for n in cells_Myx.shape[1:])
  cells_Myx = (rows_yy @ cells_Myx @ columns_xx.T)[:, 1:-1, 1:-1]
  return np.clip(cells_Myx / max(0.5, np.percentile(cells_Myx, 97)), 0, 1)


def sampled(ink_yx, grids_M3, width):
  """Mean ink of the cells of every (cell, top, left) and of one more on each side: [M, 7, width +
  2].
  """
  sums_yx = np.pad(np.cumsum(np.cumsum(np.clip(ink_yx, 0, 1), 0), 1), ((1, 0), (1, 0)))
  cell_M, top_M, left_M = grids_M3.T
  y_Mi = top_M[:, None] + cell_M[:, None] * np.arange(-1, font.HEIGHT + 2)
  x_Mj = left_M[:, None] + cell_M[:, None] * np.arange(-1, width + 2)
  shape = len(grids_M3), font.HEIGHT + 3, width + 3
  points = [np.broadcast_to(y_Mi[:, :, None], shape), np.broadcast_to(x_Mj[:, None], shape)]
  corners_Mij = ndimage.map_coordinates(sums_yx, points, order=1, mode='nearest')
  return np.diff(np.diff(corners_Mij, axis=1), axis=2) / cell_M[:, None, None] ** 2


def decoded(cells_Myx, missed_M):
  """(least squares over all ways to cut the columns of a grid [M]; of the least: grid, first
  column, letters).

  missed_M: ink outside a grid, to be explained too.
  """
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
  """[M, x]: the squares that are left when the letter begins at column x."""
  w = bits.shape[1]
  windows_Myxw = np.lib.stride_tricks.sliding_window_view(cells_Myx, w, 2)
  squares_Mx = np.lib.stride_tricks.sliding_window_view(blank_Mx, w, 1).sum(-1)
  return squares_Mx - 2 * np.einsum('Myxw,yw->Mx', windows_Myxw, bits) + bits.sum()


@functools.cache
def unblurred(n, share):
  """[n, n]: undoes that each of n cells in a row has given that share to each neighbour; damped,
  ink is not exact.
  """
  given = (1 - 2 * share) * np.eye(n) + share * (np.eye(n, k=1) + np.eye(n, k=-1))
  return np.linalg.solve(given.T @ given + DAMPING * share * np.eye(n), given.T)
