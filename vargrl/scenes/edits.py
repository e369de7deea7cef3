"""Edits of a scene: an instruction and the scene that results. What is not named stays as it is."""

import dataclasses
import json
from typing import NamedTuple

from vargrl.scenes import captions, questions
from vargrl.scenes import world as worlds

KINDS = ('recolor', 'remove', 'add', 'move', 'resize', 'replace', 'write')
HALF, MARGIN = worlds.UNIT // 2, 16
CORNERS = {'top left': (0, 0), 'top right': (1, 0), 'bottom left': (0, 1), 'bottom right': (1, 1)}


class Edit(NamedTuple):
  """changed: which object of `result` is another than before, None if none; corner: where it has to
  lie, or ''.

  The scene is an example of a result: what is added or moved may lie elsewhere.
  """

  kind: str
  instruction: str
  result: worlds.Scene
  changed: int | None = None
  corner: str = ''

  def json(self):
    return json.dumps(self._asdict() | {'result': worlds.plain(self.result)}, sort_keys=True)


def from_json(text):
  """The Edit of `Edit.json`."""
  found = json.loads(text)
  return Edit(**found | {'result': worlds.scene_of(found['result'])})


def within(corner, margin):
  """(left, top, right, bottom) of a quarter of the canvas, smaller by a margin towards its
  middle.
  """
  x, y = CORNERS[corner]
  low = lambda far: HALF + margin if far else 0
  return low(x), low(y), worlds.UNIT if x else HALF - margin, worlds.UNIT if y else HALF - margin


def inside(o, box):
  return box[0] <= o.x <= box[2] and box[1] <= o.y <= box[3]


def edit(world, scene, split, rng):
  """An Edit whose result may be seen in this split, of a kind as random as the scene allows; None
  if there is none.
  """
  kinds = [str(kind) for kind in rng.permutation(KINDS)]
  if scene.text and rng.randint(2):
    kinds.sort(key=lambda kind: kind != 'write')  # few scenes have room for a word
  for kind in kinds:
    for _ in range(20):
      found = EDIT[kind](world, scene, rng)
      if found is None:
        continue
      contents = worlds.pairs(found.result.objects), found.result.word
      if worlds.split_of(world, *contents) == split:
        return found
  return None


def say(world, rng, *ways):
  """One of the ways; a world of few words knows the first alone."""
  return questions.pick(rng, ways if world.phrasings > 2 else ways[:1])


def target(scene, rng):
  """(index, name) of an object that a colour and a shape tell from all others; (None, '') if
  none.
  """
  called = questions.names(scene)
  some = [i for i, o in enumerate(scene.objects) if o in called]
  if not some:
    return None, ''
  i = questions.pick(rng, some)
  return i, called[scene.objects[i]][0]


def put(scene, i, *found):
  """The scene with `found` for its i-th object: one, or none; the index after the last adds."""
  return dataclasses.replace(scene, objects=scene.objects[:i] + found + scene.objects[i + 1 :])


def taken(scene, i):
  """Boxes of all but the i-th object."""
  things = [*put(scene, i).objects, *([scene.text] if scene.text else [])]
  return [worlds.box(x) for x in things]


def pair(world, scene, rng):
  """A shape and a colour that no object has together; None if the draw has."""
  found = questions.pick(rng, world.shapes), questions.pick(rng, world.colours)
  return None if found in worlds.pairs(scene.objects) else found


def recolor(world, scene, rng):
  i, name = target(scene, rng)
  colour = questions.pick(rng, world.colours)
  if i is None or (scene.objects[i].shape, colour) in worlds.pairs(scene.objects):
    return None
  way = say(world, rng, 'make the {} {}', 'change the color of the {} to {}', 'turn the {} {}')
  result = put(scene, i, dataclasses.replace(scene.objects[i], colour=colour))
  return Edit('recolor', way.format(name, colour), result, i)


def remove(world, scene, rng):
  i, name = target(scene, rng)
  if i is None or len(scene.objects) == 1 and not scene.text:
    return None
  return Edit(
    'remove', say(world, rng, 'remove the {}', 'take away the {}').format(name), put(scene, i)
  )


def add(world, scene, rng):
  found, n = pair(world, scene, rng), len(scene.objects)
  if not found or n == world.objects:
    return None
  size = questions.pick(rng, worlds.SIZES)
  new = worlds.free_object(world, rng, *found, size, taken(scene, n))
  name = captions.phrase(captions.Thing(*found, size))
  return new and Edit(
    'add', say(world, rng, 'add {}', 'put in {}').format(name), put(scene, n, new), n
  )


def move(world, scene, rng):
  i, name = target(scene, rng)
  corner = questions.pick(rng, tuple(CORNERS))
  # It must be out of that quarter by a margin, or doing nothing could pass for a move.
  if i is None or inside(scene.objects[i], within(corner, -MARGIN)):
    return None
  old = scene.objects[i]
  new = worlds.free_object(
    world,
    rng,
    old.shape,
    old.colour,
    world.size(old.size),
    taken(scene, i),
    within(corner, MARGIN),
    old,
  )
  way = say(world, rng, 'move the {} to the {}', 'put the {} in the {}')
  return new and Edit('move', way.format(name, corner), put(scene, i, new), i, corner)


def resize(world, scene, rng):
  i, name = target(scene, rng)
  if i is None:
    return None
  old = scene.objects[i]
  size = next(s for s in worlds.SIZES if s != world.size(old.size))
  low, high = getattr(world, size)
  new = dataclasses.replace(old, size=int(rng.randint(low, high + 1)))
  result = put(scene, i, new)
  if not worlds.legal(world, result):
    return None
  way = say(world, rng, 'make the {} {}', 'change the size of the {} to {}')
  return Edit('resize', way.format(name, size), result, i)


def replace(world, scene, rng):
  i, name = target(scene, rng)
  found = pair(world, scene, rng)
  if i is None or not found:
    return None
  way = say(world, rng, 'replace the {} with {}', 'exchange the {} for {}')
  new = dataclasses.replace(scene.objects[i], shape=found[0], colour=found[1])
  return Edit(
    'replace', way.format(name, captions.phrase(captions.Thing(*found))), put(scene, i, new), i
  )


def write(world, scene, rng):
  word = worlds.draw_word(world, rng)
  new = dataclasses.replace(scene.text, word=word) if scene.text else None
  if not new or not worlds.legal(world, dataclasses.replace(scene, text=new)):
    new = worlds.free_text(world, rng, word, [worlds.box(o) for o in scene.objects])
  if not new or word == scene.word:
    return None
  ways = ('write the word "{}"', 'add the text "{}"')
  if scene.text:
    ways = 'change the word to "{}"', 'write "{}" instead'
  return Edit('write', say(world, rng, *ways).format(word), dataclasses.replace(scene, text=new))


EDIT = {
  'recolor': recolor,
  'remove': remove,
  'add': add,
  'move': move,
  'resize': resize,
  'replace': replace,
  'write': write,
}
