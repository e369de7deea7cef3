"""Packed rows as batches: the same whatever the hosts, resumed, in proportion; scenes as rows;
errors.
"""

import collections
import json

from ml_collections import ConfigDict
import numpy as np
import pytest

from vargrl.data import text
from vargrl.data.dialogue import encode, pack, train
from vargrl.data.dialogue import scenes as scenes_dialogues
from vargrl.scenes import captions, draw, edits, records, score
from vargrl.scenes import world as worlds

ROOM = dict(length=160, max_patches=64, max_images=2, max_context=64)


@pytest.fixture
def make(talks):
  """dialogues.make of talks.json alone; what it opened is closed afterwards."""
  streams = []

  def call(source=(), **changes):
    own = dict(dataset=talks.path, split='', dir='', max_records=0, weight=1.0) | dict(source)
    options = (
      dict(
        sources={'a': own},
        batch=4,
        examples_per_row=2,
        image_tokens=5,
        size=(8, 8),
        crop='cover',
        loss_on='assistant',
        positions='mrope',
        prompt_drop=0.5,
        tokenizer=talks.tokenizer,
        vision=talks.vision,
        shuffle=True,
        max_unreadable=0.0,
        threads=0,
        workers=0,
        seed=1,
      )
      | ROOM
      | changes
    )
    streams.append(train.make(**dict(rows=range(options['batch'])) | options))
    return streams[-1]

  yield call
  for stream in streams:
    stream.close()


def equal(a, b):
  assert a.keys() == b.keys()
  for k in a:
    np.testing.assert_array_equal(a[k], b[k], err_msg=k)


def test_a_batch_is_the_same_whatever_the_hosts_and_after_a_restart(make):
  whole = make()
  batches = [next(whole) for _ in range(2)]
  state, third = json.loads(json.dumps(whole.get_state())), next(whole)
  for rows in ([0, 1], [3]):
    part = make(rows=rows)
    for batch in batches:
      equal(next(part), {k: x[rows] for k, x in batch.items()})
  again = make(threads=2)
  again.set_state(state)
  equal(next(again), third)
  assert again.counts == whole.counts and again.get_state() == whole.get_state()
  assert len({row.tobytes() for batch in batches for row in batch['tokens']}) > 4


def test_shapes_are_told_by_the_config_alone(make):
  stream = make(batch=1)
  data = ConfigDict(
    dict(
      vision=dict(patch=2, merge=2, frames=1, min_pixels=16, max_pixels=64),
      size=(8, 8),
      crop='cover',
    )
    | ROOM
  )
  batch = next(stream)
  assert {k: (x.shape[1:], x.dtype) for k, x in batch.items()} == train.shapes(data)
  assert tuple(batch) == stream.features == pack.ROW_FEATURES


def test_what_is_left_out_is_counted_as_a_share_of_the_records(make):
  stream = make(length=64, shuffle=False, prompt_drop=0.0)  # 35, 42, 53 and 33 tokens: no two fit
  for _ in range(3):
    batch = next(stream)
  assert (
    stream.counts == {'seen': 24, 'skipped': 0, 'dropped_share': 0.5}
    and batch['segment'].max() == 1
  )
  assert make().counts['dropped_share'] == 0


def test_records_that_are_unreadable_or_never_fit_are_skipped_and_counted_up_to_a_share(
  make, talks, tmp_path
):
  (tmp_path / '0.png').write_bytes(b'no picture')
  (tmp_path / '1.png').write_bytes((talks.images / '1.png').read_bytes())
  stream = make({'dir': str(tmp_path)}, shuffle=False, max_unreadable=1.0, prompt_drop=0.0)
  batch = next(stream)
  assert (
    stream.counts == {'seen': 8, 'skipped': 4, 'dropped_share': 0}
    and batch['segment'].max(1).tolist() == [1] * 4
  )
  with pytest.raises(
    ValueError,
    match=r'talks.json.*: 4 of 8 records unreadable, the last is record 2 \(.*record 2: '
    r'.*0.png: picture of 10 bytes.*\); at most a share of 0.0 expected',
  ):
    next(make({'dir': str(tmp_path)}, shuffle=False, prompt_drop=0.0))
  with pytest.raises(
    ValueError, match=r'2 of 8 records unreadable.*record 2: 53 tokens found, at most 48 expected'
  ):
    next(make(length=48, shuffle=False, prompt_drop=0.0))
  with pytest.raises(
    ValueError,
    match=r'unreadable, .*record \d: \d+ tokens before a generated image found, at most 9',
  ):
    next(make(max_context=9, prompt_drop=0.0))


@pytest.mark.parametrize('weights', [(0.5, 0.2, 0.3), (4, 4, 2)])
def test_sources_are_mixed_exactly_in_proportion_each_record_once_an_epoch(weights):
  some = [train.Source(None, n, '') for n in (10, 4, 7)]
  order = train.mix_sources(some, weights, seed=3, shuffle=True)
  found = [order[i] for i in range(200)]
  share = np.array(weights) / sum(weights)
  for k, n in enumerate((10, 4, 7)):
    mine = [index for which, index in found if which == k]
    assert len(mine) == round(200 * share[k])
    epochs = [tuple(mine[i : i + n]) for i in range(0, len(mine) - n + 1, n)]
    assert all(sorted(epoch) == [*range(n)] for epoch in epochs) and len(set(epochs)) > 1
  for end in range(1, 200):
    counts = collections.Counter(which for which, _ in found[:end])
    assert all(abs(counts[k] - end * share[k]) < 1.5 for k in range(3))


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(sources={}), 'data.sources: none found'),
    (
      dict(sources={'a': {'dataset': 'x.json'}}),
      r"data.sources.a: keys \['dataset'\] found, \['dataset', 'dir',",
    ),
    (dict(source={'weight': 0}), 'data.sources.a.weight: 0.0 found, a number above 0 expected'),
    (dict(source={'max_records': 9}), 'max_records 9 found, 0 for all or at most 4 expected'),
    (dict(image_tokens=0), 'data.image_tokens: 0 found, at least 1 expected'),
    (dict(examples_per_row=0), 'data.examples_per_row: 0 found, at least 1'),
    (dict(loss_on='some'), r"data.loss_on: 'some' found, one of \('assistant', 'all'\) expected"),
    (
      dict(positions='all'),
      r"data.positions: 'all' found, one of \('mrope', 'sequential'\) expected",
    ),
    (dict(prompt_drop=2.0), 'data.prompt_drop: 2.0 found, a number at least 0 and at most 1'),
    (
      dict(source={'dataset': 'scenes/small/32/x', 'max_records': 1}),
      "'scenes/small/32/x' found, 'scenes/WORLD/PIX",
    ),
    (
      dict(source={'dataset': 'scenes/small/16/text', 'max_records': 4, 'split': 'train'}),
      'at least 32 pixels expected',
    ),
    (
      dict(source={'dataset': 'scenes/small/32/text', 'split': 'train'}),
      "dir '', max_records 0 found, '' and at least 1",
    ),
    (dict(source={'dataset': 'scenes/small/32/text', 'max_records': 4}), "split: '' found, one of"),
  ],
)
def test_what_does_not_fit_is_told(make, change, message):
  with pytest.raises(ValueError, match=message):
    make(**change)


# Of scenes.

VISION = dict(patch=4, merge=2, frames=1, min_pixels=1024, max_pixels=1024)


@pytest.fixture(scope='module')
def rows():
  """A batch of scenes of all kinds, and the Form."""
  own = lambda kind: dict(
    dataset=f'scenes/small/32/{kind}', split='validation', dir='', max_records=28, weight=0.25
  )
  stream = train.make(
    sources={kind: own(kind) for kind in ('understanding', 'generation', 'editing', 'text')},
    batch=3,
    examples_per_row=4,
    length=288,
    max_patches=128,
    max_images=2,
    max_context=96,
    image_tokens=21,
    size=(32, 32),
    crop='cover',
    loss_on='assistant',
    positions='mrope',
    prompt_drop=0.0,
    tokenizer='scenes',
    vision=VISION,
    shuffle=False,
    max_unreadable=0.0,
    threads=0,
    workers=0,
    seed=0,
    rows=range(3),
  )
  yield (
    next(stream),
    encode.make_format(tokenizer='scenes', vision=VISION, size=(32, 32), crop='cover'),
  )
  stream.close()


def test_scenes_say_what_their_records_say(rows):
  batch, format = rows
  for r in range(3):
    found = records.record(worlds.find('small'), 0, 'validation', r)
    said = [
      text.decode(format.tokenizer, batch['tokens'][r][batch['segment'][r] == k], special=True)
      for k in (1, 2, 3, 4)
    ]
    plain, ends = captions.text(found.meaning, 0), (text.TURN_END, text.TURN_START)
    told = lambda scene: captions.layout(scene, worlds.find('small'))
    assert all(
      f'{q.question}{ends[0]}\n{ends[1]}assistant\n{q.answer}{ends[0]}' in said[0]
      for q in found.questions
    )
    assert (
      f'user\n{found.caption}{ends[0]}\n{ends[1]}assistant\n{told(found.scene)}.{text.GEN_START}'
      in said[1]
    )
    assert f'{text.VISION_END}{found.edit.instruction}{ends[0]}' in said[2] and said[3].endswith(
      f'{plain}{ends[0]}'
    )
    assert np.array_equal(
      np.rint((batch['image'][r] + 1) * 127.5),
      [draw.image(found.scene, 32), draw.image(found.edit.result, 32)],
    )
  assert (
    text.token_id(format.tokenizer, '<|unknown|>') not in batch['tokens']
    and (batch['image_start'] > 0).all()
  )


def test_scenes_tell_a_checker_what_to_expect():
  found = records.record(worlds.find('small'), 0, 'test', 6)
  read = {
    kind: scenes_dialogues.open_source(f'scenes/small/32/{kind}', 'test')(6)
    for kind in scenes_dialogues.KINDS
  }
  assert (
    read['generation'].metadata
    == read['text'].metadata
    == found.meaning
    == captions.parse(read['generation'].text)
  )
  assert read['editing'].metadata == found.edit and isinstance(found.edit, edits.Edit)
  assert read['editing'].text == found.edit.instruction
  assert (
    read['question'].metadata == found.questions[:1]
    and read['question'].messages[-1][1] == found.questions[0].answer
  )
  assert (
    read['description'].messages[-1][1] == f'{captions.layout(found.scene, worlds.find("small"))}.'
  )
  assert (
    read['understanding'].metadata == found.questions
    and read['understanding'].text == found.questions[-1].question
  )


def test_the_rejected_picture_of_a_pair_does_not_show_the_caption():
  world, read = worlds.find('small'), scenes_dialogues.open_source('scenes/small/32/pairs', 'train')
  for i in range(35):
    right, wrong = (
      score.judge(encode.load_image(d.images[-1]), d.text, world, strict=False) for d in read(i)
    )
    assert all(right) and not all(wrong), read(i)[0].text
