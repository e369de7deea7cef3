"""Prompts and pairs as batches: what is asked, in shapes that do not change, with the records
beside it.
"""

import json

import dialogue_files_test
from ml_collections import ConfigDict
import numpy as np
import pytest

from vargrl.data import text
from vargrl.data.dialogue import encode
from vargrl.data.dialogue import pairs as dialogue_pairs
from vargrl.data.dialogue import prompts as dialogue_prompts
from vargrl.scenes import captions, records, score
from vargrl.scenes import world as worlds

SCENES = dict(
  dataset='scenes/small/32/generation',
  split='test',
  dir='',
  max_records=7,
  length=64,
  max_patches=64,
  size=(32, 32),
  crop='cover',
  tokenizer='scenes',
  vision=dict(patch=4, merge=2, frames=1, min_pixels=1024, max_pixels=1024),
)


@pytest.fixture(scope='module')
def options(talks):
  return dict(
    dataset=talks.path,
    split='',
    dir='',
    max_records=0,
    prompts=4,
    length=64,
    max_patches=16,
    size=(8, 8),
    crop='cover',
    tokenizer=talks.tokenizer,
    vision=talks.vision,
    shuffle=False,
    max_unreadable=0.0,
    threads=0,
    workers=0,
    seed=0,
  )


@pytest.fixture(scope='module')
def pairs(options, talks, tmp_path_factory):
  path = tmp_path_factory.mktemp('pairs') / 'pairs.json'
  path.write_text(
    json.dumps(
      [dialogue_files_test.PAIR, dialogue_files_test.PAIR | {'images': ['1.png', '2.png', '0.png']}]
    )
  )
  return options | dict(dataset=str(path), dir=str(talks.images), prompts=2, max_answer=6)


def said(format, batch, i):
  return text.decode(format.tokenizer, batch['tokens'][i][: batch['length'][i]], special=True)


def asked(stream, labels):
  """The users' last messages of these records."""
  records = stream.prompt_records(labels)
  assert [record['label'] for record in records] == list(labels)
  return [record['prompt'] for record in records]


def test_prompts_are_what_the_assistant_continues_with_the_records_number(options, talks):
  stream, format = (
    dialogue_prompts.make(**options, prefill_image=False, rows=range(4)),
    talks.format(),
  )
  batch, dialogues = (
    next(stream),
    dialogue_prompts.load_prompts(**{k: options[k] for k in SCENES}, prefill_image=False),
  )
  assert batch['label'].tolist() == [0, 1, 2, 3]
  for name, x in dialogues[0].items():
    np.testing.assert_array_equal(x, batch[name])
  assert said(format, batch, 1).endswith('user\nhello the dog<|im_end|>\n<|im_start|>assistant\n')
  assert said(format, batch, 3).endswith(
    'world<|im_end|>\n<|im_start|>user\na dog<|im_end|>\n<|im_start|>assistant\n'
  )
  assert (
    asked(stream, batch['label'][[3, 2]]) == ['a dog', 'make a cat']
    and dialogues[1][3].messages[-1][1] == 'hello'
  )
  assert (batch['image_index'] >= 0).sum(1).tolist() == [2, 0, 4, 0]
  assert batch['patch_segment'].max(1).tolist() == [1, 0, 1, 0]
  end = int(batch['length'][0])
  assert (
    batch['tokens'][0][end:] == text.token_id(format.tokenizer, text.END_OF_TEXT)
  ).all() and end < 64
  other = dialogue_prompts.make(
    **options | {'shuffle': True, 'prompts': 3}, prefill_image=False, rows=[2]
  )
  whole = dialogue_prompts.make(
    **options | {'shuffle': True, 'prompts': 3}, prefill_image=False, rows=range(3)
  )
  for _ in range(3):
    np.testing.assert_array_equal(next(other)['tokens'], next(whole)['tokens'][2:])


def test_shapes_are_told_by_the_config_alone(options, pairs):
  for module, data, changes in (
    (dialogue_prompts, options, {'prefill_image': False}),
    (dialogue_pairs, pairs, {}),
  ):
    stream = module.make(**data, **changes, rows=range(data['prompts']))
    found = {k: (x.shape[1:], x.dtype) for k, x in next(stream).items()}
    assert found == module.shapes(ConfigDict(data)) and set(found) == set(stream.features)


def test_a_prompt_that_draws_at_once_ends_with_the_assistants_words_and_begins_a_picture():
  batch, dialogues = dialogue_prompts.load_prompts(**SCENES, prefill_image=True)
  format = encode.make_format(**{k: SCENES[k] for k in ('tokenizer', 'vision', 'size', 'crop')})
  for i, dialogue in enumerate(dialogues):
    layout = captions.layout(
      records.record(worlds.find('small'), 0, 'test', i).scene, worlds.find('small')
    )
    assert said(format, batch, i).endswith(
      f'{dialogue.text}<|im_end|>\n<|im_start|>assistant\n{layout}.<|image_gen_start|>'
    )
    assert score.parse_prompt(dialogue.text, worlds.find('small')) == dialogue.metadata
    picture = encode.load_image(dialogue.images[0])
    assert score.judge(picture, dialogue.text, worlds.find('small'), strict=True)[0]
  assert [d.metadata.category for d in dialogues] == list(captions.CATEGORIES)


def test_questions_and_edits_have_their_answers_beside_them():
  for kind in ('question', 'editing'):
    options = SCENES | {'length': 96, 'dataset': f'scenes/small/32/{kind}'}
    batch, dialogues = dialogue_prompts.load_prompts(**options, prefill_image=kind == 'editing')
    assert (batch['patch_segment'] == 1).all() and ((batch['image_index'] >= 0).sum(1) == 16).all()
    for d in dialogues:
      assert d.text == (d.metadata[0].question if kind == 'question' else d.metadata.instruction)
      if kind == 'editing':
        assert d.metadata.result.objects or d.metadata.result.word


def test_pairs_are_a_prompt_and_two_answers_up_to_their_pictures(pairs, talks):
  stream, format = dialogue_pairs.make(**pairs, rows=range(2)), talks.format()
  batch = next(stream)
  for i, (first, second) in enumerate((('1.png', '2.png'), ('2.png', '0.png'))):
    assert said(format, batch, i).endswith('<|vision_end|>.<|im_end|>\n<|im_start|>assistant\n')
    for name, answer, picture in (('chosen', 'Here.', first), ('rejected', 'There.', second)):
      ids = batch[f'{name}_text'][i]
      many = ids.tolist().index(text.token_id(format.tokenizer, text.GEN_START)) + 1
      whole = (
        talks.format(),
        encode.Dialogue((('user', 'x'), ('assistant', f'{answer}<image_gen>')), ()),
      )
      assert (
        ids[:many].tolist() == encode.answer_prefix(whole[0], whole[1].messages[-1][1]).tolist()
      )
      assert (
        text.decode(format.tokenizer, ids[:many], special=True) == f'{answer}<|image_gen_start|>'
      )
      np.testing.assert_array_equal(
        batch[name][i], encode.load_target(format, str(talks.images / picture), 0)
      )
  assert asked(stream, [0]) == ['Draw .']


def test_what_does_not_fit_is_told_or_skipped(options, pairs, talks):
  take = lambda **changes: next(
    dialogue_prompts.make(**options | dict(prefill_image=False, rows=range(4)) | changes)
  )
  with pytest.raises(
    ValueError, match=r'1 of 4 .*is record 2 .* tokens found, at most 36 expected\); at most'
  ):
    take(length=36)
  label = take(length=36, max_unreadable=1.0)['label']
  assert label[[0, 1, 3]].tolist() == [0, 1, 3] and label[2] != 2
  with pytest.raises(
    ValueError, match='2 of 4 .*: prompt: no <image_gen> in the last answer found, one expected'
  ):
    take(prefill_image=True)
  with pytest.raises(ValueError, match='4 records found, at least 5, one global batch, expected'):
    take(prompts=5, rows=range(5))
  with pytest.raises(ValueError, match='tokens found, at most 24 expected'):
    dialogue_prompts.load_prompts(
      **{k: options[k] for k in SCENES} | dict(length=24, prefill_image=False)
    )
  with pytest.raises(ValueError, match=r'\d tokens of the chosen answer found, at most 2 expected'):
    next(dialogue_pairs.make(**pairs | dict(max_answer=2), rows=range(2)))
  with pytest.raises(
    ValueError, match="'scenes/small/32/text' found, a data set of preferences expected"
  ):
    dialogue_pairs.make(**pairs | dict(dataset='scenes/small/32/text'), rows=range(2))
