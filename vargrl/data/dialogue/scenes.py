"""Dialogues about `scenes`: record i of a world and a split, see vargrl.scenes.records."""

import functools
import itertools

from vargrl.data.dialogue.encode import IMAGE, IMAGE_GEN, Dialogue
from vargrl.scenes import captions, draw, records, score
from vargrl.scenes import world as worlds

KINDS = ('understanding', 'question', 'description', 'generation', 'editing', 'text', 'pairs')
SEED = 0  # as the data sets scenes/32 to scenes/256 have it
CACHED_RECORDS = 1 << 15  # drawing one takes 2 to 6 ms


def open_source(dataset: str, split: str):
  """read(index) -> Dialogue of 'scenes/WORLD/PIXELS/KIND', for any index; ValueError if unknown.

  Kinds:
    understanding: all questions of the record, turn by turn; metadata: the questions.
    question: the first of them alone; metadata: a tuple of it.
    description: the image, answered by its layout; metadata: the Scene.
    generation: the caption, answered by the layout and the image; metadata: the Meaning.
    editing: the image and its edit, answered by the layout and the edited image; metadata: the
      Edit.
    text: the caption, answered by its plainest phrasing; metadata: the Meaning.
    pairs: (chosen, rejected), both answers to the caption in the same words, the second with the
      image of a scene that does not show it; metadata: the Meaning."""
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


@functools.lru_cache(CACHED_RECORDS)
def cached_record(world: str, split: str, index: int) -> records.Record:
  """The Record of this index in the world of that name."""
  return records.record(worlds.find(world), SEED, split, index)


def read(world: str, pixels: int, kind: str, split: str, index: int):
  """The Dialogue, or of pairs (chosen, rejected), of a record; kind: one of KINDS."""
  record = cached_record(world, split, index)
  scene, meaning, edit = record.scene, record.meaning, record.edit
  image = functools.partial(draw.image, pixels=pixels)
  layout = lambda scene: f'{captions.layout(scene, worlds.find(world))}.'
  if kind == 'text':
    answer = captions.text(meaning, 0)
    return Dialogue(to_messages((f'in short: {record.caption}', answer)), (), meaning)
  if kind == 'description':
    messages = to_messages((f'{IMAGE}what is where?', layout(scene)))
    return Dialogue(messages, (image(scene),), scene)
  if kind == 'editing':
    answer = f'{layout(edit.result)}{IMAGE_GEN}'
    messages = to_messages((f'{IMAGE}{edit.instruction}', answer))
    return Dialogue(messages, (image(scene), image(edit.result)), edit)
  if kind in ('generation', 'pairs'):
    messages = to_messages((record.caption, f'{layout(scene)}{IMAGE_GEN}'))
    chosen = Dialogue(messages, (image(scene),), meaning)
    if kind == 'generation':
      return chosen
    other = other_scene(world, split, index)
    return chosen, Dialogue(messages, (image(other),), meaning)
  questions = record.questions[:1] if kind == 'question' else record.questions
  turns = [(IMAGE * (i == 0) + q.question, q.answer) for i, q in enumerate(questions)]
  return Dialogue(to_messages(*turns), (image(scene),), questions)


def other_scene(world: str, split: str, index: int):
  """A Scene that does not show a record's caption: its edited one, or that of a later record."""
  record, known = cached_record(world, split, index), worlds.find(world)
  others = (cached_record(world, split, index + 1 + i).scene for i in itertools.count())
  shows = lambda scene: all(
    score.check_caption(record.meaning, scene.objects, scene.word, known, strict=False)
  )
  return next(x for x in itertools.chain([record.edit.result], others) if not shows(x))


def to_messages(*turns):
  """((role, content), ...) of (the user's message, the assistant's answer), ..."""
  return tuple(
    message for user, assistant in turns for message in (('user', user), ('assistant', assistant))
  )
