"""What an image shows: objects with shape, colour, diameter and position, and a written word.

Pixels are taken for mixtures of a light background and one colour of the world. Connected mixtures
are objects; each is scaled to unit area and compared with all shapes at several strengths of blur.
Dark ones are ink, see reading.py. At least 99 of 100 attributes are read right, also of pictures
that were blurred, compressed or noisy."""

import functools

import numpy as np
from scipy import ndimage

from vargrl.scenes import draw, reading
from vargrl.scenes import world as worlds

MAX_SIDE = 128  # pixels; a larger image is averaged down to it
MIN_COVERAGE = 0.45  # share of a pixel from which it belongs to an object
GRID, REACH = (
  24,
  1.35,
)  # points along a side of a canonical shape, and how far they reach, in roots of its area
BLURS = (0.04, 0.08, 0.12, 0.16, 0.2, 0.25)  # standard deviations, in the same unit
MAX_MISFIT = 0.2  # the largest share of a shape's energy by which a picture of it may be off
PALE_PENALTY, SIZE_PENALTY = (
  0.02,
  0.6,
)  # how much worse a fit counts that takes a colour to be pale; for a size beyond the world's
MIN_AREA = 0.35  # of the least object's area: what is smaller is no object
BLUR_RADIUS = 3  # pixels around an object that its blur may reach
# Luminance, and what is left of blue and red without it, at half weight.
LUMA = np.array([[0.299, 0.587, 0.114], [-0.084, -0.166, 0.25], [0.25, -0.209, -0.041]])


def detect(image_yxc, world):
  """([world.Object], word) in a square image, uint8 [y, x, 3], as a world's checker reads it.

  An object of no shape of the world has shape ''. Positions and diameters are in 1/256 of the side.
  Raises ValueError for an image that is no such array, or is too small for the world."""
  image_yxc = np.asarray(image_yxc)
  if image_yxc.dtype != np.uint8 or image_yxc.ndim != 3 or image_yxc.shape[2] != 3:
    raise ValueError(
      f'image: {image_yxc.dtype} {list(image_yxc.shape)} found, uint8 [y, x, 3] expected'
    )
  y, x, _ = image_yxc.shape
  if y != x or y < world.pixels:
    raise ValueError(f'image: {y} x {x} pixels found, a square of at least {world.pixels} expected')
  factor = max(1, y // MAX_SIDE)
  image_yxc = average_pool(image_yxc.astype(np.float32), factor)
  unit = worlds.UNIT * factor / y
  away_yxc = fit_background(image_yxc) - image_yxc
  ways_kc = (image_yxc + away_yxc).mean((0, 1)) - np.array(
    [*(worlds.COLOURS[k] for k in world.colours), worlds.INK]
  )
  kind_yx, share_yxk = color_mixture(away_yxc, ways_kc)
  objects, ink = [], len(world.colours)
  written_yx = np.zeros(kind_yx.shape, bool)
  least = (
    MIN_AREA
    * min(area for area, _ in shape_templates(world.shapes)[1])
    * (world.small[0] / unit) ** 2
  )
  covered_yx = np.take_along_axis(share_yxk, kind_yx[..., None], -1)[..., 0] > MIN_COVERAGE
  for at, body_yx, mine_yx in connected_bodies(covered_yx):
    for k, part_yx in split_body(kind_yx[at], body_yx, mine_yx, away_yxc[at], ways_kc, least):
      share_yx = share_yxk[at][..., k] * part_yx
      if k == ink:
        written_yx[at] |= part_yx
      if k == ink or share_yx.sum() < least:
        continue
      shape, size, x, y = classify_shape(share_yx, world, unit)
      x, y = x + at[1].start, y + at[0].start
      objects.append(
        worlds.Object(shape, world.colours[k], *(round(float(z * unit)) for z in (size, x, y)))
      )
  return objects, reading.read_word(share_yxk[..., ink] * written_yx, world.cell / unit)


def average_pool(image_yxc, factor):
  """The means of squares of factor x factor pixels, [y, x, c]."""
  y, x = (n // factor * factor for n in image_yxc.shape[:2])
  return image_yxc[:y, :x].reshape(y // factor, factor, x // factor, factor, -1).mean((1, 3))


def fit_background(image_yxc):
  """The light background under everything, float32 [y, x, c]: a plane for each channel.

  It is fitted to the pixels that are light in every channel."""
  basis_yxb = np.stack(
    [np.ones(image_yxc.shape[:2]), *np.indices(image_yxc.shape[:2]) / len(image_yxc)], -1
  )
  step = max(1, len(image_yxc) // 48)  # so many rows are enough
  some_yxb, some_yxc = basis_yxb[::step, ::step], image_yxc[::step, ::step]
  least_yx = some_yxc.min(-1)
  light_yx = least_yx > np.percentile(least_yx, 98) - 40
  for _ in range(2):
    plane_bc = np.linalg.lstsq(some_yxb[light_yx], some_yxc[light_yx], rcond=None)[0]
    close_yx = abs(some_yxc - some_yxb @ plane_bc).max(-1) < 24
    light_yx = close_yx if close_yx.sum() > 16 else light_yx
  return (basis_yxb @ plane_bc).astype(np.float32)


def color_mixture(away_yxc, ways_kc):
  """(kind_yx, share_yxk): which colour a pixel is mixed of, and what share each colour would have.

  away_yxc: the background minus the image. ways_kc: the background minus each colour. Shares are
  measured in luminance more than in chroma, which JPEG and tokenizers blur."""
  metric_cc = LUMA.T @ LUMA
  long_k = np.maximum(
    ((ways_kc @ metric_cc) * ways_kc).sum(-1), 1
  )  # nothing goes from a red ground to red
  share_yxk = away_yxc @ (metric_cc @ ways_kc.T / long_k).astype(np.float32)
  clipped_yxk = np.clip(share_yxk, 0, 1.2)
  along_yxk = away_yxc @ ways_kc.T.astype(np.float32)
  rest_yxk = clipped_yxk * (clipped_yxk * (ways_kc**2).sum(-1).astype(np.float32) - 2 * along_yxk)
  return rest_yxk.argmin(-1), np.minimum(share_yxk, 1.05)


def split_body(kind_yx, body_yx, mine_yx, away_yxc, ways_kc, least):
  """[(kind, its pixels)] of a body: one, or several where bodies of different colours touch."""
  # The rim of a body may pass for another colour; two bodies that touch have an inside each.
  # Ink is not among them: words touch nothing, and what JPEG takes the colour from looks like ink.
  some = np.flatnonzero(
    np.bincount(kind_yx[body_yx], minlength=len(ways_kc))[:-1] > 0.2 * least
  ).tolist()
  solid = [k for k in some if ndimage.binary_erosion(body_yx & (kind_yx == k)).sum() > 0.2 * least]
  if len(solid) > 1:
    return [(k, mine_yx & (kind_yx == k)) for k in solid]
  # The sum over a body and its surroundings is what blur leaves as it is.
  total_c = away_yxc[mine_yx].sum(0)
  alike_k = ways_kc @ total_c / np.maximum(np.linalg.norm(ways_kc, axis=-1), 1)
  return [(int(alike_k.argmax()), mine_yx)]


def connected_bodies(covered_yx):
  """Yields (slices, its pixels there, those and the ones nearer to it than to others) of each body.

  covered_yx: bool, the pixels that belong to any."""
  label_yx, n = ndimage.label(covered_yx, np.ones((3, 3)))
  if not n:
    return
  far_yx, nearest = ndimage.distance_transform_edt(label_yx == 0, return_indices=True)
  owner_yx = np.where(far_yx <= BLUR_RADIUS, label_yx[tuple(nearest)], 0)
  for i, at in enumerate(ndimage.find_objects(owner_yx), 1):
    yield at, label_yx[at] == i, owner_yx[at] == i


@functools.cache
def shape_templates(shapes):
  """(normalised images of the shapes [shape, blur, points], [(area, way from centroid to centre)]).

  Areas and ways are those of shapes of size 1."""
  pixels, blurred, measures = 192, [], []
  for shape in shapes:
    size, centre = worlds.UNIT, worlds.UNIT / 2
    share_yx = draw.coverage(draw.INSIDE[shape], centre, centre, size, pixels)[0]
    area, x, y = moments(share_yx)
    measures.append((area / pixels**2, (0.5 - x / pixels, 0.5 - y / pixels)))
    share_yx = np.pad(share_yx, pixels // 2)
    blurred.append(
      [
        normalize_shape(ndimage.gaussian_filter(share_yx, blur * area**0.5), *moments(share_yx))
        for blur in BLURS
      ]
    )
  return np.array(blurred), measures


def moments(share_yx):
  """(area, x and y of the centroid) of an image of shares, in pixels; the first is from 0 to 1."""
  weight_yx = np.maximum(share_yx, 0)
  y, x = (
    ((np.arange(n) + 0.5) * weight_yx.sum(1 - axis)).sum() / weight_yx.sum()
    for axis, n in enumerate(weight_yx.shape)
  )
  return share_yx.sum(), x, y


def normalize_shape(share_yx, area, x, y):
  """The image of a body around its centroid, scaled to unit area, [GRID * GRID]."""
  at = np.linspace(-REACH, REACH, GRID) * area**0.5
  step = at[1] - at[0]
  if step > 2:
    share_yx = ndimage.gaussian_filter(share_yx, 0.3 * step, mode='constant')
  points = np.meshgrid(at + y - 0.5, at + x - 0.5, indexing='ij')
  return ndimage.map_coordinates(share_yx, points, order=1).reshape(-1)


def classify_shape(share_yx, world, unit):
  """(shape or '', size, x, y of the centre of its box, in pixels of so many units) of a body."""
  pictures, measures = shape_templates(world.shapes)
  areas, fits = np.array([area for area, _ in measures]), []
  # A share below one is a paler colour, or blur; the better fit tells.
  inner = float(np.sort(share_yx, None)[-max(4, share_yx.size // 50) :].mean())
  for full, doubt in ((1.0, 0.0), (float(np.clip(inner, 0.6, 1.0)), PALE_PENALTY)):
    area, x, y = moments(share_yx / full)
    picture = normalize_shape(share_yx / full, area, x, y)
    off_s = (((pictures - picture) ** 2).sum(-1) / (pictures**2).sum(-1)).min(1)
    # Blurred to a spot, a star could be a disc that is smaller than any of this world.
    size_s = (area / areas) ** 0.5 * unit
    beyond_s = np.maximum(world.small[0] / size_s, size_s / world.large[1])
    i = int((off_s + SIZE_PENALTY * np.maximum(beyond_s - 1.05, 0)).argmin())
    fits.append((off_s[i] + doubt, i, area, x, y))
  off, i, area, x, y = min(fits)
  (dx, dy), size = measures[i][1], (area / areas[i]) ** 0.5
  return world.shapes[i] if off < MAX_MISFIT else '', size, x + dx * size, y + dy * size
