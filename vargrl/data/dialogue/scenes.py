"""Dialogues about `scenes`: record i of a world and split, as vargrl.scenes.records draws it, in
words.
"""

import functools
import itertools

from vargrl.data.dialogue.encode import DRAWN, SEEN, Dialogue
from vargrl.scenes import captions, draw, records, score
from vargrl.scenes import world as worlds

KINDS = ('understanding', 'question', 'description', 'generation', 'editing', 'text', 'pairs')
SEED = 0  # as the data sets scenes/32 to scenes/256 have it
KEPT = 1 << 15  # records in memory: drawing one takes 2 to 6 ms


def opened(dataset: str, split: str):
  """'scenes/WORLD/PIXELS/KIND' -> record number -> Dialogue; any number is one. ValueError for an
  unknown name.

  understanding: all questions of the record, turn by turn; question: the first alone. description:
  its picture, to be told with all places. generation: its caption, answered by what is to lie
  where, and the picture; editing: its edit, answered alike. text: its caption, to be said plainly.
  pairs: (chosen, rejected), a preference: both answer the caption in the same words, the second
  with the picture of a scene that does not show it."""
  parts = dataset.split('/')
  if len(parts) != 4 or not parts[2].isdigit() or parts[3] not in KINDS:
    raise ValueError(
      f"dataset: {dataset!r} found, 'scenes/WORLD/PIXELS/KIND' with a KIND of {KINDS} expected"
    )
  world, pixels, kind = worlds.find(parts[1]), int(parts[2]), parts[3]
  if pixels < world.pixels:
    raise ValueError(
      f'dataset: {dataset!r} found, at least {world.pixels} pixels expected of the world '
      f'{world.name!r}'
    )
  if split not in worlds.SPLITS:
    raise ValueError(f'split: {split!r} found, one of {worlds.SPLITS} expected')
  return functools.partial(read, world.name, pixels, kind, split)


@functools.lru_cache(KEPT)
def record(world: str, split: str, index: int) -> records.Record:
  return records.record(worlds.find(world), SEED, split, index)


def read(world: str, pixels: int, kind: str, split: str, index: int) -> Dialogue:
  """The Dialogue; about: its questions, Meaning or Edit."""
  found = record(world, split, index)
  plain, picture = captions.text(found.meaning, 0), functools.partial(draw.image, pixels=pixels)
  known = worlds.find(world)
  told = functools.partial(captions.layout, world=known)
  shows = lambda scene: all(
    score.met(found.meaning, scene.objects, scene.word, known, strict=False)
  )
  if kind == 'text':
    return Dialogue(turns((f'in short: {found.caption}', plain)), (), found.meaning)
  if kind == 'description':
    return Dialogue(
      turns((f'{SEEN}what is where?', f'{told(found.scene)}.')),
      (picture(found.scene),),
      found.scene,
    )
  if kind == 'generation':
    return Dialogue(
      turns((found.caption, f'{told(found.scene)}.{DRAWN}')), (picture(found.scene),), found.meaning
    )
  if kind == 'pairs':
    others = (record(world, split, index + 1 + i).scene for i in itertools.count())
    other = next(
      scene for scene in itertools.chain([found.edit.result], others) if not shows(scene)
    )
    say = turns((found.caption, f'{told(found.scene)}.{DRAWN}'))
    return tuple(Dialogue(say, (picture(scene),), found.meaning) for scene in (found.scene, other))
  if kind == 'editing':
    both = picture(found.scene), picture(found.edit.result)
    return Dialogue(
      turns((f'{SEEN}{found.edit.instruction}', f'{told(found.edit.result)}.{DRAWN}')),
      both,
      found.edit,
    )
  asked = found.questions[:1] if kind == 'question' else found.questions
  said = [(SEEN * (i == 0) + q.question, q.answer) for i, q in enumerate(asked)]
  return Dialogue(turns(*said), (picture(found.scene),), asked)


def turns(*pairs):
  """Messages of (what the user says, what the assistant answers)."""
  return tuple(
    message for user, assistant in pairs for message in (('user', user), ('assistant', assistant))
  )
