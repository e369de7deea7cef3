"""Dialogues for training: several in a row of fixed shape, from several sources in fixed
proportions.
"""

from collections.abc import Sequence
import functools
from typing import Callable, NamedTuple

import grain
import numpy as np

from vargrl.data import image, source
from vargrl.data.dialogue import encode, pack
from vargrl.data.dialogue import files as sharegpt
from vargrl.data.dialogue import scenes as scenes_dialogues

KEYS = {'dataset', 'split', 'dir', 'records', 'weight'}  # of a source


class Source(NamedTuple):
  """read: record number -> what it is; count of them; name for people."""

  read: Callable
  count: int
  name: str


special = encode.special


def make(
  *,
  sources,
  batch: int,
  records: int,
  length: int,
  patches: int,
  pictures: int,
  memory: int,
  drawn: int,
  size: Sequence[int],
  crop: str,
  wanted: str,
  positions: str,
  prompt_drop: float,
  tokenizer: str,
  look,
  shuffle: bool,
  max_unreadable: float,
  threads: int,
  workers: int,
  seed: int,
  rows: Sequence[int],
) -> source.Stream:
  """The Stream of packed rows; `batch` of them in a global batch, of which this host has the
  `rows`.

  sources: {name: dict(dataset, split, dir, records, weight)}, see `opened`; exactly in proportion
  to their weights, but for what finds no room in its row (`left_out`). `records` consecutive ones
  share a row, and rows are a function of seed and number alone. S = length, T = patches, G =
  pictures, M = memory. A batch has

    tokens int32 [S]; position int32 [3, S], by time, row and column, each sequence from 0, the
    tokens of drawn pictures as those of text; segment int32 [S], 1, 2, ... for the sequences, 0 for
    padding; wanted float32 [S], 1 where predicting this token counts; patches float32 [T, p],
    patch_position int32 [2, T], patch_segment int32 [T], 1, 2, ... for the pictures that are seen;
    place int32 [S], which of T / merge ** 2 embeddings stands for a token, -1 for none; image
    float32 [G, y, x, 3] in [-1, 1], to be drawn; slot int32 [G], the place of a picture's first
    token, -1 for no picture; memory int32 [G, M], the places before its START in its sequence but
    for tokens of drawn pictures, then -1.

  drawn: tokens of a drawn picture. wanted: 'assistant' for its words, the end of its turn and
  START; 'all', of dialogues that draw, for all tokens but a picture's. positions: 'mrope', or
  'plain', 0, 1, 2 ... for all tokens, as VARGPT-v1.1 was trained. prompt_drop: share of dialogues
  that draw of which one picture is left, after an empty message. size (y, x), crop: of drawn
  pictures; 'cover' crops them and what a drawing dialogue sees at the center, 'released' as
  VARGPT-v1.1 did. tokenizer: a checkpoint's folder, or 'scenes'. look: see encode.Form.

  What no longer fits its row is left out: counts['left_out'] is its share. A record that never
  could, or has an unreadable picture, is skipped; more than a share `max_unreadable` of these is an
  error."""
  source.check_rows(batch, rows)
  form = encode.form(tokenizer=tokenizer, look=look, size=size, crop=crop)
  room = pack.Room(length, patches, pictures, memory)
  pack.check_room(room, form)
  for name, value, least in (('records', records, 1), ('drawn', drawn, 1)):
    if value < least:
      raise ValueError(f'data.{name}: {value} found, at least {least} expected')
  if pictures and length <= drawn:
    raise ValueError(f'data.length: {length} found, more than data.drawn, {drawn}, expected')
  for name, value, known in (
    ('wanted', wanted, encode.WANTED),
    ('positions', positions, encode.POSITIONS),
  ):
    if value not in known:
      raise ValueError(f'data.{name}: {value!r} found, one of {known} expected')
  if not 0 <= prompt_drop <= 1:
    raise ValueError(f'data.prompt_drop: {prompt_drop} found, a share expected')
  found, weights = mixture(sources)
  order = (
    mixed(found, weights, seed=seed, shuffle=shuffle).batch(records, batch_fn=tuple).seed(seed)
  )
  tell = functools.partial(
    encode.whole, form, drawn=drawn, wanted=wanted, positions=positions, prompt_drop=prompt_drop
  )
  load = functools.partial(row, sources=found, tell=tell, form=form, room=room)
  name = ', '.join(
    f'{s.name} ({s.count} records, weight {w:g})' for s, w in zip(found, weights, strict=True)
  )
  return source.Stream(
    source.Rows(order.random_map(load), batch, rows),
    rows=len(rows),
    block=1,
    features=pack.FIELDS,
    classes=None,
    class_names=(),
    max_unreadable=max_unreadable,
    threads=threads,
    workers=workers,
    each=records,
    shares=('left_out',),
    name=f'{name}, batch {batch} x {records}, seed {seed}{", shuffled" if shuffle else ""}',
  )


def shapes(data) -> dict:
  """{feature: (shape of a row, dtype)} of a config's section, none of whose files is looked for."""
  form = encode.form(tokenizer='scenes', look=data.look, size=data.size, crop=data.crop)
  return pack.shapes(
    pack.empty(form, pack.Room(data.length, data.patches, data.pictures, data.memory))
  )


def mixture(sources) -> tuple[list[Source], list[float]]:
  """The Sources of a config's section and their weights."""
  if not sources:
    raise ValueError('data.sources: none found, at least one expected')
  found, weights = [], []
  for name, options in sources.items():
    if set(options) != KEYS:
      raise ValueError(
        f'data.sources.{name}: keys {sorted(options)} found, {sorted(KEYS)} expected'
      )
    options = dict(options.items())
    weights.append(float(options.pop('weight')))
    if not weights[-1] > 0:
      raise ValueError(f'data.sources.{name}.weight: {weights[-1]} found, more than 0 expected')
    found.append(opened(**options, ends='answer'))
  return found, weights


def opened(*, dataset: str, split: str, dir: str, records: int, ends: str) -> Source:
  """A Source of the first `records`; 0 is all.

  dataset: a file or a TFDS name, see sharegpt.py; or 'scenes/WORLD/PIXELS/KIND', see
  scenes_dialogues.py, which has as many records as are asked for. ends: one of sharegpt.ENDS."""
  if dataset.startswith('scenes/') and dataset.count('/') > 1:
    if (ends == 'pair') != dataset.endswith('/pairs'):
      kind = 'preferences' if ends == 'pair' else 'dialogues'
      raise ValueError(f'dataset: {dataset!r} found, a data set of {kind} expected')
    if dir or records < 1:
      raise ValueError(
        f"{dataset}: dir {dir!r}, records {records} found, '' and at least 1 expected"
      )
    return Source(scenes_dialogues.opened(dataset, split), records, f'{dataset}/{split}')
  read, count = sharegpt.opened(dataset, split, dir, ends=ends)
  if not 0 <= records <= count:
    raise ValueError(f'{dataset}: records {records} found, 0 for all or at most {count} expected')
  return Source(read, records or count, f'{dataset}{"/" * bool(split)}{split}')


def mixed(
  sources: Sequence[Source], weights: Sequence[float], *, seed: int, shuffle: bool
) -> grain.MapDataset:
  """Endless (source, record), each source's records in epochs of their own."""

  def one(k, count):
    order = grain.MapDataset.range(count).seed(seed + k)
    return (order.shuffle() if shuffle else order).repeat().map(functools.partial(tagged, k))

  return grain.MapDataset.mix([one(k, s.count) for k, s in enumerate(sources)], weights)


def tagged(k, index):
  return k, int(index)


def told(where: str, tell: Callable):
  """(what `tell` gives, '') or (None, why it is left out); other errors get the record's name."""
  try:
    return tell(), ''
  except (image.Unreadable, encode.Unfit) as e:
    return None, f'{where}: {e}'
  except ValueError as e:
    raise ValueError(e if str(e).startswith(where) else f'{where}: {e}') from e


def row(picked, rng, *, sources, tell, form, room):
  """One row of a batch of these (source, record)."""
  some, bad, why = [], [], ''
  for k, index in picked:

    def one(read=sources[k].read, index=index):
      found = tell(read(index), rng)
      pack.check_fits(found, room)
      return found

    found, wrong = told(f'{sources[k].name}: record {index}', one)
    if found is None:
      bad, why = [*bad, index], wrong
    else:
      some.append(found)
  packed, left = pack.pack(some, form, room)
  bad = np.array([*bad, *[-1] * (len(picked) - len(bad))])
  return {
    'rows': {k: x[None] for k, x in packed.items()},
    'bad': bad,
    'why': why,
    'left_out': np.int64(left),
  }
