"""Encoded dialogues in rows of one shape: several in a row for training, one as a prompt.

Where letters are shapes, S is the tokens of a row, T the patches of the images shown in it, G the
images generated in it, M the tokens that one of these is generated from."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from vargrl.data import text
from vargrl.data.dialogue.encode import DialogueFormat, DoesNotFit, EncodedDialogue

ROW_FEATURES = (
  'tokens',
  'position',
  'segment',
  'loss_mask',
  'patches',
  'patch_position',
  'patch_segment',
  'image_index',
  'image',
  'image_start',
  'context',
)
PROMPT_FEATURES = (
  'tokens',
  'length',
  'position',
  'image_index',
  'patches',
  'patch_position',
  'patch_segment',
)
TEXT_FEATURES = ('tokens', 'length', 'position', 'segment', 'loss_mask')


def features(format: DialogueFormat, names) -> tuple[str, ...]:
  """Those of ROW_FEATURES or PROMPT_FEATURES that rows of this format have: in text alone, none of
  images."""
  return tuple(x for x in names if x in TEXT_FEATURES or not format.text_alone)


@dataclasses.dataclass(frozen=True)
class RowBudget:
  """What a row has room for: `length` is S, max_patches T, max_images G, max_context M."""

  length: int
  max_patches: int
  max_images: int
  max_context: int


def check_budget(budget: RowBudget, format: DialogueFormat):
  """Raises ValueError for a row that could hold nothing, or parts of embeddings."""
  least = int(not format.text_alone)
  if (
    not budget.length >= 2
    or not budget.max_context >= least
    or not (budget.max_images >= 0 and budget.max_patches >= 0)
  ):
    raise ValueError(
      f'data: length {budget.length}, max_patches {budget.max_patches}, max_images '
      f'{budget.max_images}, max_context {budget.max_context} found, at least 2, 0, 0, {least} '
      'expected'
    )
  for name, room, has, key in (
    ('max_patches', budget.max_patches, format.patch, 'vision {}'),
    ('max_images', budget.max_images, format.size, 'size ()'),
  ):
    if room and not has:
      raise ValueError(f'data.{name}: {room} found, 0 expected with data.{key}')
  if budget.max_patches % format.merge**2:
    raise ValueError(
      f'data.max_patches: {budget.max_patches} found, a multiple of {format.merge**2}, the patches '
      'of an embedding, expected'
    )


def row_usage(encoded: EncodedDialogue):
  """int [3]: the tokens, patches and generated images of a dialogue."""
  images = 0 if encoded.image_start is None else len(encoded.image_start)
  return np.array([len(encoded.tokens), len(encoded.vision.patches), images])


def check_fits(encoded: EncodedDialogue, budget: RowBudget):
  """Raises DoesNotFit for a dialogue that does not fit an empty row."""
  for what, found, limit in zip(
    ('tokens', 'patches of shown images', 'generated images'),
    row_usage(encoded),
    (budget.length, budget.max_patches, budget.max_images),
    strict=True,
  ):
    if found > limit:
      raise DoesNotFit(f'{found} {what} found, at most {limit} expected')
  longest = max(map(len, encoded.context), default=0)
  if longest > budget.max_context:
    raise DoesNotFit(
      f'{longest} tokens before a generated image found, at most {budget.max_context}, '
      'max_context, expected'
    )


def pack(dialogues: Sequence[EncodedDialogue], format: DialogueFormat, budget: RowBudget):
  """(a row {feature: array} as of train.make, how many dialogues did not fit what was left of it).

  Dialogues are written one after the other; one that does not fit is dropped, and those after it
  may still fit."""
  row, used, dropped, segment = empty_row(format, budget), np.zeros(3, int), 0, 0
  limits = (budget.length, budget.max_patches, budget.max_images)
  for encoded in dialogues:
    usage = row_usage(encoded)
    if np.any(used + usage > limits):
      dropped += 1
      continue
    segment += 1
    (token, patch, image), (token_end, _, image_end) = used, used + usage
    row['segment'][token:token_end] = segment
    row['loss_mask'][token:token_end] = encoded.loss_mask
    write_prompt(row, encoded, format, token, patch)
    row['image'][image:image_end] = encoded.image
    row['image_start'][image:image_end] = encoded.image_start + token
    for i, context in enumerate(encoded.context):
      row['context'][image + i, : len(context)] = context + token
    used = used + usage
  return row, dropped


def write_prompt(row, encoded: EncodedDialogue, format: DialogueFormat, token=0, patch=0):
  """Writes the features shared by prompts and training rows, from these indices on."""
  tokens = slice(token, token + len(encoded.tokens))
  patches = slice(patch, patch + len(encoded.vision.patches))
  index = encoded.image_index
  row['tokens'][tokens], row['position'][:, tokens] = encoded.tokens, encoded.position
  row['image_index'][tokens] = np.where(index < 0, -1, index + patch // format.merge**2)
  row['patches'][patches] = encoded.vision.patches
  row['patch_position'][:, patches] = encoded.vision.position
  row['patch_segment'][patches] = encoded.vision.segment + row['patch_segment'].max(initial=0)


def empty_row(format: DialogueFormat, budget: RowBudget):
  """A training row of padding, {feature: array}."""
  S, G, zeros = budget.length, budget.max_images, np.zeros
  return empty_prompt(format, S, budget.max_patches) | {
    'segment': zeros(S, np.int32),
    'loss_mask': zeros(S, np.float32),
    'image': zeros((G, *format.size, 3), np.float32),
    'image_start': np.full(G, -1, np.int32),
    'context': np.full((G, budget.max_context), -1, np.int32),
  }


def empty_prompt(format: DialogueFormat, S: int, T: int):
  """A prompt of padding, {feature: array}, of S tokens and T patches."""
  zeros = np.zeros
  return {
    'tokens': np.full(S, text.token_id(format.tokenizer, text.END_OF_TEXT), np.int32),
    'position': zeros((3, S), np.int32),
    'image_index': np.full(S, -1, np.int32),
    'patches': zeros((T, format.patch_width), np.float32),
    'patch_position': zeros((2, T), np.int32),
    'patch_segment': zeros(T, np.int32),
  }


def shapes(row) -> dict:
  """{feature: (shape, dtype)} of a row {feature: array}."""
  return {k: (np.shape(x), np.asarray(x).dtype) for k, x in row.items()}


def prompt_row(encoded: EncodedDialogue, format: DialogueFormat, *, length: int, max_patches: int):
  """A prompt as a row {feature: array} of PROMPT_FEATURES, padded to `length` tokens.

  'length' is the number of its own tokens. Raises DoesNotFit."""
  check_fits(encoded._replace(context=()), RowBudget(length, max_patches, 0, 1))
  row = empty_prompt(format, length, max_patches)
  write_prompt(row, encoded, format)
  return row | {'length': np.int32(len(encoded.tokens))}
