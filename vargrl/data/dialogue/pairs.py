"""Preferences between two answers of one dialogue, each of which draws a picture."""

from collections.abc import Sequence
import functools

import numpy as np

from vargrl.data import source, text
from vargrl.data.dialogue import encode, pack, train
from vargrl.data.dialogue import prompts as dialogue_prompts

FIELDS = ('chosen', 'rejected', 'chosen_text', 'rejected_text')

special = encode.special


def make(
  *,
  dataset: str,
  split: str,
  dir: str,
  records: int,
  prompts: int,
  length: int,
  patches: int,
  answer: int,
  size: Sequence[int],
  crop: str,
  tokenizer: str,
  look,
  shuffle: bool,
  max_unreadable: float,
  threads: int,
  workers: int,
  seed: int,
  rows: Sequence[int],
) -> source.Stream:
  """The Stream of pairs: what dialogue_prompts.make has, up to where the assistant begins its
  answers, and of these chosen and rejected float32 [y, x, 3] in [-1, 1], the pictures; chosen_text
  and rejected_text int32 [answer], the words before them and START.

  Both pictures get the same draw of a crop.
  """
  source.check_rows(prompts, rows)
  found = train.opened(dataset=dataset, split=split, dir=dir, records=records, ends='pair')
  form = encode.form(tokenizer=tokenizer, look=look, size=size, crop=crop)
  pack.check_room(pack.Room(length, patches, 0, 1), form)
  tell = functools.partial(pair, form=form, length=length, patches=patches, answer=answer)
  return dialogue_prompts.stream(
    found,
    tell,
    features=('label', *pack.PROMPT, *FIELDS),
    prompts=prompts,
    shuffle=shuffle,
    max_unreadable=max_unreadable,
    threads=threads,
    workers=workers,
    seed=seed,
    rows=rows,
  )


def shapes(data) -> dict:
  """{feature: (shape of a row, dtype)} of a config's section, none of whose files is looked for."""
  picture, words = ((*data.size, 3), np.dtype(np.float32)), ((data.answer,), np.dtype(np.int32))
  return (
    dialogue_prompts.shapes(data)
    | dict.fromkeys(FIELDS[:2], picture)
    | dict.fromkeys(FIELDS[2:], words)
  )


def pair(both, draw, *, form, length, patches, answer):
  """The row of a (chosen, rejected)."""
  row = dialogue_prompts.asked(both[0], draw, form=form, length=length, patches=patches, draw=False)
  for name, dialogue in zip(('chosen', 'rejected'), both, strict=True):
    ids = encode.begun(form, dialogue.messages[-1][1])
    if len(ids) > answer:
      raise encode.Unfit(f'{len(ids)} tokens of the {name} answer found, at most {answer} expected')
    padded, _ = text.padded(ids, answer, pad=text.number(form.words, text.TEXT_END))
    row |= {name: encode.target(form, dialogue.pictures[-1], draw), f'{name}_text': padded}
  return row
