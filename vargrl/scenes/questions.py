"""Questions about a scene, each with the one answer that follows from it.

Nothing is asked that is close: sizes are compared when one is small and one large, positions when
one relation is clear. A pair (shape, colour) that another split owns is not mentioned, or training
would learn that such an object is never there. The function of a kind returns (question, answer),
or None where the scene has no such question."""

import collections
import itertools
from typing import NamedTuple

from vargrl.scenes import captions
from vargrl.scenes import world as worlds

KINDS = ('existence', 'color', 'shape', 'count', 'position', 'size', 'comparison', 'text')
PLACES = {'left of': 'left', 'right of': 'right', 'above': 'above', 'below': 'below'}


class Question(NamedTuple):
  """kind: one of KINDS."""

  kind: str
  question: str
  answer: str


def pick(rng, some):
  """A random element."""
  return some[rng.randint(len(some))]


def unique_names(scene):
  """{object: its names that no other object has, such as 'red circle'} of objects that have one."""
  objects = scene.objects
  pairs, shapes = (
    collections.Counter(worlds.shape_color_pairs(objects)),
    collections.Counter(o.shape for o in objects),
  )
  found = {o: [f'{o.colour} {o.shape}'] for o in objects if pairs[o.shape, o.colour] == 1}
  for o in found:
    if shapes[o.shape] == 1:
      found[o].append(o.shape)
  return found


def make_questions(world, scene, split, rng, count):
  """Up to `count` Questions about a scene of a split, of different kinds, in random order."""
  found = []
  for kind in rng.permutation(KINDS):
    if len(found) == count:
      break
    made = MAKERS[str(kind)](world, scene, split, rng)
    if made:
      found.append(Question(str(kind), *made))
  return tuple(found)


def existence(world, scene, split, rng):
  """Whether an object is there, yes half of the time.

  A no is for something near: of one of the colours or shapes that are there, where possible."""
  there = sorted(set(worlds.shape_color_pairs(scene.objects)))
  if rng.randint(2) and there:
    pair = pick(rng, there)
  else:
    absent = [
      pair
      for pair in itertools.product(world.shapes, world.colours)
      if pair not in there and worlds.pair_split(world, *pair) in ('train', split)
    ]
    near = [pair for pair in absent if any(pair[0] == s or pair[1] == c for s, c in there)]
    pair = pick(rng, near or absent)
  name = f'{pair[1]} {pair[0]}'
  return f'is there {captions.article(name)}?', 'yes' if pair in there else 'no'


def color(world, scene, split, rng):
  """Which colour the only object of a shape has."""
  by_shape = collections.Counter(o.shape for o in scene.objects)
  some = [o for o in scene.objects if by_shape[o.shape] == 1]
  if not some:
    return None
  o = pick(rng, some)
  return f'what color is the {o.shape}?', o.colour


def shape(world, scene, split, rng):
  """Which shape the only object of a colour has."""
  by_colour = collections.Counter(o.colour for o in scene.objects)
  some = [o for o in scene.objects if by_colour[o.colour] == 1]
  if not some:
    return None
  o = pick(rng, some)
  return f'which shape is {o.colour}?', o.shape


def count(world, scene, split, rng):
  """How many there are of a shape or a colour.

  The answer is chosen first, or it would nearly always be one."""
  objects = scene.objects
  counts = {'shapes': len(objects)}
  counts |= {captions.plural(s): sum(o.shape == s for o in objects) for s in world.shapes}
  counts |= {f'{c} shapes': sum(o.colour == c for o in objects) for c in world.colours}
  answers = sorted(set(counts.values()) - {0})
  # Zero could always be asked for; one object alone gives one, and zero one time in three.
  answer = 0 if not answers or not rng.randint(len(answers) + 2) else pick(rng, answers)
  name = pick(rng, [name for name, n in counts.items() if n == answer])
  return f'how many {name} are there?', captions.NUMBERS[answer]


def position(world, scene, split, rng):
  """How one object lies relative to another."""
  named = unique_names(scene)
  some = [
    (a, b, r) for a, b in itertools.permutations(named, 2) if (r := worlds.clear_relation(a, b))
  ]
  if not some:
    return None
  a, b, relation = pick(rng, some)
  return f'where is the {pick(rng, named[a])} relative to the {pick(rng, named[b])}?', PLACES[
    relation
  ]


def size(world, scene, split, rng):
  """Whether an object is small or large."""
  named = unique_names(scene)
  if not named:
    return None
  o = pick(rng, list(named))
  return f'is the {pick(rng, named[o])} small or large?', world.size(o.size)


def comparison(world, scene, split, rng):
  """Which of two objects is larger; or whether two are of one colour."""
  named = unique_names(scene)
  unequal = [
    (a, b) for a, b in itertools.permutations(named, 2) if world.size(a.size) != world.size(b.size)
  ]
  shapes = {o.shape: o.colour for o in named if o.shape in named[o]}
  same = [two for two in itertools.permutations(shapes, 2) if shapes[two[0]] == shapes[two[1]]]
  other = [two for two in itertools.permutations(shapes, 2) if shapes[two[0]] != shapes[two[1]]]
  # Equal colors are rare by chance; those that differ are asked about as rarely.
  if same or other and not rng.randint(5):
    two = pick(rng, same or other)
    return f'are the {two[0]} and the {two[1]} of the same color?', 'yes' if same else 'no'
  if not unequal:
    return None
  a, b = pick(rng, unequal)
  larger = max(a, b, key=lambda o: o.size)
  return f'which is larger, the {named[a][0]} or the {named[b][0]}?', f'the {named[larger][0]}'


def text(world, scene, split, rng):
  """What is written; or whether anything is.

  The latter is yes as often as no: one scene in seven has a text."""
  if not scene.word:
    return ('is anything written?', 'no') if not rng.randint(24) else None
  return ('what is written?', scene.word) if rng.randint(4) else ('is anything written?', 'yes')


MAKERS = {
  'existence': existence,
  'color': color,
  'shape': shape,
  'count': count,
  'position': position,
  'size': size,
  'comparison': comparison,
  'text': text,
}
