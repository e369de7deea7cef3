"""A world with ground truth: what a scene is, what it may contain, which split it belongs to, where
things may lie.

Lengths and places are integers in 1/256 of the side of the canvas, x to the right, y down; the
place of an object is the centre of its bounding box. A scene has no pixels: the same one is drawn
at any size."""

import dataclasses
import itertools
import zlib

import numpy as np

from vargrl.scenes import font

UNIT = 256
SPLITS = ('train', 'validation', 'test')
SIZES = ('small', 'large')
# Relation: (axis, sign) of the way from the other object to this one.
RELATIONS = {'left of': ('x', -1), 'right of': ('x', 1), 'above': ('y', -1), 'below': ('y', 1)}
SHAPES = ('circle', 'square', 'triangle', 'cross', 'diamond', 'star', 'heart', 'ring')
COLOURS = {
  'red': (215, 25, 50),
  'yellow': (230, 200, 20),
  'green': (40, 160, 60),
  'blue': (40, 80, 220),
  'purple': (140, 50, 180),
  'pink': (240, 100, 200),
  'orange': (240, 110, 10),
  'cyan': (30, 180, 205),
}
INK = (25, 25, 30)  # of text, and of nothing else
TONE = 10  # levels by which the colour of one object may be off, in each channel
CONSONANTS, VOWELS = 'BCDFGHJKLMNPRSTVWXYZ', 'AEIOU'
PATTERNS = ('cvc', 'cvcv', 'vcvc', 'ccvc', 'cvcvc')
TRIES = 1000


@dataclasses.dataclass(frozen=True)
class World:
  """Numbers of a world. small, large: ranges of diameters; gap: least distance of two boxes, on one
  axis; cell: of the font; words: those that are written, () for letters by pattern; pixels: the
  least that can be read."""

  name: str
  shapes: tuple[str, ...]
  colours: tuple[str, ...]
  small: tuple[int, int]
  large: tuple[int, int]
  objects: int
  gap: int
  cell: int
  words: tuple[str, ...]
  phrasings: int
  pixels: int

  def size(self, diameter):
    return SIZES[diameter * 2 > self.small[1] + self.large[0]]


WORLDS = {
  world.name: world
  for world in (
    World(
      'small',
      SHAPES[:4],
      tuple(COLOURS)[:6],
      (58, 68),
      (92, 102),
      objects=4,
      gap=24,
      cell=16,
      words=('CAT', 'HAT', 'CUP', 'TEA', 'ICE', 'JET', 'PIE', 'LIP', 'AXE', 'FLY', 'TOY', 'HUT'),
      phrasings=2,
      pixels=32,
    ),
    World(
      'full',
      SHAPES,
      tuple(COLOURS),
      (38, 46),
      (66, 78),
      objects=6,
      gap=16,
      cell=8,
      words=(),
      phrasings=12,
      pixels=64,
    ),
  )
}


@dataclasses.dataclass(frozen=True)
class Object:
  shape: str
  colour: str
  size: int
  x: int
  y: int
  tone: tuple[int, int, int] = (0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Text:
  """x, y: of its top left corner."""

  word: str
  cell: int
  x: int
  y: int


@dataclasses.dataclass(frozen=True)
class Scene:
  """light: the background's red, green and blue at the centre, then what it gains from left to
  right and from top to bottom, in levels."""

  objects: tuple[Object, ...]
  text: Text | None
  light: tuple[int, int, int, int, int]

  @property
  def word(self):
    return self.text.word if self.text else ''


def find(name):
  """The World of a name; ValueError if there is none."""
  if name not in WORLDS:
    raise ValueError(f'world: {name!r} found, one of {sorted(WORLDS)} expected')
  return WORLDS[name]


def plain(scene):
  """What JSON can hold of a scene."""
  return dataclasses.asdict(scene)


def scene_of(plain):
  """The inverse of `plain`, lists for tuples allowed."""
  objects = tuple(Object(**x | {'tone': tuple(x['tone'])}) for x in plain['objects'])
  return Scene(objects, Text(**plain['text']) if plain['text'] else None, tuple(plain['light']))


# Which split.


def pair_split(world, shape, colour):
  """'train', or the one split that shows this shape in this colour: two pairs of every shape are
  held out.
  """
  step = (world.colours.index(colour) - world.shapes.index(shape)) % len(world.colours)
  return {0: 'test', len(world.colours) // 2: 'validation'}.get(step, 'train')


def bucket(*what):
  """Eight of ten are train; the same on every machine."""
  return {0: 'validation', 1: 'test'}.get(zlib.crc32(repr(what).encode()) % 10, 'train')


def novelties(world, pairs, word):
  """The splits other than train that own a pair or the word."""
  owners = {pair_split(world, *pair) for pair in pairs}
  if word and not world.words:
    owners.add(bucket(word))
  return owners - {'train'}


def split_of(world, pairs, word):
  """The only split with pictures of these contents, (shape, colour) of every object and the word;
  '' for none.

  What is novel to training decides first, then a hash of the contents: of places, sizes and order
  they are free."""
  new = novelties(world, pairs, word)
  if new:
    return new.pop() if len(new) == 1 else ''
  if len(pairs) == 1 and not word:  # too few for a hash to leave some of each kind in every split
    i, j = world.shapes.index(pairs[0][0]), world.colours.index(pairs[0][1])
    if (j - i) % len(world.colours) != 1:
      return 'train'
    return SPLITS[1 + i % 2]
  return bucket(world.name, sorted(pairs), word)


def pairs(objects):
  return [(o.shape, o.colour) for o in objects]


# Where.


def clear(a, b):
  """The relation of a to b that nobody would doubt: boxes apart along an axis, twice as far as
  across; '' for none.
  """
  for name, (axis, sign) in RELATIONS.items():
    along, across = (a.x - b.x, a.y - b.y) if axis == 'x' else (a.y - b.y, a.x - b.x)
    if along * sign >= max(2 * abs(across), (a.size + b.size) / 2):
      return name
  return ''


def relations(a, b):
  """What GenEval would say of a and b: a set of none, one or two.

  https://github.com/djghosh13/geneval/blob/main/evaluation/evaluate_images.py
  """
  away, least = {'x': a.x - b.x, 'y': a.y - b.y}, 0.1 * (a.size + b.size)
  norm = max((away['x'] ** 2 + away['y'] ** 2) ** 0.5, 1e-9)
  return {
    name for name, (axis, sign) in RELATIONS.items() if (away[axis] * sign - least) / norm > 0.5
  }


def box(thing):
  """(left, top, right, bottom) of an object or a text."""
  if isinstance(thing, Text):
    return (
      thing.x,
      thing.y,
      thing.x + font.word(thing.word).shape[1] * thing.cell,
      thing.y + font.HEIGHT * thing.cell,
    )
  low, high = thing.size // 2, (thing.size + 1) // 2
  return thing.x - low, thing.y - low, thing.x + high, thing.y + high


def apart(a, b, gap):
  """Whether box, or boxes [4, n], `a` is so far from box b."""
  return (a[0] - b[2] >= gap) | (b[0] - a[2] >= gap) | (a[1] - b[3] >= gap) | (b[1] - a[3] >= gap)


def legal(world, scene):
  """Whether all lies on the canvas with distances between."""
  boxes, edge = (
    [box(x) for x in (*scene.objects, *([scene.text] if scene.text else []))],
    world.gap // 2,
  )
  inside = all(min(b[:2]) >= edge and max(b[2:]) <= UNIT - edge for b in boxes)
  return inside and all(apart(a, b, world.gap) for a, b in itertools.combinations(boxes, 2))


def free_object(world, rng, shape, colour, size, taken, within=(0, 0, UNIT, UNIT), like=None):
  """An Object of a size ('small', 'large') away from the boxes `taken`, its centre `within` a box;
  None if none.

  like: an Object whose diameter and tone it has.
  """
  low, high = getattr(world, size)
  diameter, tone = (
    int(rng.randint(low, high + 1)),
    tuple(int(t) for t in rng.randint(-TONE, TONE + 1, 3)),
  )
  if like:
    diameter, tone = like.size, like.tone
  edge, low, high = world.gap // 2 + (diameter + 1) // 2, diameter // 2, (diameter + 1) // 2
  x, y = rng.randint(edge, UNIT - edge + 1, (2, 40))
  boxes = np.stack([x - low, y - low, x + high, y + high])
  fits = (within[0] <= x) & (x <= within[2]) & (within[1] <= y) & (y <= within[3])
  i = first_free(boxes, fits, taken, world.gap)
  return None if i is None else Object(shape, colour, diameter, int(x[i]), int(y[i]), tone)


def first_free(boxes, fits, taken, gap):
  """The index of the first box, of [4, n], that `fits` and is apart from those that are taken; None
  if none.
  """
  for other in taken:
    fits = fits & apart(boxes, other, gap)
  return int(np.argmax(fits)) if fits.any() else None


def free_text(world, rng, word, taken):
  """A Text on the grid of cells, away from the boxes `taken`; None if none."""
  width, edge = font.word(word).shape[1], world.gap // 2
  least, most = -(-edge // world.cell), (UNIT - edge) // world.cell
  x = rng.randint(least, most - width + 1, 40) * world.cell
  y = rng.randint(least, most - font.HEIGHT + 1, 40) * world.cell
  boxes = np.stack([x, y, x + width * world.cell, y + font.HEIGHT * world.cell])
  i = first_free(boxes, np.ones(40, bool), taken, world.gap)
  return None if i is None else Text(word, world.cell, int(x[i]), int(y[i]))


def arrange(world, rng, attributes, word, relation):
  """A Scene of (shape, colour, size) and a word; `relation` clearly holds between the first two."""
  base, slopes = rng.randint(238, 249), rng.randint(-6, 7, 2)
  light = tuple(int(x) for x in (*(base + rng.randint(-4, 5, 3)), *slopes))
  for _ in range(TRIES):
    text = free_text(world, rng, word, []) if word else None
    objects, taken = [], [box(text)] if text else []
    for shape, colour, size in attributes:
      found = free_object(world, rng, shape, colour, size, taken)
      if found is None:
        break
      objects.append(found)
      taken.append(box(found))
    if len(objects) < len(attributes) or relation and clear(*objects[:2]) != relation:
      continue
    return Scene(tuple(objects), text, light)
  raise AssertionError(f'{world.name}: {attributes}, {word!r} and {relation!r} do not fit')


def draw_word(world, rng):
  """A word of the world: of its list, or pronounceable letters."""
  if world.words:
    return world.words[rng.randint(len(world.words))]
  letters = {'c': CONSONANTS, 'v': VOWELS}
  return ''.join(
    letters[kind][rng.randint(len(letters[kind]))] for kind in PATTERNS[rng.randint(len(PATTERNS))]
  )
