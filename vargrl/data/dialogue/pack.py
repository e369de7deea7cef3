"""Dialogues in rows of one shape: several in a row for training, one in a row to be continued."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from vargrl.data import text
from vargrl.data.dialogue.encode import Form, Told, Unfit


@dataclasses.dataclass(frozen=True)
class Room:
  """What a row has room for: length, of tokens S; patches, of pictures that are seen, T; drawn
  pictures, G; memory, of one drawn picture, M."""

  length: int
  patches: int
  pictures: int
  memory: int


def check_room(room: Room, form: Form):
  """ValueError for a row that could hold nothing, or parts of embeddings."""
  if room.length < 2 or room.memory < 1 or min(room.pictures, room.patches) < 0:
    raise ValueError(
      f'data: length {room.length}, patches {room.patches}, pictures {room.pictures}, memory '
      f'{room.memory} found, at least 2, 0, 0, 1 expected'
    )
  if room.patches % form.merge**2:
    raise ValueError(
      f'data.patches: {room.patches} found, a multiple of {form.merge**2}, the patches of an '
      'embedding, expected'
    )


def sizes(told: Told):
  """How much of a row's tokens, patches and pictures it takes."""
  return np.array(
    [len(told.tokens), len(told.seen.patches), len(told.slot) if told.slot is not None else 0]
  )


def check_fits(told: Told, room: Room):
  """Unfit for what no row has room for, and for a picture with more before it than is
  remembered.
  """
  for what, found, most in zip(
    ('tokens', 'patches of pictures', 'drawn pictures'),
    sizes(told),
    (room.length, room.patches, room.pictures),
    strict=True,
  ):
    if found > most:
      raise Unfit(f'{found} {what} found, at most {most} expected')
  longest = max(map(len, told.memory), default=0)
  if longest > room.memory:
    raise Unfit(
      f'{longest} tokens before a drawn picture found, at most {room.memory}, its memory, expected'
    )


def pack(some: Sequence[Told], form: Form, room: Room):
  """(one row as in dialogues.make, how many did not fit what was left of it)."""
  row, (at, patch, picture), left = empty(form, room), (0, 0, 0), 0
  segment = 0
  for told in some:
    tokens, patches, drawn = sizes(told)
    if np.any(
      np.array([at, patch, picture]) + sizes(told) > (room.length, room.patches, room.pictures)
    ):
      left += 1
      continue
    segment += 1
    here = slice(at, at + tokens)
    row['segment'][here], row['wanted'][here] = segment, told.wanted
    lay(row, told, form, at, patch)
    there = slice(picture, picture + drawn)
    row['image'][there], row['slot'][there] = told.image, told.slot + at
    for i, memory in enumerate(told.memory):
      row['memory'][picture + i, : len(memory)] = memory + at
    at, patch, picture = at + tokens, patch + patches, picture + drawn
  return row, left


def lay(row, told: Told, form: Form, at=0, patch=0):
  """Writes what a prompt has too: tokens from `at` on, patches from `patch` on."""
  here, there = slice(at, at + len(told.tokens)), slice(patch, patch + len(told.seen.patches))
  row['tokens'][here], row['position'][:, here] = told.tokens, told.position
  row['place'][here] = np.where(told.place < 0, -1, told.place + patch // form.merge**2)
  row['patches'][there], row['patch_position'][:, there] = told.seen.patches, told.seen.position
  row['patch_segment'][there] = told.seen.segment + row['patch_segment'].max(initial=0)


def empty(form: Form, room: Room):
  """A row of padding."""
  S, G, zeros = room.length, room.pictures, np.zeros
  return blank(form, S, room.patches) | {
    'segment': zeros(S, np.int32),
    'wanted': zeros(S, np.float32),
    'image': zeros((G, *form.size, 3), np.float32),
    'slot': np.full(G, -1, np.int32),
    'memory': np.full((G, room.memory), -1, np.int32),
  }


def blank(form: Form, S: int, T: int):
  """A prompt of padding, S tokens and T patches."""
  zeros = np.zeros
  return {
    'tokens': np.full(S, text.number(form.words, text.TEXT_END), np.int32),
    'position': zeros((3, S), np.int32),
    'place': np.full(S, -1, np.int32),
    'patches': zeros((T, form.width), np.float32),
    'patch_position': zeros((2, T), np.int32),
    'patch_segment': zeros(T, np.int32),
  }


def shapes(row) -> dict:
  """{feature: (shape, dtype)} of a row."""
  return {k: (np.shape(x), np.asarray(x).dtype) for k, x in row.items()}


def prompt(told: Told, form: Form, *, length: int, patches: int):
  """One dialogue that is to be continued, as a row {'tokens', 'length', 'position', 'place',
  'patches', 'patch_position', 'patch_segment'}; Unfit if it is too long."""
  check_fits(told._replace(memory=()), Room(length, patches, 0, 1))
  row = blank(form, length, patches)
  lay(row, told, form)
  return row | {'length': np.int32(len(told.tokens))}


FIELDS = (
  'tokens',
  'position',
  'segment',
  'wanted',
  'patches',
  'patch_position',
  'patch_segment',
  'place',
  'image',
  'slot',
  'memory',
)
PROMPT = ('tokens', 'length', 'position', 'place', 'patches', 'patch_position', 'patch_segment')
