"""Dialogues that the assistant is to continue, for rollouts and for evaluation."""

from collections.abc import Sequence
import functools

import grain
import numpy as np

from vargrl.data import stream as streams
from vargrl.data import text
from vargrl.data.dialogue import encode, pack, train
from vargrl.data.dialogue import tokenizer as tokenizers

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
  prefill_image: bool,
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
  """The Stream of prompts, `prompts` of them in a global step, of which this host has the `rows`.

  With S = length and T = max_patches, a batch has 'label' int32, the index of the record; 'tokens'
  int32 [S] up to where the assistant begins its last answer, 'length' of them int32; and position,
  image_index, patches, patch_position and patch_segment as in train.py, of text alone (see there)
  position. Records that do not fit are skipped, and random others take their places.

  dataset, split, dir, max_records: see train.open_source. prefill_image: the prompt ends with the
  GEN_START of the first image of the record's own answer, with what the answer says before it.
  size, crop, tokenizer, vision: see encode.make_format."""
  streams.check_rows(prompts, rows)
  source = train.open_source(
    dataset=dataset, split=split, dir=dir, max_records=max_records, role='prompt'
  )
  format = encode.make_format(tokenizer=tokenizer, vision=vision, size=size, crop=crop)
  pack.check_budget(pack.RowBudget(length, max_patches, 0, 1), format)
  train.check_texts(source, format, prompt=True)
  to_row = functools.partial(
    prompt_row, format=format, length=length, max_patches=max_patches, prefill_image=prefill_image
  )
  return make_stream(
    source,
    to_row,
    decode_text=functools.partial(decode_text, format.tokenizer),
    features=('label', *pack.features(format, pack.PROMPT_FEATURES)),
    prompts=prompts,
    shuffle=shuffle,
    max_unreadable=max_unreadable,
    threads=threads,
    workers=workers,
    seed=seed,
    rows=rows,
  )


def make_stream(
  source,
  to_row,
  *,
  decode_text,
  features,
  prompts,
  shuffle,
  max_unreadable,
  threads,
  workers,
  seed,
  rows,
):
  """The Stream of to_row(record, seed) -> {feature: array} of a train.Source's records.

  seed: that of the record's crops. Raises ValueError for fewer records than `prompts`."""
  if source.count < prompts:
    raise ValueError(
      f'{source.name}: {source.count} records found, at least {prompts}, one global batch, expected'
    )
  order = grain.MapDataset.range(source.count).seed(seed)
  order = streams.endless(order.shuffle() if shuffle else order)
  order = order.random_map(functools.partial(load_row, source=source, to_row=to_row))
  return streams.Stream(
    streams.HostRows(order, prompts, rows),
    rows=len(rows),
    block=1,
    features=features,
    classes=None,
    class_names=(),
    max_unreadable=max_unreadable,
    threads=threads,
    workers=workers,
    record_count=source.count,
    prompt_records=functools.partial(prompt_records, source),
    decode_text=decode_text,
    name=f'{source.name}, {source.count} records, prompts {prompts}, seed '
    f'{seed}{", shuffled" if shuffle else ""}',
  )


def load_row(index, rng, *, source, to_row):
  """One row of a batch, see stream.Stream: the record, or a random other if it does not fit."""
  seed, reason = int(rng.integers(2**63)), ''
  for i in [int(index), *rng.integers(source.count, size=streams.TRIES).tolist()]:
    row, error = train.try_encode(
      f'{source.name}: record {i}', lambda i=i: to_row(source.read(i), seed)
    )
    reason = reason or error
    if row is None:
      continue
    row = row | {'label': np.int32(i)}
    return {
      'rows': {k: np.asarray(x)[None] for k, x in row.items()},
      'bad': index if reason else -1,
      'reason': reason,
    }
  return {'rows': {}, 'bad': index, 'reason': reason}


def prompt_row(dialogue, _, *, format, length, max_patches, prefill_image):
  """The row {feature: array} of a Dialogue's prompt; raises DoesNotFit. It has no random crops."""
  encoded = encode.encode_prompt(format, dialogue, prefill_image=prefill_image)
  return pack.prompt_row(encoded, format, length=length, max_patches=max_patches)


def decode_text(tokenizer, ids) -> str:
  """What a policy said: token ids int32 [L], -1 after the end."""
  return text.decode(tokenizer, [int(i) for i in ids if i >= 0])


def prompt_records(source, labels) -> list[dict]:
  """The records of a Source with these indices, as rewards see them."""
  found = [source.read(int(i)) for i in labels]
  found = [x if isinstance(x, encode.Dialogue) else x[0] for x in found]
  return [to_record(x, i) for x, i in zip(found, labels)]


def to_record(dialogue: encode.Dialogue, index) -> dict:
  """A Dialogue as rewards see it: 'prompt' is the user's last message, 'label' the index; the
  others are what its metadata says, if that is a dictionary."""
  metadata = dialogue.metadata if isinstance(dialogue.metadata, dict) else {}
  return metadata | {'prompt': dialogue.text, 'label': int(index)}


def shapes(data) -> dict:
  """{feature: (shape of a row, dtype)} of a config's section; no file is opened."""
  format = encode.make_format(
    tokenizer='scenes', vision=data.vision, size=data.size, crop=data.crop
  )
  row = pack.empty_prompt(format, data.length, data.max_patches)
  row = pack.shapes(row | {'label': np.int32(0), 'length': np.int32(0)})
  return {name: row[name] for name in ('label', *pack.features(format, pack.PROMPT_FEATURES))}


def load_prompts(
  *,
  dataset: str,
  split: str,
  dir: str,
  max_records: int,
  length: int,
  max_patches: int,
  prefill_image: bool,
  size: Sequence[int],
  crop: str,
  tokenizer: str,
  vision,
):
  """({feature: array [n, ...]}, n Dialogues): the first records as prompts, for an evaluator.

  What it scores against is the metadata of the Dialogues, or their last message. All options as in
  `make`; ValueError for a record that does not fit."""
  source = train.open_source(
    dataset=dataset, split=split, dir=dir, max_records=max_records, role='prompt'
  )
  format = encode.make_format(tokenizer=tokenizer, vision=vision, size=size, crop=crop)
  to_row = functools.partial(
    prompt_row, format=format, length=length, max_patches=max_patches, prefill_image=prefill_image
  )
  dialogues, rows = [source.read(i) for i in range(source.count)], []
  for i, dialogue in enumerate(dialogues):
    row, error = train.try_encode(f'{source.name}: record {i}', lambda d=dialogue: to_row(d, 0))
    if error:
      raise ValueError(error)
    rows.append(row | {'label': np.int32(i)})
  names = ('label', *pack.features(format, pack.PROMPT_FEATURES))
  return {k: np.stack([row[k] for row in rows]) for k in names}, tuple(dialogues)
