"""Dialogues that the assistant is to continue, for rollouts and for evaluation."""

from collections.abc import Sequence
import functools

import grain
import numpy as np

from vargrl.data import source
from vargrl.data.dialogue import encode, pack, train

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
  draw: bool,
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
  """The Stream of prompts; `prompts` of them in a global step, of which this host has the `rows`.

  dataset, split, dir, records: see train.opened. A batch has label int32, the record's number;
  tokens int32 [S] up to where the assistant begins its last message, or with `draw` up to its first
  picture, its own words before that included; length int32; position int32 [3, S]; place int32 [S];
  patches float32 [T, p]; patch_position int32 [2, T]; patch_segment int32 [T], as in
  train.make, with S = length and T = patches. Its `texts` says what is asked. Records that do
  not fit are skipped, and random others take their places."""
  source.check_rows(prompts, rows)
  found = train.opened(dataset=dataset, split=split, dir=dir, records=records, ends='prompt')
  form = encode.form(tokenizer=tokenizer, look=look, size=size, crop=crop)
  pack.check_room(pack.Room(length, patches, 0, 1), form)
  tell = functools.partial(asked, form=form, length=length, patches=patches, draw=draw)
  return stream(
    found,
    tell,
    features=('label', *pack.PROMPT),
    prompts=prompts,
    shuffle=shuffle,
    max_unreadable=max_unreadable,
    threads=threads,
    workers=workers,
    seed=seed,
    rows=rows,
  )


def stream(
  found, tell, *, features, prompts, shuffle, max_unreadable, threads, workers, seed, rows
):
  """The Stream of tell(record, draw) -> {feature: array} of a Source's records; draw: what seeds
  its crops.
  """
  if found.count < prompts:
    raise ValueError(
      f'{found.name}: {found.count} records found, at least {prompts}, one global batch, expected'
    )
  order = grain.MapDataset.range(found.count).seed(seed)
  order = (
    (order.shuffle() if shuffle else order)
    .repeat()
    .random_map(functools.partial(row, found=found, tell=tell))
  )
  return source.Stream(
    source.Rows(order, prompts, rows),
    rows=len(rows),
    block=1,
    features=features,
    classes=None,
    class_names=(),
    record_count=found.count,
    max_unreadable=max_unreadable,
    threads=threads,
    workers=workers,
    texts=functools.partial(texts, found),
    name=f'{found.name}, {found.count} records, prompts {prompts}, seed '
    f'{seed}{", shuffled" if shuffle else ""}',
  )


def row(index, rng, *, found, tell):
  """One row of a batch: the record, or a random other in its place."""
  draw, why = int(rng.integers(2**63)), ''
  for i in [int(index), *rng.integers(found.count, size=source.TRIES).tolist()]:
    told, wrong = train.told(f'{found.name}: record {i}', lambda i=i: tell(found.read(i), draw))
    why = why or wrong
    if told is None:
      continue
    told = told | {'label': np.int32(i)}
    return {
      'rows': {k: np.asarray(x)[None] for k, x in told.items()},
      'bad': index if why else -1,
      'why': why,
    }
  return {'rows': {}, 'bad': index, 'why': why}


def asked(dialogue, _, *, form, length, patches, draw):
  """The prompt of a Dialogue."""
  return pack.prompt(
    encode.opening(form, dialogue, draw=draw), form, length=length, patches=patches
  )


def texts(found, labels) -> list[str]:
  """What is asked in the records of these numbers."""
  said = [found.read(int(i)) for i in labels]
  return [(x if isinstance(x, encode.Dialogue) else x[0]).text for x in said]


def shapes(data) -> dict:
  """{feature: (shape of a row, dtype)} of a config's section, none of whose files is looked for."""
  form = encode.form(tokenizer='scenes', look=data.look, size=data.size, crop=data.crop)
  row = pack.blank(form, data.length, data.patches) | {
    'label': np.int32(0),
    'length': np.int32(0),
  }
  return pack.shapes(row)


def table(
  *,
  dataset: str,
  split: str,
  dir: str,
  records: int,
  length: int,
  patches: int,
  draw: bool,
  size: Sequence[int],
  crop: str,
  tokenizer: str,
  look,
):
  """(the prompts of the first records, {feature: array [n, ...]}, their Dialogues): what an
  evaluator scores against is their `about`, or their last message. All options as in `make`;
  ValueError for a record that does not fit."""
  found = train.opened(dataset=dataset, split=split, dir=dir, records=records, ends='prompt')
  form = encode.form(tokenizer=tokenizer, look=look, size=size, crop=crop)
  said, parts = [found.read(i) for i in range(found.count)], []
  for i, dialogue in enumerate(said):
    part, wrong = train.told(
      f'{found.name}: record {i}',
      lambda d=dialogue: asked(d, 0, form=form, length=length, patches=patches, draw=draw),
    )
    if wrong:
      raise ValueError(wrong)
    parts.append(part | {'label': np.int32(i)})
  return {k: np.stack([part[k] for part in parts]) for k in parts[0]}, tuple(said)
