"""What a picture shows: its objects with shape, colour, diameter and place, and what is written on it.

Pixels are taken for mixtures of a light ground and one colour of the world. Connected mixtures are objects; each is
scaled to unit area and compared with all shapes at several strengths of blur. Dark ones are ink, see `reading`.
"""
import functools

import numpy as np
from scipy import ndimage

from vargrl.scenes import draw, reading, world as worlds

LONGEST = 128  # pixels; a larger picture is averaged down to it
COVERED = .45  # share of a pixel from which it belongs to an object
GRID, REACH = 24, 1.35  # points along a side of a canonical shape, and how far they reach, in roots of its area
BLURS = (.04, .08, .12, .16, .2, .25)  # standard deviations, in the same unit
ALIKE = .2  # the largest share of a shape's energy by which a picture of it may be off
DUST = .35  # of the least object's area: what is smaller is no object
NEAR = 3  # pixels around an object that its blur may reach


def read(image_yxc, world):
  """([world.Object], word) of a square uint8 picture; an object of a form that is none of the world's has shape ''.

  Places and diameters are in 1/256 of the side. ValueError for what is not a picture of a size that can be read.
  """
  image_yxc = np.asarray(image_yxc)
  if image_yxc.dtype != np.uint8 or image_yxc.ndim != 3 or image_yxc.shape[2] != 3:
    raise ValueError(f'image: {image_yxc.dtype} {list(image_yxc.shape)} found, uint8 [y, x, 3] expected')
  y, x, _ = image_yxc.shape
  if y != x or y < world.pixels:
    raise ValueError(f'image: {y} x {x} pixels found, a square of at least {world.pixels} expected')
  factor = max(1, y // LONGEST)
  image_yxc = averaged(image_yxc.astype(np.float64), factor)
  unit = worlds.UNIT * factor / y
  away_yxc = ground(image_yxc) - image_yxc
  kind_yx, share_yxk = mixtures(image_yxc, away_yxc, world)
  objects, ink = [], len(world.colours)
  written_yx = np.zeros(kind_yx.shape, bool)
  least = DUST * min(ratio for ratio, _ in forms(world.shapes)[1]) * (world.small[0] / unit) ** 2
  for at, body_yx, mine_yx in bodies(covered(kind_yx, share_yxk)):
    kinds = np.bincount(kind_yx[at][body_yx], minlength=ink + 1)
    if kinds[ink] * 2 > kinds.sum():
      written_yx[at] |= mine_yx
      continue
    large = [k for k in range(ink) if kinds[k] >= least] or [int(kinds[:ink].argmax())]
    for k in large:
      part_yx = mine_yx & (kind_yx[at] == k) if len(large) > 1 else mine_yx
      share_yx = share_yxk[at][..., k] * part_yx
      if share_yx.sum() < least: continue
      shape, size, x, y = form(share_yx, world.shapes)
      x, y = x + at[1].start, y + at[0].start
      objects.append(worlds.Object(shape, world.colours[k], *(round(float(z * unit)) for z in (size, x, y))))
  return objects, reading.word(share_yxk[..., ink] * written_yx, world.cell / unit)


def averaged(image_yxc, factor):
  """The means of squares of so many pixels."""
  y, x = (n // factor * factor for n in image_yxc.shape[:2])
  return image_yxc[:y, :x].reshape(y // factor, factor, x // factor, factor, -1).mean((1, 3))


def ground(image_yxc):
  """The light ground under everything: a plane through the pixels that are light in every channel."""
  least_yx = image_yxc.min(-1)
  light_yx = least_yx > np.percentile(least_yx, 98) - 40
  at_yx = np.indices(light_yx.shape) / len(light_yx)
  basis_yxb = np.stack([np.ones(light_yx.shape), *at_yx], -1)
  for _ in range(2):
    plane_bc = np.linalg.lstsq(basis_yxb[light_yx], image_yxc[light_yx], rcond=None)[0]
    ground_yxc = basis_yxb @ plane_bc
    close_yx = abs(image_yxc - ground_yxc).max(-1) < 24
    light_yx = close_yx if close_yx.sum() > 16 else light_yx
  return ground_yxc


def mixtures(image_yxc, away_yxc, world):
  """(the colour of the world, or ink after the last, of which a pixel is a mixture with the ground; its share of each)."""
  colours_kc = np.array([*(worlds.COLOURS[name] for name in world.colours), worlds.INK], float)
  way_kc = (image_yxc + away_yxc).mean((0, 1)) - colours_kc
  share_yxk = away_yxc @ (way_kc / (way_kc ** 2).sum(-1, keepdims=True)).T
  rest_yxkc = away_yxc[..., None, :] - np.clip(share_yxk, 0, 1.2)[..., None] * way_kc
  return (rest_yxkc ** 2).sum(-1).argmin(-1), np.minimum(share_yxk, 1.05)


def covered(kind_yx, share_yxk):
  return np.take_along_axis(share_yxk, kind_yx[..., None], -1)[..., 0] > COVERED


def bodies(covered_yx):
  """Of every connected body: (where, its pixels there, those and the ones around that are nearer to no other)."""
  label_yx, n = ndimage.label(covered_yx, np.ones((3, 3)))
  if not n: return
  far_yx, nearest = ndimage.distance_transform_edt(label_yx == 0, return_indices=True)
  owner_yx = np.where(far_yx <= NEAR, label_yx[tuple(nearest)], 0)
  for i, at in enumerate(ndimage.find_objects(owner_yx), 1):
    yield at, label_yx[at] == i, owner_yx[at] == i


@functools.cache
def forms(shapes):
  """(canonical pictures of the shapes [shape, blur, points], [(area, way from the centroid to the centre)] of size 1)."""
  pixels, blurred, measures = 192, [], []
  for shape in shapes:
    size, centre = worlds.UNIT, worlds.UNIT / 2
    share_yx = draw.coverage(draw.INSIDE[shape], centre, centre, size, pixels)[0]
    area, x, y = moments(share_yx)
    measures.append((area / pixels ** 2, (.5 - x / pixels, .5 - y / pixels)))
    share_yx = np.pad(share_yx, pixels // 2)
    blurred.append([canonical(ndimage.gaussian_filter(share_yx, blur * area ** .5), *moments(share_yx))
                    for blur in BLURS])
  return np.array(blurred), measures


def moments(share_yx):
  """(area, x, y of the centroid), in pixels, the first from 0 to 1."""
  weight_yx = np.maximum(share_yx, 0)
  y, x = (((np.arange(n) + .5) * weight_yx.sum(1 - axis)).sum() / weight_yx.sum()
          for axis, n in enumerate(weight_yx.shape))
  return share_yx.sum(), x, y


def canonical(share_yx, area, x, y):
  """The picture around its centroid, scaled to unit area [GRID * GRID]."""
  at = np.linspace(-REACH, REACH, GRID) * area ** .5
  step = at[1] - at[0]
  if step > 2: share_yx = ndimage.gaussian_filter(share_yx, .3 * step, mode='constant')
  points = np.meshgrid(at + y - .5, at + x - .5, indexing='ij')
  return ndimage.map_coordinates(share_yx, points, order=1).reshape(-1)


def form(share_yx, shapes):
  """(shape or '', size, x, y of the centre of its box, in pixels) of one body."""
  inner = np.sort(share_yx, None)[-max(4, share_yx.size // 50):].mean()
  area, x, y = moments(share_yx / np.clip(inner, .8, 1.1))
  picture = canonical(share_yx / np.clip(inner, .8, 1.1), area, x, y)
  pictures, measures = forms(shapes)
  off = ((pictures - picture) ** 2).sum(-1) / (pictures ** 2).sum(-1)
  i = off.min(1).argmin()
  unit_area, (dx, dy) = measures[i]
  size = (area / unit_area) ** .5
  return shapes[i] if off[i].min() < ALIKE else '', size, x + dx * size, y + dy * size
