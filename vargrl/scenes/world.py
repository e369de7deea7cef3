"""A world with ground truth: scenes, what they contain, their splits, and where objects may lie.

Lengths and positions are integers in units of 1/256 of the side of the canvas, x to the right, y
down; the position of an object is the centre of its bounding box. A scene has no pixels: the same
one is drawn at any size. Random numbers come from a numpy RandomState `rng`, whose stream is frozen
across versions of numpy."""

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
  """What scenes may contain.

  Attributes:
    name: see `find`.
    shapes, colours: of objects.
    small, large: ranges of their diameters.
    objects: at most so many.
    gap: least distance of two bounding boxes, along one axis.
    cell: side of a cell of the font.
    words: those that are written, () for letters by PATTERNS.
    phrasings: how many each caption has, see captions.text.
    pixels: the least side of an image that can be read.
  """

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
    """One of SIZES, for a diameter."""
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
  """A shape with a colour at a position.

  Attributes:
    shape, colour: of SHAPES and COLOURS.
    size: diameter.
    x, y: centre of the bounding box.
    tone: what is added to red, green and blue of the colour.
  """

  shape: str
  colour: str
  size: int
  x: int
  y: int
  tone: tuple[int, int, int] = (0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Text:
  """A written word: the side of a cell of its font, and its top left corner (x, y)."""

  word: str
  cell: int
  x: int
  y: int


@dataclasses.dataclass(frozen=True)
class Scene:
  """Objects, a text and a background.

  light: the background's red, green and blue at the centre, then what it gains from left to right
  and from top to bottom, in levels."""

  objects: tuple[Object, ...]
  text: Text | None
  light: tuple[int, int, int, int, int]

  @property
  def word(self):
    return self.text.word if self.text else ''


def find(name):
  """The World of that name; ValueError if there is none."""
  if name not in WORLDS:
    raise ValueError(f'world: {name!r} found, one of {sorted(WORLDS)} expected')
  return WORLDS[name]


def to_dict(scene):
  """The Scene as a dictionary that JSON can hold."""
  return dataclasses.asdict(scene)


def scene_from_dict(fields):
  """The Scene of `to_dict`, or of that with lists for tuples."""
  objects = tuple(Object(**x | {'tone': tuple(x['tone'])}) for x in fields['objects'])
  return Scene(objects, Text(**fields['text']) if fields['text'] else None, tuple(fields['light']))


# Splits.


def pair_split(world, shape, colour):
  """The only split that shows this shape in this colour: of each shape two colours are held out."""
  step = (world.colours.index(colour) - world.shapes.index(shape)) % len(world.colours)
  return {0: 'test', len(world.colours) // 2: 'validation'}.get(step, 'train')


def hash_split(*what):
  """A split by a hash of the arguments, the same on every machine; eight of ten are train."""
  return {0: 'validation', 1: 'test'}.get(zlib.crc32(repr(what).encode()) % 10, 'train')


def novel_splits(world, pairs, word):
  """The splits other than train that own one of the pairs (shape, colour) or the word."""
  owners = {pair_split(world, *pair) for pair in pairs}
  if word and not world.words:
    owners.add(hash_split(word))
  return owners - {'train'}


def content_split(world, pairs, word):
  """The only split with images of these contents; '' for none.

  pairs: (shape, colour) of every object. What is novel to training decides first, then a hash of
  the contents, whatever the positions, sizes and order."""
  new = novel_splits(world, pairs, word)
  if new:
    return new.pop() if len(new) == 1 else ''
  if len(pairs) == 1 and not word:  # too few for a hash to leave some of each kind in every split
    i, j = world.shapes.index(pairs[0][0]), world.colours.index(pairs[0][1])
    if (j - i) % len(world.colours) != 1:
      return 'train'
    return SPLITS[1 + i % 2]
  return hash_split(world.name, sorted(pairs), word)


def shape_color_pairs(objects):
  """[(shape, colour)] of objects."""
  return [(o.shape, o.colour) for o in objects]


# Positions.


def clear_relation(a, b):
  """The relation of Object a to b that nobody would doubt; '' for none.

  Their boxes are apart along an axis, and twice as far along it as across."""
  for name, (axis, sign) in RELATIONS.items():
    along, across = (a.x - b.x, a.y - b.y) if axis == 'x' else (a.y - b.y, a.x - b.x)
    if along * sign >= max(2 * abs(across), (a.size + b.size) / 2):
      return name
  return ''


def relations(a, b):
  """The set of relations of Object a to b by GenEval's rule: none, one or two.

  https://github.com/djghosh13/geneval/blob/main/evaluation/evaluate_images.py"""
  away, least = {'x': a.x - b.x, 'y': a.y - b.y}, 0.1 * (a.size + b.size)
  norm = max((away['x'] ** 2 + away['y'] ** 2) ** 0.5, 1e-9)
  return {
    name for name, (axis, sign) in RELATIONS.items() if (away[axis] * sign - least) / norm > 0.5
  }


def box(thing):
  """(left, top, right, bottom) of an Object or a Text."""
  if isinstance(thing, Text):
    return (
      thing.x,
      thing.y,
      thing.x + font.word(thing.word).shape[1] * thing.cell,
      thing.y + font.HEIGHT * thing.cell,
    )
  low, high = thing.size // 2, (thing.size + 1) // 2
  return thing.x - low, thing.y - low, thing.x + high, thing.y + high


def are_apart(a, b, gap):
  """Whether box a, or boxes a [4, n], are at least `gap` from box b along an axis."""
  return (a[0] - b[2] >= gap) | (b[0] - a[2] >= gap) | (a[1] - b[3] >= gap) | (b[1] - a[3] >= gap)


def is_legal(world, scene):
  """Whether all of a scene lies on the canvas, at distances of the gap."""
  boxes, edge = (
    [box(x) for x in (*scene.objects, *([scene.text] if scene.text else []))],
    world.gap // 2,
  )
  inside = all(min(b[:2]) >= edge and max(b[2:]) <= UNIT - edge for b in boxes)
  return inside and all(are_apart(a, b, world.gap) for a, b in itertools.combinations(boxes, 2))


def place_object(world, rng, shape, colour, size, taken, within=(0, 0, UNIT, UNIT), like=None):
  """A random Object of a size ('small', 'large'); None if none of 40 positions is free.

  taken: boxes that it keeps the gap from. within: a box for its centre. like: an Object whose
  diameter and tone it has."""
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
  """The index of the first of boxes [4, n] that `fits` and is apart from `taken`; None if none."""
  for other in taken:
    fits = fits & are_apart(boxes, other, gap)
  return int(np.argmax(fits)) if fits.any() else None


def place_text(world, rng, word, taken):
  """A random Text on the grid of cells, apart from the boxes `taken`; None if none is free."""
  width, edge = font.word(word).shape[1], world.gap // 2
  least, most = -(-edge // world.cell), (UNIT - edge) // world.cell
  x = rng.randint(least, most - width + 1, 40) * world.cell
  y = rng.randint(least, most - font.HEIGHT + 1, 40) * world.cell
  boxes = np.stack([x, y, x + width * world.cell, y + font.HEIGHT * world.cell])
  i = first_free(boxes, np.ones(40, bool), taken, world.gap)
  return None if i is None else Text(word, world.cell, int(x[i]), int(y[i]))


def arrange(world, rng, attributes, word, relation):
  """A random Scene of (shape, colour, size), ... and a word, '' for none.

  relation: clearly holds between the first two objects, '' for any. AssertionError if nothing
  fits."""
  base, slopes = rng.randint(238, 249), rng.randint(-6, 7, 2)
  light = tuple(int(x) for x in (*(base + rng.randint(-4, 5, 3)), *slopes))
  for _ in range(TRIES):
    text = place_text(world, rng, word, []) if word else None
    objects, taken = [], [box(text)] if text else []
    for shape, colour, size in attributes:
      found = place_object(world, rng, shape, colour, size, taken)
      if found is None:
        break
      objects.append(found)
      taken.append(box(found))
    if len(objects) < len(attributes) or relation and clear_relation(*objects[:2]) != relation:
      continue
    return Scene(tuple(objects), text, light)
  raise AssertionError(f'{world.name}: {attributes}, {word!r} and {relation!r} do not fit')


def pick_word(world, rng):
  """A random word of the world: of its list, or pronounceable letters."""
  if world.words:
    return world.words[rng.randint(len(world.words))]
  letters = {'c': CONSONANTS, 'v': VOWELS}
  return ''.join(
    letters[kind][rng.randint(len(letters[kind]))] for kind in PATTERNS[rng.randint(len(PATTERNS))]
  )
