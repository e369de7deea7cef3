"""Records: everything about one scene, a function of (world, seed, split, index) alone."""

from typing import NamedTuple

import numpy as np

from vargrl.scenes import captions, edits, questions
from vargrl.scenes import world as worlds
from vargrl.scenes.captions import Meaning, Thing

QUESTIONS = 4


class Record(NamedTuple):
  """All about one scene.

  Attributes:
    scene: what is drawn.
    meaning, caption: one description of it.
    questions: with their answers.
    edit: an instruction and what results.
    novel: whether it shows a pair (shape, colour), or in a world without a list of words a word,
      that training never shows.
  """

  scene: worlds.Scene
  meaning: Meaning
  caption: str
  questions: tuple[questions.Question, ...]
  edit: edits.Edit
  novel: bool


def record(world, seed, split, index):
  """The Record; categories take turns, and half of what is not training is novel.

  ValueError for a split that is none of world.SPLITS."""
  if split not in worlds.SPLITS:
    raise ValueError(f'split: {split!r} found, one of {worlds.SPLITS} expected')
  # RandomState: its stream is frozen across numpy versions; Generator's is not.
  rng = np.random.RandomState(
    [seed, worlds.SPLITS.index(split), index, sorted(worlds.WORLDS).index(world.name)]
  )
  propose = PROPOSE[captions.CATEGORIES[index % len(captions.CATEGORIES)]]
  novel = split != 'train' and bool(rng.randint(2))
  while True:
    meaning, attributes = propose(world, rng)
    pairs = [(shape, colour) for shape, colour, _ in attributes]
    if bool(worlds.novel_splits(world, pairs, meaning.word)) != novel:
      continue
    if worlds.content_split(world, pairs, meaning.word) != split:
      continue
    scene = worlds.arrange(world, rng, attributes, meaning.word, meaning.relation)
    edit = edits.propose_edit(world, scene, split, rng)
    if edit is None:
      continue  # one in thousands, whose every change belongs to another split
    made = questions.make_questions(world, scene, split, rng, QUESTIONS)
    return Record(
      scene, meaning, captions.text(meaning, rng.randint(world.phrasings)), made, edit, novel
    )


def draw_attributes(world, rng, n, **fixed):
  """[(shape, colour, size)] of n random objects; fixed: what all of them have.

  Few are large where many must fit."""
  found = []
  for i in range(n):
    chosen = {
      'shape': questions.pick(rng, world.shapes),
      'colour': questions.pick(rng, world.colours),
    } | fixed
    large = bool(rng.randint(2)) and (n <= 3 or i < 1)
    found.append((chosen['shape'], chosen['colour'], worlds.SIZES[large]))
  return found


def draw_distinct_attributes(world, rng, n, key):
  """`draw_attributes` of which no two agree in key(attributes)."""
  while True:
    found = draw_attributes(world, rng, n)
    if len({key(x) for x in found}) == n:
      return found


def single_object(world, rng):
  """(Meaning, attributes of its objects): one shape."""
  found = draw_attributes(world, rng, 1)
  return Meaning((Thing(found[0][0]),)), found


def colors(world, rng):
  """(Meaning, attributes of its objects): one shape in a colour."""
  found = draw_attributes(world, rng, 1)
  return Meaning((Thing(*found[0][:2]),)), found


def two_object(world, rng):
  """(Meaning, attributes of its objects): two shapes."""
  found = draw_distinct_attributes(world, rng, 2, lambda x: x[0])
  return Meaning(tuple(Thing(x[0]) for x in found)), found


def counting(world, rng):
  """(Meaning, attributes of its objects): several of one shape, perhaps of one colour.

  In a large world, of two shapes now and then."""
  n, parts = rng.randint(2, world.objects + 1), []
  groups = [n]
  if world.objects > 4 and n > 2 and not rng.randint(3):
    first = rng.randint(1, n)
    groups = [first, n - first]
  shapes = rng.permutation(world.shapes)
  coloured, things = rng.randint(2), []
  for shape, count in zip(map(str, shapes), groups, strict=False):
    fixed = {'shape': shape} | ({'colour': questions.pick(rng, world.colours)} if coloured else {})
    parts += draw_attributes(world, rng, count, **fixed)
    things.append(Thing(shape, fixed.get('colour', ''), count=count))
  if n > 3:
    parts = [(*x[:2], worlds.SIZES[i == 0 and x[2] == 'large']) for i, x in enumerate(parts)]
  return Meaning(tuple(things)), parts


def position(world, rng):
  """(Meaning, attributes of its objects): two shapes, perhaps in colours, and their relation."""
  found, with_colors = draw_distinct_attributes(world, rng, 2, lambda x: x[0]), rng.randint(2)
  things = tuple(Thing(*x[: 1 + with_colors]) for x in found)
  return Meaning(things, questions.pick(rng, tuple(worlds.RELATIONS))), found


def color_attr(world, rng):
  """(Meaning, attributes of its objects): two or, in a large world, three in colours.

  Their sizes are said one time in four."""
  found = draw_distinct_attributes(
    world, rng, 2 if world.objects <= 4 else rng.randint(2, 4), lambda x: x[:2]
  )
  return Meaning(
    tuple(Thing(*x) for x in found) if not rng.randint(4) else tuple(Thing(*x[:2]) for x in found)
  ), found


def text(world, rng):
  """(Meaning, attributes of its objects): a word, and objects in colours."""
  found = draw_distinct_attributes(
    world, rng, 1 if world.words else rng.randint(3), lambda x: x[:2]
  )
  return Meaning(tuple(Thing(*x[:2]) for x in found), word=worlds.pick_word(world, rng)), found


PROPOSE = {
  'single_object': single_object,
  'two_object': two_object,
  'counting': counting,
  'colors': colors,
  'position': position,
  'color_attr': color_attr,
  'text': text,
}
