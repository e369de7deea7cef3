"""Scenes as pixels: antialiased shapes and cells of letters on a light ground."""

import functools

import numpy as np

from vargrl.scenes import font, world

SAMPLES = 4  # along each axis of a pixel
# Ten corners of a star whose box is [-1, 1] x [-1, 1]; written out, as sines differ between
# machines.
STAR = np.array(
  [
    (0.0, -1.0),
    (0.2781, -0.2969),
    (1.0, -0.2361),
    (0.45, 0.2593),
    (0.6180, 1.0),
    (0.0, 0.6031),
    (-0.6180, 1.0),
    (-0.45, 0.2593),
    (-1.0, -0.2361),
    (-0.2781, -0.2969),
  ]
)


def star(u, v):
  """Whether points lie within the star: an odd number of edges to their right."""
  odd = np.zeros(np.broadcast_shapes(u.shape, v.shape), bool)
  for (x0, y0), (x1, y1) in zip(STAR, np.roll(STAR, -1, 0), strict=True):
    odd ^= ((y0 > v) != (y1 > v)) & (u < (x1 - x0) * (v - y0) / (y1 - y0 + (y0 == y1)) + x0)
  return odd


def heart(u, v):
  """Whether points lie within the heart."""
  x, y = 1.139 * u, 0.118 - 1.118 * v  # its box is not the curve's
  return (x * x + y * y - 1) * (x * x + y * y - 1) * (x * x + y * y - 1) <= x * x * y * y * y


def ring(u, v):
  """Whether points lie within the ring."""
  return (u * u + v * v <= 1) & (u * u + v * v >= 0.25)


# Points of [-1, 1] x [-1, 1], v down -> whether they lie within.
INSIDE = {
  'circle': lambda u, v: u * u + v * v <= 1,
  'square': lambda u, v: (abs(u) <= 1) & (abs(v) <= 1),
  'triangle': lambda u, v: (2 * abs(u) <= v + 1) & (v <= 1),
  'cross': lambda u, v: ((abs(u) <= 0.3) | (abs(v) <= 0.3)) & (abs(u) <= 1) & (abs(v) <= 1),
  'diamond': lambda u, v: abs(u) + abs(v) <= 1,
  'star': star,
  'heart': heart,
  'ring': ring,
}


def coverage(inside, x, y, size, pixels):
  """(share [h, w] of each pixel that a shape covers, its first row, its first column).

  inside: one of INSIDE. x, y, size: in units. pixels: the side of the canvas."""
  scale = pixels / world.UNIT
  edges = [
    (int(np.floor((c - size / 2) * scale)), int(np.ceil((c + size / 2) * scale))) for c in (y, x)
  ]
  (top, bottom), (left, right) = [(max(low, 0), min(high, pixels)) for low, high in edges]
  at = lambda low, high, c: (
    ((np.arange(low * SAMPLES, high * SAMPLES) + 0.5) / (SAMPLES * scale) - c) / (size / 2)
  )
  hit = inside(at(left, right, x)[None], at(top, bottom, y)[:, None])
  hit = np.broadcast_to(hit, ((bottom - top) * SAMPLES, (right - left) * SAMPLES))
  counts = hit.reshape(bottom - top, SAMPLES, right - left, SAMPLES).sum((1, 3), dtype=np.int64)
  return counts / SAMPLES**2, top, left


def text_coverage(text, pixels):
  """`coverage` of a world.Text."""
  cells, scale = font.word(text.word), pixels / world.UNIT
  left, top, right, bottom = (c * scale for c in world.box(text))
  low, high = (int(np.floor(top)), int(np.floor(left))), (int(np.ceil(bottom)), int(np.ceil(right)))
  index = []
  for axis, start in enumerate((text.y, text.x)):
    at = (np.arange(low[axis] * SAMPLES, high[axis] * SAMPLES) + 0.5) / (SAMPLES * scale)
    index.append(np.floor((at - start) / text.cell).astype(int) + 1)
  hit = np.pad(cells, 1)[
    np.ix_(*(np.clip(i, 0, n + 1) for i, n in zip(index, cells.shape, strict=True)))
  ]
  h, w = high[0] - low[0], high[1] - low[1]
  return hit.reshape(h, SAMPLES, w, SAMPLES).sum((1, 3), dtype=np.int64) / SAMPLES**2, *low


@functools.lru_cache(maxsize=8)
def ramp(pixels):
  """float [pixels] from -0.5 to 0.5, at the centres of pixels."""
  return (np.arange(pixels) + 0.5) / pixels - 0.5


def image(scene, pixels):
  """uint8 [pixels, pixels, 3] of a Scene.

  It has the same bytes everywhere: only additions, products and comparisons of float64."""
  red, green, blue, slope_x, slope_y = scene.light
  shade_yx = slope_x * ramp(pixels)[None, :] + slope_y * ramp(pixels)[:, None]
  image_yxc = np.array([red, green, blue], float) + shade_yx[..., None]
  layers = [
    (
      coverage(INSIDE[o.shape], o.x, o.y, o.size, pixels),
      np.array(world.COLOURS[o.colour]) + np.array(o.tone),
    )
    for o in scene.objects
  ]
  if scene.text:
    layers.append((text_coverage(scene.text, pixels), np.array(world.INK)))
  for (share, top, left), colour in layers:
    part = image_yxc[top : top + share.shape[0], left : left + share.shape[1]]
    part += share[..., None] * (np.clip(colour, 0, 255) - part)
  return np.clip(np.floor(image_yxc + 0.5), 0, 255).astype(np.uint8)
