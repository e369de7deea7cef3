"""Preferences between two answers to one dialogue, each of which generates an image or is text."""

from collections.abc import Sequence
import functools

import numpy as np

from vargrl.data import stream as streams
from vargrl.data import text
from vargrl.data.dialogue import encode, messages, pack, train
from vargrl.data.dialogue import prompts as dialogue_prompts
from vargrl.data.dialogue import tokenizer as tokenizers

IMAGES, TEXTS = ('chosen', 'rejected'), ('chosen_text', 'rejected_text')

image_token_ids = tokenizers.image_token_ids

PACKED = False  # whether rows hold several dialogues


def make(
  *,
  dataset: str,
  split: str,
  dir: str,
  max_records: int,
  prompts: int,
  length: int,
  max_patches: int,
  max_answer: int,
  size: Sequence[int],
  crop: str,
  tokenizer: str,
  vision,
  shuffle: bool,
  max_unreadable: float,
  threads: int,
  workers: int,
  seed: int,
  rows: Sequence[int],
) -> streams.Stream:
  """The Stream of pairs, `prompts` of them in a global step, of which this host has the `rows`.

  A batch has what one of prompts.make has, up to where the assistant begins its answers; 'chosen'
  and 'rejected', the images of both answers, float32 [y, x, 3] in [-1, 1], with the same seed of
  their crops; 'chosen_text' and 'rejected_text' int32 [max_answer], the tokens before them up to
  GEN_START. All options as there; records whose answers are longer do not fit. With size (), the
  answers are text alone, up to TURN_END, and a batch has no 'chosen' and 'rejected'."""
  streams.check_rows(prompts, rows)
  source = train.open_source(
    dataset=dataset, split=split, dir=dir, max_records=max_records, role='pair'
  )
  format = encode.make_format(tokenizer=tokenizer, vision=vision, size=size, crop=crop)
  pack.check_budget(pack.RowBudget(length, max_patches, 0, 1), format)
  train.check_texts(source, format, prompt=True)
  to_row = functools.partial(
    pair_row, format=format, length=length, max_patches=max_patches, max_answer=max_answer
  )
  return dialogue_prompts.make_stream(
    source,
    to_row,
    decode_text=functools.partial(dialogue_prompts.decode_text, format.tokenizer),
    features=('label', *pack.features(format, pack.PROMPT_FEATURES), *pair_features(size)),
    prompts=prompts,
    shuffle=shuffle,
    max_unreadable=max_unreadable,
    threads=threads,
    workers=workers,
    seed=seed,
    rows=rows,
  )


def pair_features(size):
  """What a batch has of both answers, whose images are of this size."""
  return (*IMAGES, *TEXTS) if size else TEXTS


def shapes(data) -> dict:
  """{feature: (shape of a row, dtype)} of a config's section; no file is opened."""
  image, answer = ((*data.size, 3), np.dtype(np.float32)), ((data.max_answer,), np.dtype(np.int32))
  return (
    dialogue_prompts.shapes(data)
    | dict.fromkeys(IMAGES if data.size else (), image)
    | dict.fromkeys(TEXTS, answer)
  )


def pair_row(dialogues, seed, *, format, length, max_patches, max_answer):
  """The row {feature: array} of Dialogues (chosen, rejected); raises DoesNotFit."""
  row = dialogue_prompts.prompt_row(
    dialogues[0], seed, format=format, length=length, max_patches=max_patches, prefill_image=False
  )
  pad = text.token_id(format.tokenizer, text.END_OF_TEXT)
  for name, dialogue in zip(('chosen', 'rejected'), dialogues, strict=True):
    tokens = answer_tokens(format, dialogue.messages[-1][1])
    if len(tokens) > max_answer:
      raise encode.DoesNotFit(
        f'{len(tokens)} tokens of the {name} answer found, at most {max_answer} expected'
      )
    row[f'{name}_text'], _ = text.pad_to(tokens, max_answer, pad=pad)
    if format.size:
      row[name] = encode.load_target(format, dialogue.images[-1], seed)
  return row


def answer_tokens(format, answer):
  """int32 [S]: the tokens of an answer up to GEN_START, or of text alone up to TURN_END."""
  if not format.size:
    return text.encode(format.tokenizer, messages.unmark(answer) + text.TURN_END)
  if encode.IMAGE_GEN not in answer:
    found = messages.short(messages.unmark(answer))
    raise encode.DoesNotFit(
      f'answer {found} found, one {encode.IMAGE_GEN} expected in it, or data.size ()'
    )
  return encode.answer_prefix(format, answer)
