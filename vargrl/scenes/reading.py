"""Ink to letters: the grid of cells and the letters that explain the ink best, found together."""
import numpy as np
from scipy import ndimage

from vargrl.scenes import font

STEPS = np.linspace(-.5, .5, 9)  # of a cell, by which the grid's corner may be off
SCALES = (.93, 1., 1.07)
DARK = .45  # share of ink from which a pixel belongs to a letter
UNLIKE = .2  # mean square of a letter's cells from which it is none: '?'


def word(ink_yx, cell):
  """What is written in one line of cells of so many pixels; '' if nothing is."""
  dark_yx = ink_yx > DARK
  if dark_yx.sum() < 3 * cell ** 2: return ''
  (top, bottom), (left, right) = (np.flatnonzero(dark_yx.any(axis))[[0, -1]] for axis in (1, 0))
  if bottom - top + 1 > 1.5 * font.HEIGHT * cell or bottom - top + 1 < .6 * font.HEIGHT * cell: return '?'
  width = max(1, round((right - left + 1) / cell)) + 1
  grids = [(scale * cell, top + dy * cell, left + dx * cell) for scale in SCALES for dy in STEPS for dx in STEPS]
  cells_Myx = sampled(ink_yx, np.array(grids), width)
  cells_Myx = np.clip(cells_Myx / max(.5, np.percentile(cells_Myx, 97)), 0, 1)
  inside_M = cells_Myx.sum((1, 2))
  return decoded(cells_Myx, inside_M.max() - inside_M)


def sampled(ink_yx, grids_M3, width):
  """Mean ink of the cells of every (cell, top, left): [M, 5, width]."""
  sums_yx = np.pad(np.cumsum(np.cumsum(np.clip(ink_yx, 0, 1), 0), 1), ((1, 0), (1, 0)))
  cell_M, top_M, left_M = grids_M3.T
  y_Mi = top_M[:, None] + cell_M[:, None] * np.arange(font.HEIGHT + 1)
  x_Mj = left_M[:, None] + cell_M[:, None] * np.arange(width + 1)
  shape = len(grids_M3), font.HEIGHT + 1, width + 1
  points = [np.broadcast_to(y_Mi[:, :, None], shape), np.broadcast_to(x_Mj[:, None], shape)]
  corners_Mij = ndimage.map_coordinates(sums_yx, points, order=1, mode='nearest')
  return np.diff(np.diff(corners_Mij, axis=1), axis=2) / cell_M[:, None, None] ** 2


def decoded(cells_Myx, missed_M):
  """The letters of the grid that they explain best: least squares over all ways to cut its columns.

  missed_M: ink outside a grid, to be explained too.
  """
  M, _, width = cells_Myx.shape
  blank_Mx = (cells_Myx ** 2).sum(1)
  costs = {name: cost(cells_Myx, blank_Mx, bits) for name in font.ROWS
           if (bits := font.letter(name)).shape[1] <= width}
  names, lead_Mx = list(costs), np.pad(np.cumsum(blank_Mx, 1), ((0, 0), (1, 0)))
  # Least cost of the columns before x if a letter may begin there, or if one ends there; and that letter.
  begin_Mx, end_Mx = lead_Mx.copy(), np.full((M, width + 1), np.inf)
  last_Mx = np.zeros((M, width + 1), int)
  for x in range(width):
    if x: begin_Mx[:, x] = np.minimum(begin_Mx[:, x], end_Mx[:, x - 1] + blank_Mx[:, x - 1])
    for i, name in enumerate(names):
      to = x + font.letter(name).shape[1]
      if to > width: continue
      total_M = begin_Mx[:, x] + costs[name][:, x]
      better_M = total_M < end_Mx[:, to]
      end_Mx[better_M, to], last_Mx[better_M, to] = total_M[better_M], i
  whole_Mx = end_Mx + lead_Mx[:, -1:] - lead_Mx + missed_M[:, None]
  m, to = np.unravel_index(whole_Mx.argmin(), whole_Mx.shape)

  found = ''
  while True:
    name = names[last_Mx[m, to]]
    to -= font.letter(name).shape[1]
    found = (name if costs[name][m, to] < UNLIKE * font.letter(name).size else '?') + found
    if begin_Mx[m, to] == lead_Mx[m, to]: return found
    to -= 1


def cost(cells_Myx, blank_Mx, bits):
  """[M, x]: the squares that are left when the letter begins at column x."""
  w = bits.shape[1]
  windows_Myxw = np.lib.stride_tricks.sliding_window_view(cells_Myx, w, 2)
  squares_Mx = np.lib.stride_tricks.sliding_window_view(blank_Mx, w, 1).sum(-1)
  return squares_Mx - 2 * np.einsum('Myxw,yw->Mx', windows_Myxw, bits.astype(float)) + bits.sum()
