"""Dialogues as arrays: their tokens, what of them is trained, the pictures they show and those they
draw.

A picture that is drawn takes a token START, so many tokens PAD and a token END (text.DRAW_START,
DRAW, DRAW_END)."""

from collections.abc import Sequence
import dataclasses
import re
from typing import Any, NamedTuple

import numpy as np

from vargrl.data import image as pixels
from vargrl.data import patches as cutting
from vargrl.data import scenes_tokenizer as scenes
from vargrl.data import text

SEEN, DRAWN = (
  '<image>',
  '<image_gen>',
)  # the place of a picture in a message, as in the data files of VARGPT-v1.1
PLACE = re.compile(f'({SEEN}|{DRAWN})')
NULL = (('user', ''), ('assistant', DRAWN))
CROPS, WANTED, POSITIONS = ('cover', 'released'), ('assistant', 'all'), ('mrope', 'plain')
MOST = (
  512 * 512
)  # pixels of a picture before anything else is done with it, where crop is 'released'


class Unfit(ValueError):
  """A dialogue that is left out, as one with an unreadable picture is."""


class Dialogue(NamedTuple):
  """messages: ((role, content), ...). pictures: of the places in the contents, in their order; each
  uint8 [y, x, 3], the bytes of a file or its path. about: what a checker needs to judge an
  answer."""

  messages: tuple
  pictures: tuple
  about: Any = None

  @property
  def text(self):
    """What is asked last, without the places of pictures."""
    return ' '.join(
      PLACE.sub(' ', [said for role, said in self.messages if role == 'user'][-1]).split()
    )


@dataclasses.dataclass(frozen=True)
class Form:
  """words: the tokenizer. patch, merge, frames, least, most: of pictures that are seen, see
  patches.cut. size, crop: (y, x) of those that are drawn."""

  words: text.Words
  patch: int
  merge: int
  frames: int
  least: int
  most: int
  size: tuple[int, int]
  crop: str

  @property
  def width(self):
    return 3 * self.frames * self.patch**2


class Seen(NamedTuple):
  """Pictures as patches: patches float32 [T, p], position int32 [2, T], segment int32 [T] from 1;
  sizes [(h, w)].
  """

  patches: np.ndarray
  position: np.ndarray
  segment: np.ndarray
  sizes: list


class Told(NamedTuple):
  """A dialogue of S tokens: tokens, wanted, place [S], position [3, S]; image [G, y, x, 3], slot
  [G]; memory: G arrays. See dialogues.make; places count from its own beginning, segments of
  patches from 1."""

  tokens: np.ndarray
  position: np.ndarray
  place: np.ndarray
  seen: Seen
  wanted: Any = None
  image: Any = None
  slot: Any = None
  memory: Any = None


def form(*, tokenizer: str, look, size: Sequence[int], crop: str) -> Form:
  """The Form of config sections; tokenizer: a checkpoint's folder, or 'scenes'. ValueError for what
  does not fit.
  """
  knobs = {'patch', 'merge', 'frames', 'least', 'most'}
  if set(look) != knobs:
    raise ValueError(f'data.look: keys {sorted(look)} found, {sorted(knobs)} expected')
  if crop not in CROPS:
    raise ValueError(f'data.crop: {crop!r} found, one of {CROPS} expected')
  y, x = size
  if crop == 'released' and y != x:
    raise ValueError(f"data.size: {y} x {x} found with crop 'released', a square expected")
  return Form(words=worded(tokenizer), size=(y, x), crop=crop, **look)


def worded(tokenizer: str) -> text.Words:
  """The tokenizer of a checkpoint's folder, or that of 'scenes'. One that has no tokens for drawing
  gets them after its last; ValueError where it has none for pictures that are seen."""
  words = scenes.words() if tokenizer == 'scenes' else text.with_drawing(text.read(tokenizer))
  for token in scenes.SPECIAL:
    text.number(words, token)
  return words


def special(data) -> tuple[tuple[int, ...], int]:
  """(the tokens where a drawn picture begins, ends, and of its places; how many tokens there are)
  of a config's section.
  """
  words = worded(data.tokenizer)
  numbers = [text.number(words, token) for token in (text.DRAW_START, text.DRAW_END, text.DRAW)]
  return tuple(numbers), words.tokenizer.get_vocab_size()


def pictured(picture) -> np.ndarray:
  """uint8 [y, x, 3] of a picture of a Dialogue; image.Unreadable if it is none."""
  if not isinstance(picture, str):
    return pixels.decode(picture)
  try:
    with open(picture, 'rb') as file:
      return pixels.decode(file.read())
  except OSError as e:
    raise pixels.Unreadable(f'picture {picture}: {e.strerror or e}, a file expected') from e
  except pixels.Unreadable as e:
    raise pixels.Unreadable(f'{picture}: {e}') from e


def target(form: Form, picture, draw: int) -> np.ndarray:
  """float32 [y, x, 3] in [-1, 1] of a picture that is drawn; `draw` seeds its crop."""
  found, (y, x) = pictured(picture), form.size
  if form.crop == 'cover':
    return pixels.to_float(pixels.cover(found, height=y, width=x))
  found = pixels.shrunk(found, most=MOST)
  return pixels.to_float(pixels.fit(found, size=y, crop='random', rng=np.random.default_rng(draw)))


def see(form: Form, pictures, *, framed: bool) -> Seen:
  """Pictures that are seen; framed: as those of a drawing dialogue, which show what is drawn and no
  more.
  """
  cuts = []
  for picture in pictures:
    found, (y, x) = pictured(picture), form.size
    if form.crop == 'released':
      found = pixels.shrunk(found, most=MOST)
    elif framed:
      found = pixels.framed(found, height=y, width=x)
    try:
      cuts.append(
        cutting.cut(
          found,
          patch=form.patch,
          merge=form.merge,
          frames=form.frames,
          least=form.least,
          most=form.most,
        )
      )
    except ValueError as e:
      raise Unfit(str(e)) from e
  sizes = [size for _, size in cuts]
  lengths = [h * w for h, w in sizes]
  return Seen(
    np.concatenate([np.zeros((0, form.width), np.float32), *(x for x, _ in cuts)]),
    np.concatenate(
      [np.zeros((2, 0), np.int32), *(cutting.grid(*s, merge=form.merge) for s in sizes)], 1
    ),
    np.repeat(np.arange(len(cuts)) + 1, lengths).astype(np.int32),
    sizes,
  )


def places(messages):
  """SEEN or DRAWN for each picture of these messages."""
  return [place for _, said in messages for place in PLACE.findall(said)]


def spoken(messages):
  """The messages as a chat template takes them, one token for every picture."""

  def content(said):
    said = said.replace(DRAWN, text.DRAW_START + text.DRAW + text.DRAW_END)
    if SEEN not in said:
      return said
    parts = [
      {'type': 'image'} if part == SEEN else {'type': 'text', 'text': part}
      for part in PLACE.split(said)
    ]
    return [part for part in parts if part.get('text') != '']

  return [{'role': role, 'content': content(said)} for role, said in messages]


def whole(
  form: Form,
  dialogue: Dialogue,
  rng: np.random.Generator,
  *,
  drawn: int,
  wanted: str,
  positions: str,
  prompt_drop: float,
) -> Told:
  """The Told of a dialogue, up to the last word of the assistant; for the options see
  dialogues.make.
  """
  messages, pictures = dialogue.messages, dialogue.pictures
  kinds = places(messages)
  targets = [picture for picture, kind in zip(pictures, kinds, strict=True) if kind == DRAWN]
  if targets and rng.random() < prompt_drop:
    targets = [targets[rng.integers(len(targets))]]
    messages, pictures, kinds = NULL, targets, [DRAWN]
  draw = int(rng.integers(2**63))
  seen = see(form, [p for p, kind in zip(pictures, kinds) if kind == SEEN], framed=bool(targets))
  ids, said = text.dialogue(form.words, spoken(messages), counts=[1] * len(seen.sizes))
  ids, said = (x[: np.flatnonzero(said)[-1] + 1] for x in (ids, said))
  pad = text.number(form.words, text.DRAW)
  if (found := int((ids == pad).sum())) != len(targets):
    raise ValueError(
      f'dialogue: {found} tokens {text.DRAW} found, one for each of {len(targets)} {DRAWN} expected'
    )
  many = counts(form, ids, seen) + (drawn - 1) * (ids == pad)
  slot = (np.cumsum(many) - many)[ids == pad].astype(np.int32)
  ids, said = np.repeat(ids, many), np.repeat(said, many)
  if targets and wanted == 'all':
    said[:] = True
  else:
    said &= ids != text.number(form.words, text.DRAW_END)
  said &= ids != pad
  said[0] = False
  image = [target(form, picture, draw) for picture in targets]
  position, place = shown(form, ids, seen)
  if positions == 'plain':
    position = np.tile(np.arange(len(ids), dtype=position.dtype), (3, 1))
  return Told(
    ids,
    position,
    place,
    seen,
    said.astype(np.float32),
    np.stack(image) if image else np.zeros((0, *form.size, 3), np.float32),
    slot,
    [np.flatnonzero(ids[: at - 1] != pad).astype(np.int32) for at in slot],
  )


def counts(form, ids, seen):
  """How often each token is repeated: as often as its picture has embeddings."""
  many, at = np.ones(len(ids), np.int64), ids == text.number(form.words, text.IMAGE)
  many[at] = [h * w // form.merge**2 for h, w in seen.sizes]
  return many


def shown(form, ids, seen):
  """(position [3, S], place [S]) of tokens among which pictures have as many as they have
  embeddings.
  """
  pad = text.number(form.words, text.IMAGE)
  place = np.full(len(ids), -1, np.int32)
  place[ids == pad] = np.arange((ids == pad).sum())
  return cutting.positions(ids, seen.sizes, pad=pad, merge=form.merge), place


def opening(form: Form, dialogue: Dialogue, *, draw: bool) -> Told:
  """What is before the assistant's last message; draw: and that message as far as its first
  picture's START.
  """
  *before, (_, answer) = dialogue.messages
  kinds = places(before)
  if DRAWN in kinds:
    raise Unfit(f'prompt: {DRAWN} before the last answer found, which no prompt can hold')
  if draw and DRAWN not in answer:
    raise Unfit(f'prompt: no {DRAWN} in the last answer found, one expected')
  seen = see(form, dialogue.pictures[: len(kinds)], framed=DRAWN in answer)
  ids = text.prompt(form.words, spoken(before), counts=[1] * len(seen.sizes))
  ids = np.repeat(ids, counts(form, ids, seen))
  if draw:
    ids = np.concatenate([ids, begun(form, answer)])
  return Told(ids, *shown(form, ids, seen), seen)


def begun(form: Form, answer: str) -> np.ndarray:
  """ids of an answer as far as its first picture's START."""
  return text.encode(form.words, answer.split(DRAWN)[0] + text.DRAW_START)
