"""The meaning of a caption, its text in several phrasings, and `parse`, the inverse of `text`."""

import collections
import dataclasses
import json
import re

from vargrl.io import text as io_text
from vargrl.scenes import world as worlds

# GenEval's tags (https://arxiv.org/abs/2310.11513), and a seventh for written words.
CATEGORIES = ('single_object', 'two_object', 'counting', 'colors', 'position', 'color_attr', 'text')
NUMBERS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six')
TEMPLATES = (
  '{}',
  'a picture of {}',
  'there {be} {}',
  'draw {}',
  'an image that shows {}',
  '{} on a light background',
)
# Relation: its first phrasing, its second.
RELATION_PHRASES = {
  'left of': ('to the left of', 'left of'),
  'right of': ('to the right of', 'right of'),
  'above': ('above', 'somewhere above'),
  'below': ('below', 'somewhere below'),
}


@dataclasses.dataclass(frozen=True)
class Thing:
  """So many objects of a shape, and of a colour and a size if those are said."""

  shape: str
  colour: str = ''
  size: str = ''
  count: int = 1


@dataclasses.dataclass(frozen=True)
class Meaning:
  """What a caption asks for.

  things: the objects. relation: of the first thing to the second, '' for none. word: what is
  written, '' for nothing."""

  things: tuple[Thing, ...] = ()
  relation: str = ''
  word: str = ''

  @property
  def category(self):
    """One of CATEGORIES."""
    if self.word:
      return 'text'
    if self.relation:
      return 'position'
    if any(t.count > 1 for t in self.things):
      return 'counting'
    coloured = any(t.colour or t.size for t in self.things)
    if len(self.things) > 1:
      return 'color_attr' if coloured else 'two_object'
    return 'colors' if coloured else 'single_object'

  def json(self):
    """JSON with the category, which `from_json` reads."""
    return json.dumps(dataclasses.asdict(self) | {'category': self.category}, sort_keys=True)


def from_json(text):
  """The Meaning of `Meaning.json`."""
  found = io_text.parse_json(text, 'meaning', dict)
  return Meaning(tuple(Thing(**t) for t in found['things']), found['relation'], found['word'])


def plural(shape):
  """'circles', 'crosses'."""
  return f'{shape}es' if shape.endswith('s') else f'{shape}s'


def article(phrase):
  """'a red circle', 'an orange circle'."""
  return f'{"an" if phrase[0] in "aeiou" else "a"} {phrase}'


def noun(thing):
  """'red circle', 'large red circles' of a Thing."""
  name = thing.shape if thing.count == 1 else plural(thing.shape)
  return ' '.join(x for x in (thing.size, thing.colour, name) if x)


def phrase(thing):
  """'a red circle', 'two large circles' of a Thing."""
  return article(noun(thing)) if thing.count == 1 else f'{NUMBERS[thing.count]} {noun(thing)}'


def text(meaning, phrasing):
  """The caption of a Meaning; phrasing: 0 .. 2 * len(TEMPLATES) - 1, the template first."""
  frame, saying = TEMPLATES[phrasing % len(TEMPLATES)], phrasing // len(TEMPLATES) % 2
  parts = [phrase(t) for t in meaning.things]
  if meaning.relation:
    body = f'{parts[0]} {RELATION_PHRASES[meaning.relation][saying]} {parts[1]}'
  else:
    if meaning.word:
      parts.append(f'the {("word", "text")[saying]} "{meaning.word}"')
    body = ', '.join(parts[:-2] + [' and '.join(parts[-2:])])
  plural_verb = (
    meaning.things and meaning.things[0].count > 1 or len(parts) > 1 and not meaning.relation
  )
  return frame.format(body, be='are' if plural_verb else 'is')


TEMPLATE_PATTERN = re.compile(
  '|'.join(
    f'(?:{frame.replace("{be}", "(?:is|are)").replace("{}", "(.+)")})'
    for frame in reversed(TEMPLATES)
  )
)
THING_PATTERN = re.compile(
  f'(an?|{"|".join(NUMBERS[2:])}) (?:({"|".join(worlds.SIZES)}) )?'
  f'(?:({"|".join(worlds.COLOURS)}) )?({"|".join([*worlds.SHAPES, *map(plural, worlds.SHAPES)])})'
)
WORD_PATTERN = re.compile('the (?:word|text) "([A-Z]+)"')
RELATION_PATTERN = re.compile(
  '(.+?) (?:(?:to the )?(left of|right of)|(?:somewhere )?(above|below)) (.+)'
)


def parse(caption):
  """The Meaning of a caption that `text` could have made; ValueError for any other."""
  wrong = ValueError(f'caption: {caption!r} found, a sentence of vargrl.scenes.captions expected')
  cleaned = ' '.join(caption.strip().rstrip('.').split())
  frame = TEMPLATE_PATTERN.fullmatch(cleaned)
  if not frame:
    raise wrong
  body, relation, word, things = next(x for x in frame.groups() if x), '', '', []
  if found := RELATION_PATTERN.fullmatch(body):
    relation, parts = found[2] or found[3], [found[1], found[4]]
  else:
    parts = re.split(', | and ', body)
    if found := WORD_PATTERN.fullmatch(parts[-1]):
      word, parts = found[1], parts[:-1]
  for part in parts:
    found = THING_PATTERN.fullmatch(part)
    if not found:
      raise wrong
    number, size, colour, name = found.groups()
    count = NUMBERS.index(number) if number in NUMBERS else 1
    shape = name if name in worlds.SHAPES else next(s for s in worlds.SHAPES if plural(s) == name)
    things.append(Thing(shape, colour or '', size or '', count))
    if part != phrase(things[-1]):
      raise wrong
  return Meaning(tuple(things), relation, word)


def describe(scene):
  """{category: Meaning} of the whole scene, in the categories that can say it."""
  objects = scene.objects
  full = tuple(Thing(o.shape, o.colour) for o in objects)
  if scene.word:
    return {'text': Meaning(full, word=scene.word)} if all_distinct(full) else {}
  found, shapes = {}, collections.Counter(o.shape for o in objects)
  if len(objects) == 1:
    found = {'single_object': Meaning((Thing(objects[0].shape),)), 'colors': Meaning(full)}
  elif len(shapes) <= 2 and len(shapes) < len(objects):
    found = {'counting': Meaning(tuple(Thing(s, count=n) for s, n in shapes.items()))}
  if 1 < len(objects) <= 3 and all_distinct(full):
    found['color_attr'] = Meaning(full)
  if len(objects) == 2 and len(shapes) == 2:
    bare = tuple(Thing(o.shape) for o in objects)
    found['two_object'] = Meaning(bare)
    if relation := worlds.clear_relation(*objects):
      found['position'] = Meaning(bare, relation)
  return found


def layout(scene, world):
  """The objects of a scene in reading order: 'a large red circle in 3 5 and the word "CAT" in 2 1'.

  The numbers are the column and the row of the centre, on a grid of 8 x 8 from the top left."""
  cell = worlds.UNIT // 8
  parts = [
    (o.y // cell, o.x // cell, f'{article(f"{world.size(o.size)} {o.colour} {o.shape}")}')
    for o in scene.objects
  ]
  if scene.text:
    left, top, right, bottom = worlds.box(scene.text)
    parts.append(
      ((top + bottom) // 2 // cell, (left + right) // 2 // cell, f'the word "{scene.word}"')
    )
  return ' and '.join(f'{what} in {x} {y}' for y, x, what in sorted(parts))


def all_distinct(things):
  """Whether no two are equal."""
  return len(set(things)) == len(things)
