"""Dialogues for training: several packed into a row, from several sources in fixed proportions.

A batch has these features, each with the rows of this host in front. S = length, T = max_patches, G
= max_images, M = max_context:

  tokens          int32 [S]
  position        int32 [3, S]: time, row and column, of each sequence from 0
  segment         int32 [S]: 1, 2, ... for the sequences, 0 for padding
  loss_mask       float32 [S]: 1 where predicting this token counts
  patches         float32 [T, p]: shown images
  patch_position  int32 [2, T]: row and column
  patch_segment   int32 [T]: 1, 2, ... for the shown images, 0 for padding
  image_index     int32 [S]: which of T / merge ** 2 embeddings replaces a token, -1 for none
  image           float32 [G, y, x, 3] in [-1, 1]: generated images
  image_start     int32 [G]: the index of an image's first GEN_PAD, -1 for no image
  context         int32 [G, M]: the indices of the tokens that an image is generated from, which are
                  those before its GEN_START in its sequence but the GEN_PAD of others, then -1

Options of `make`:

  sources           {name: dict(dataset, split, dir, max_records, weight)}, see `open_source`; they
                    take turns exactly in proportion to their weights
  examples_per_row  so many consecutive dialogues share a row; rows are a function of seed and
                    number alone
  image_tokens      GEN_PAD of a generated image
  loss_on           'assistant': its answers up to TURN_END; 'all': of dialogues that generate
                    images, all tokens but GEN_PAD
  positions         'mrope', where GEN_PAD count as text; 'sequential': 0, 1, 2 ... for all tokens,
                    as VARGPT-v1.1 was trained
  prompt_drop       share of the dialogues that generate images of which one image is left, after an
                    empty message: what classifier-free guidance needs
  size, crop, tokenizer, vision: see encode.make_format. Text alone has size (), crop 'none',
                    vision {} and 0 for max_patches, max_images, max_context and image_tokens; its
                    rows have tokens, position, segment and loss_mask

A dialogue that no longer fits its row is dropped, counts['dropped_share'] of all. One that never
fits, or has an unreadable image, is skipped.
"""

from collections.abc import Sequence
import functools
from typing import Callable, NamedTuple

import grain
import numpy as np

from vargrl import contracts
from vargrl.data import image
from vargrl.data import stream as streams
from vargrl.data.dialogue import encode, files, pack
from vargrl.data.dialogue import scenes as scenes_dialogues
from vargrl.data.dialogue import sums as sums_dialogues
from vargrl.data.dialogue import tokenizer as tokenizers
from vargrl.io import numbers

CHECKED_TEXTS = 100  # records of a file whose text is encoded before anything starts
SOURCE_KEYS = {'dataset', 'split', 'dir', 'max_records', 'weight'}


class Source(NamedTuple):
  """Records: read(index) -> Dialogue, or of pairs (chosen, rejected); count of them; their name.

  checked: how many of them `check_texts` reads."""

  read: Callable
  count: int
  name: str
  checked: int = 1


image_token_ids = tokenizers.image_token_ids

PACKED = True  # whether rows hold several dialogues


def make(
  *,
  sources,
  batch: int,
  examples_per_row: int,
  length: int,
  max_patches: int,
  max_images: int,
  max_context: int,
  image_tokens: int,
  size: Sequence[int],
  crop: str,
  loss_on: str,
  positions: str,
  prompt_drop: float,
  tokenizer: str,
  vision,
  shuffle: bool,
  max_unreadable: float,
  threads: int,
  workers: int,
  seed: int,
  rows: Sequence[int],
) -> streams.Stream:
  """The Stream of packed rows, `batch` in a global batch, of which this host has the `rows`.

  For the options and the features of a batch see above. Raises ValueError for options that do not
  fit together; `next` does if more than a share max_unreadable of the records was skipped."""
  streams.check_rows(batch, rows)
  format = encode.make_format(tokenizer=tokenizer, vision=vision, size=size, crop=crop)
  budget = pack.RowBudget(length, max_patches, max_images, max_context)
  pack.check_budget(budget, format)
  check_options(examples_per_row, image_tokens, budget, loss_on, positions, prompt_drop)
  found, weights = open_mixture(sources)
  for source in found:
    check_texts(source, format, prompt=False)
  order = mix_sources(found, weights, seed=seed, shuffle=shuffle)
  order = order.batch(examples_per_row, batch_fn=tuple).seed(seed)
  options = dict(image_tokens=image_tokens, loss_on=loss_on, positions=positions)
  to_encoded = functools.partial(encode.encode, format, prompt_drop=prompt_drop, **options)
  load = functools.partial(
    load_row, sources=found, to_encoded=to_encoded, format=format, budget=budget
  )
  return streams.Stream(
    streams.HostRows(order.random_map(load), batch, rows),
    rows=len(rows),
    block=1,
    features=pack.features(format, pack.ROW_FEATURES),
    classes=None,
    class_names=(),
    max_unreadable=max_unreadable,
    threads=threads,
    workers=workers,
    records_per_row=examples_per_row,
    shares={'dropped_share': 'left_out'},
    name=f'{mixture_name(found, weights)}, batch {batch} x {examples_per_row}, seed {seed}'
    f'{", shuffled" if shuffle else ""}',
  )


def mixture_name(sources, weights) -> str:
  """The Sources with their weights, for people and for the state of a Stream."""
  return ', '.join(
    f'{s.name} ({s.count} records, weight {w:g})' for s, w in zip(sources, weights, strict=True)
  )


def check_options(examples_per_row, image_tokens, budget, loss_on, positions, prompt_drop):
  """Raises ValueError for options of `make` that are out of range."""
  for name, value, least in (
    ('examples_per_row', examples_per_row, 1),
    ('image_tokens', image_tokens, int(budget.max_images > 0)),
  ):
    if value < least:
      raise ValueError(f'data.{name}: {value} found, at least {least} expected')
  if budget.max_images and budget.length <= image_tokens:
    raise ValueError(
      f'data.length: {budget.length} found, more than data.image_tokens, {image_tokens}, expected'
    )
  for name, value, known in (
    ('loss_on', loss_on, encode.LOSS_ON),
    ('positions', positions, encode.POSITIONS),
  ):
    if value not in known:
      raise ValueError(f'data.{name}: {value!r} found, one of {known} expected')
  numbers.check_number('data.prompt_drop', prompt_drop, least=0, most=1)


def shapes(data) -> dict:
  """{feature: (shape of a row, dtype)} of a config's section; no file is opened."""
  format = encode.make_format(
    tokenizer='scenes', vision=data.vision, size=data.size, crop=data.crop
  )
  budget = pack.RowBudget(data.length, data.max_patches, data.max_images, data.max_context)
  row = pack.shapes(pack.empty_row(format, budget))
  return {name: row[name] for name in pack.features(format, pack.ROW_FEATURES)}


def open_mixture(sources) -> tuple[list[Source], list[float]]:
  """The Sources of a config's section and their weights; ValueError for what is wrong with one."""
  if not sources:
    raise ValueError('data.sources: none found, at least one expected')
  found, weights = [], []
  for name, options in sources.items():
    contracts.check_keys(f'data.sources.{name}', options, SOURCE_KEYS)
    options = dict(options.items())
    weight = float(options.pop('weight'))
    weights.append(numbers.check_number(f'data.sources.{name}.weight', weight, above=0))
    found.append(open_source(**options, role='train'))
  return found, weights


def open_source(*, dataset: str, split: str, dir: str, max_records: int, role: str) -> Source:
  """The Source of the first `max_records` records; 0 is all.

  dataset: a file or a TFDS name, see files.py; or 'scenes/WORLD/PIXELS/KIND', see scenes.py, or
  'sums/LARGEST', see sums.py, which have as many records as are asked for. role: one of
  files.ROLES, what the records are for. Raises ValueError for a data set that is not there or of
  another role."""
  generated = None
  if dataset.startswith('scenes/') and dataset.count('/') > 1:
    generated = scenes_dialogues
  elif dataset.startswith('sums/'):
    generated = sums_dialogues
  if generated:
    if (role == 'pair') != dataset.endswith('/pairs'):
      kind = 'preferences' if role == 'pair' else 'dialogues'
      raise ValueError(f'dataset: {dataset!r} found, a data set of {kind} expected')
    if dir or not max_records >= 1:
      raise ValueError(
        f"{dataset}: dir {dir!r}, max_records {max_records} found, '' and at least 1 expected"
      )
    return Source(generated.open_source(dataset, split), max_records, f'{dataset}/{split}')
  read, count = files.open_source(dataset, split, dir, role=role)
  if not 0 <= max_records <= count:
    raise ValueError(
      f'{dataset}: max_records {max_records} found, 0 for all or at most {count} expected'
    )
  checked = CHECKED_TEXTS if dataset.endswith(files.FILES) else 1
  return Source(read, max_records or count, f'{dataset}{"/" * bool(split)}{split}', checked)


def check_texts(source: Source, format: encode.DialogueFormat, *, prompt: bool):
  """Raises ValueError, which names it, for the first record whose text cannot be encoded: one with
  tokens of images in it, or one that the chat template refuses. See encode.check_text."""
  for i in range(min(source.count, source.checked)):

    def check(i=i):
      record = source.read(i)
      for dialogue in [record] if isinstance(record, encode.Dialogue) else record:
        encode.check_text(format, dialogue, prompt=prompt)

    try_encode(f'{source.name}: record {i}', check)


def mix_sources(
  sources: Sequence[Source], weights: Sequence[float], *, seed: int, shuffle: bool
) -> grain.MapDataset:
  """Endless (index of a source, index of its record), each source in epochs of its own."""

  def order_of(k, count):
    order = grain.MapDataset.range(count).seed(seed + k)
    order = streams.endless(order.shuffle() if shuffle else order)
    return order.map(functools.partial(with_source, k))

  return grain.MapDataset.mix([order_of(k, s.count) for k, s in enumerate(sources)], weights)


def with_source(k, index):
  """(index of the source, index of its record)."""
  return k, int(index)


def try_encode(where: str, encode_record: Callable):
  """(encode_record(), ''), or (None, the reason) where the record is to be skipped.

  It is where it does not fit or has an unreadable image; other ValueErrors are raised with
  `where`, the name of the record."""
  try:
    return encode_record(), ''
  except (image.Unreadable, encode.DoesNotFit) as e:
    return None, f'{where}: {e}'
  except ValueError as e:
    raise ValueError(e if str(e).startswith(where) else f'{where}: {e}') from e


def load_row(indices, rng, *, sources, to_encoded, format, budget):
  """One row of a batch, see stream.Stream, of records ((source, record), ...)."""
  dialogues, bad, reason = [], [], ''
  for k, index in indices:

    def encode_record(read=sources[k].read, index=index):
      encoded = to_encoded(read(index), rng)
      pack.check_fits(encoded, budget)
      return encoded

    encoded, error = try_encode(f'{sources[k].name}: record {index}', encode_record)
    if encoded is None:
      bad, reason = [*bad, index], error
    else:
      dialogues.append(encoded)
  packed, dropped = pack.pack(dialogues, format, budget)
  return {
    'rows': {k: x[None] for k, x in packed.items()},
    'bad': np.array([*bad, *[-1] * (len(indices) - len(bad))]),
    'reason': reason,
    'dropped_share': np.int64(dropped),
  }
