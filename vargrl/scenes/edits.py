"""Edits of a scene: an instruction and the scene that results. What is not named stays as it is."""

import dataclasses
import json
from typing import NamedTuple

from vargrl.io import text as io_text
from vargrl.scenes import captions, questions
from vargrl.scenes import world as worlds

KINDS = ('recolor', 'remove', 'add', 'move', 'resize', 'replace', 'write')
HALF, MARGIN = worlds.UNIT // 2, 16
CORNERS = {'top left': (0, 0), 'top right': (1, 0), 'bottom left': (0, 1), 'bottom right': (1, 1)}


class Edit(NamedTuple):
  """An instruction and a Scene that results; where added or moved objects lie is an example.

  Attributes:
    kind: one of KINDS.
    instruction: in words.
    result: the Scene afterwards.
    changed: the index of the object of `result` that is another than before, None if none.
    corner: one of CORNERS, where that object has to lie, or ''.
  """

  kind: str
  instruction: str
  result: worlds.Scene
  changed: int | None = None
  corner: str = ''

  def json(self):
    """JSON, which `from_json` reads."""
    return json.dumps(self._asdict() | {'result': worlds.to_dict(self.result)}, sort_keys=True)


def from_json(text):
  """The Edit of `Edit.json`."""
  found = io_text.parse_json(text, 'edit', dict)
  return Edit(**found | {'result': worlds.scene_from_dict(found['result'])})


def corner_box(corner, margin):
  """(left, top, right, bottom) of a quarter of the canvas without `margin` at the middle."""
  x, y = CORNERS[corner]
  low = lambda far: HALF + margin if far else 0
  return low(x), low(y), worlds.UNIT if x else HALF - margin, worlds.UNIT if y else HALF - margin


def is_inside(o, box):
  """Whether the centre of an Object lies in a box."""
  return box[0] <= o.x <= box[2] and box[1] <= o.y <= box[3]


def propose_edit(world, scene, split, rng):
  """A random Edit whose result may be seen in this split; None if there is none.

  Its kind is as random as the scene allows."""
  kinds = [str(kind) for kind in rng.permutation(KINDS)]
  if scene.text and rng.randint(2):
    kinds.sort(key=lambda kind: kind != 'write')  # few scenes have room for a word
  for kind in kinds:
    for _ in range(20):
      found = EDITS[kind](world, scene, rng)
      if found is None:
        continue
      contents = worlds.shape_color_pairs(found.result.objects), found.result.word
      if worlds.content_split(world, *contents) == split:
        return found
  return None


def pick_phrasing(world, rng, *phrasings):
  """One of the phrasings at random; the first in a world of few words."""
  return questions.pick(rng, phrasings if world.phrasings > 2 else phrasings[:1])


def pick_target(scene, rng):
  """(index, name) of a random object that its name tells from all others; (None, '') if none."""
  called = questions.unique_names(scene)
  some = [i for i, o in enumerate(scene.objects) if o in called]
  if not some:
    return None, ''
  i = questions.pick(rng, some)
  return i, called[scene.objects[i]][0]


def replace_object(scene, i, *new):
  """The scene with objects `new`, one or none, for its i-th; the index after the last adds."""
  return dataclasses.replace(scene, objects=scene.objects[:i] + new + scene.objects[i + 1 :])


def occupied_boxes(scene, i):
  """The boxes of all objects but the i-th, and of the text."""
  things = [*replace_object(scene, i).objects, *([scene.text] if scene.text else [])]
  return [worlds.box(x) for x in things]


def pick_new_pair(world, scene, rng):
  """A random (shape, colour); None if an object of the scene has both."""
  found = questions.pick(rng, world.shapes), questions.pick(rng, world.colours)
  return None if found in worlds.shape_color_pairs(scene.objects) else found


def recolor(world, scene, rng):
  """An Edit that gives an object another colour; None if the random choice is impossible."""
  i, name = pick_target(scene, rng)
  colour = questions.pick(rng, world.colours)
  if i is None or (scene.objects[i].shape, colour) in worlds.shape_color_pairs(scene.objects):
    return None
  way = pick_phrasing(
    world, rng, 'make the {} {}', 'change the color of the {} to {}', 'turn the {} {}'
  )
  result = replace_object(scene, i, dataclasses.replace(scene.objects[i], colour=colour))
  return Edit('recolor', way.format(name, colour), result, i)


def remove(world, scene, rng):
  """An Edit that takes an object away; None if the random choice is impossible."""
  i, name = pick_target(scene, rng)
  if i is None or len(scene.objects) == 1 and not scene.text:
    return None
  return Edit(
    'remove',
    pick_phrasing(world, rng, 'remove the {}', 'take away the {}').format(name),
    replace_object(scene, i),
  )


def add(world, scene, rng):
  """An Edit that adds an object; None if the random choice is impossible."""
  found, n = pick_new_pair(world, scene, rng), len(scene.objects)
  if not found or n == world.objects:
    return None
  size = questions.pick(rng, worlds.SIZES)
  new = worlds.place_object(world, rng, *found, size, occupied_boxes(scene, n))
  name = captions.phrase(captions.Thing(*found, size))
  return new and Edit(
    'add',
    pick_phrasing(world, rng, 'add {}', 'put in {}').format(name),
    replace_object(scene, n, new),
    n,
  )


def move(world, scene, rng):
  """An Edit that moves an object to a corner; None if the random choice is impossible."""
  i, name = pick_target(scene, rng)
  corner = questions.pick(rng, tuple(CORNERS))
  # It must be out of that quarter by a margin, or doing nothing could pass for a move.
  if i is None or is_inside(scene.objects[i], corner_box(corner, -MARGIN)):
    return None
  old = scene.objects[i]
  new = worlds.place_object(
    world,
    rng,
    old.shape,
    old.colour,
    world.size(old.size),
    occupied_boxes(scene, i),
    corner_box(corner, MARGIN),
    old,
  )
  way = pick_phrasing(world, rng, 'move the {} to the {}', 'put the {} in the {}')
  return new and Edit('move', way.format(name, corner), replace_object(scene, i, new), i, corner)


def resize(world, scene, rng):
  """An Edit that gives an object the other size; None if the random choice is impossible."""
  i, name = pick_target(scene, rng)
  if i is None:
    return None
  old = scene.objects[i]
  size = next(s for s in worlds.SIZES if s != world.size(old.size))
  low, high = getattr(world, size)
  new = dataclasses.replace(old, size=int(rng.randint(low, high + 1)))
  result = replace_object(scene, i, new)
  if not worlds.is_legal(world, result):
    return None
  way = pick_phrasing(world, rng, 'make the {} {}', 'change the size of the {} to {}')
  return Edit('resize', way.format(name, size), result, i)


def replace(world, scene, rng):
  """An Edit that gives an object another shape and colour; None if the choice is impossible."""
  i, name = pick_target(scene, rng)
  found = pick_new_pair(world, scene, rng)
  if i is None or not found:
    return None
  way = pick_phrasing(world, rng, 'replace the {} with {}', 'exchange the {} for {}')
  new = dataclasses.replace(scene.objects[i], shape=found[0], colour=found[1])
  return Edit(
    'replace',
    way.format(name, captions.phrase(captions.Thing(*found))),
    replace_object(scene, i, new),
    i,
  )


def write(world, scene, rng):
  """An Edit that writes a word, or another one; None if the random choice is impossible."""
  word = worlds.pick_word(world, rng)
  new = dataclasses.replace(scene.text, word=word) if scene.text else None
  if not new or not worlds.is_legal(world, dataclasses.replace(scene, text=new)):
    new = worlds.place_text(world, rng, word, [worlds.box(o) for o in scene.objects])
  if not new or word == scene.word:
    return None
  phrasings = ('write the word "{}"', 'add the text "{}"')
  if scene.text:
    phrasings = 'change the word to "{}"', 'write "{}" instead'
  return Edit(
    'write',
    pick_phrasing(world, rng, *phrasings).format(word),
    dataclasses.replace(scene, text=new),
  )


EDITS = {
  'recolor': recolor,
  'remove': remove,
  'add': add,
  'move': move,
  'resize': resize,
  'replace': replace,
  'write': write,
}
