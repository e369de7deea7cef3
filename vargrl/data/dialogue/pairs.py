"""Preferences between two answers to one dialogue, each of which generates an image."""

from collections.abc import Sequence
import functools

import numpy as np

from vargrl.data import stream as streams
from vargrl.data import text
from vargrl.data.dialogue import encode, pack, train
from vargrl.data.dialogue import prompts as dialogue_prompts

PAIR_FEATURES = ('chosen', 'rejected', 'chosen_text', 'rejected_text')

image_token_ids = encode.image_token_ids

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
  GEN_START. All options as there; records whose answers are longer do not fit."""
  streams.check_rows(prompts, rows)
  source = train.open_source(
    dataset=dataset, split=split, dir=dir, max_records=max_records, role='pair'
  )
  format = encode.make_format(tokenizer=tokenizer, vision=vision, size=size, crop=crop)
  pack.check_budget(pack.RowBudget(length, max_patches, 0, 1), format)
  to_row = functools.partial(
    pair_row, format=format, length=length, max_patches=max_patches, max_answer=max_answer
  )
  return dialogue_prompts.make_stream(
    source,
    to_row,
    decode_text=functools.partial(dialogue_prompts.decode_text, format.tokenizer),
    features=('label', *pack.PROMPT_FEATURES, *PAIR_FEATURES),
    prompts=prompts,
    shuffle=shuffle,
    max_unreadable=max_unreadable,
    threads=threads,
    workers=workers,
    seed=seed,
    rows=rows,
  )


def shapes(data) -> dict:
  """{feature: (shape of a row, dtype)} of a config's section; no file is opened."""
  image, answer = ((*data.size, 3), np.dtype(np.float32)), ((data.max_answer,), np.dtype(np.int32))
  return (
    dialogue_prompts.shapes(data)
    | dict.fromkeys(PAIR_FEATURES[:2], image)
    | dict.fromkeys(PAIR_FEATURES[2:], answer)
  )


def pair_row(dialogues, seed, *, format, length, max_patches, max_answer):
  """The row {feature: array} of Dialogues (chosen, rejected); raises DoesNotFit."""
  row = dialogue_prompts.prompt_row(
    dialogues[0], seed, format=format, length=length, max_patches=max_patches, prefill_image=False
  )
  pad = text.token_id(format.tokenizer, text.END_OF_TEXT)
  for name, dialogue in zip(('chosen', 'rejected'), dialogues, strict=True):
    tokens = encode.answer_prefix(format, dialogue.messages[-1][1])
    if len(tokens) > max_answer:
      raise encode.DoesNotFit(
        f'{len(tokens)} tokens of the {name} answer found, at most {max_answer} expected'
      )
    row[f'{name}_text'], _ = text.pad_to(tokens, max_answer, pad=pad)
    row[name] = encode.load_target(format, dialogue.images[-1], seed)
  return row
