"""Dialogues of text alone: batches without features of pictures, and records with all that a file
says."""

import json

from ml_collections import ConfigDict
import numpy as np
import pytest

from vargrl.data import characters_tokenizer, text
from vargrl.data.dialogue import pairs, prompts, train

TEXT = dict(tokenizer='characters', vision={}, size=(), crop='none')
READ = dict(split='', dir='', max_records=0)
STREAM = dict(shuffle=False, max_unreadable=0.0, threads=0, workers=0, seed=0)
ASKED = [
  {'messages': [{'role': 'user', 'content': f'{n}+1='}], 'answer': str(n + 1), 'level': n}
  for n in range(3)
]


def said(role, content):
  return {'role': role, 'content': content}


def write(path, records):
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return str(path)


def decoded(tokens):
  return text.decode(characters_tokenizer.build(), tokens, special=True)


def test_prompts_have_tokens_alone_and_the_records_what_the_file_says(tmp_path):
  path = write(tmp_path / 'asked.jsonl', ASKED)
  options = dict(dataset=path, length=24, max_patches=0, prefill_image=False, **READ, **TEXT)
  data = options | STREAM | dict(prompts=3)
  stream = prompts.make(**data, rows=range(3))
  batch = next(stream)
  assert set(batch) == {'label', 'tokens', 'length', 'position'}
  assert decoded(batch['tokens'][2][: batch['length'][2]]) == (
    '<|im_start|>user\n2+1=<|im_end|>\n<|im_start|>assistant\n'
  )
  assert stream.prompt_records(batch['label'][[2]]) == [
    {'answer': '3', 'level': 2, 'prompt': '2+1=', 'label': 2}
  ]
  assert {k: (x.shape[1:], x.dtype) for k, x in batch.items()} == prompts.shapes(ConfigDict(data))
  found, dialogues = prompts.load_prompts(**options)
  assert dialogues[1].metadata == {'answer': '2', 'level': 1}
  np.testing.assert_array_equal(found['tokens'], batch['tokens'])


def packed(source, **changes):
  room = dict(length=48, max_patches=0, max_images=0, max_context=0, image_tokens=0)
  rest = dict(batch=2, examples_per_row=2, loss_on='assistant', positions='sequential')
  data = dict(sources={'a': dict(source, weight=1.0)}, prompt_drop=0.0)
  return room | rest | data | TEXT | STREAM | changes


def test_packed_rows_have_tokens_alone():
  data = packed(dict(dataset='sums/99', split='train', dir='', max_records=100))
  batch = next(train.make(**data, rows=range(2)))
  assert set(batch) == {'tokens', 'position', 'segment', 'loss_mask'}
  at = batch['segment'][0] == 2
  assert batch['position'][0, 0, at].tolist() == [*range(at.sum())]
  answer = batch['tokens'][0][batch['loss_mask'][0] > 0]
  assert decoded(answer).count(text.TURN_END) == 2
  assert {k: (x.shape[1:], x.dtype) for k, x in batch.items()} == train.shapes(ConfigDict(data))


def test_answers_of_text_are_compared_up_to_their_end(tmp_path):
  records = [
    {
      'messages': [said('user', '1+1=')],
      'chosen': said('assistant', '2'),
      'rejected': said('assistant', '13'),
      'source': 'me',
    }
  ]
  path = write(tmp_path / 'pairs.jsonl', records)
  data = dict(dataset=path, prompts=1, length=24, max_patches=0, max_answer=4, **READ, **TEXT)
  data |= STREAM
  stream = pairs.make(**data, rows=range(1))
  batch = next(stream)
  assert set(batch) == {'label', 'tokens', 'length', 'position', 'chosen_text', 'rejected_text'}
  assert decoded(batch['rejected_text'][0]) == f'13{text.TURN_END}{text.END_OF_TEXT}'
  assert decoded(batch['chosen_text'][0][:2]) == f'2{text.TURN_END}'
  assert {k: (x.shape[1:], x.dtype) for k, x in batch.items()} == pairs.shapes(ConfigDict(data))
  assert stream.prompt_records([0])[0]['source'] == 'me'


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(max_images=1), r'data.max_images: 1 found, 0 expected with data.size \(\)'),
    (dict(max_patches=4), r'data.max_patches: 4 found, 0 expected with data.vision \{\}'),
    (dict(size=(8, 8)), r"data.size: \(8, 8\) found with crop 'none'"),
    (dict(vision=dict(patch=2)), r"data.vision: keys \['patch'\] found"),
    (dict(size=(8, 8), crop='cover'), r'no token <\|vision_start\|>'),
  ],
)
def test_what_does_not_fit_text_alone_is_told(changes, message):
  source = dict(dataset='sums/99', split='train', dir='', max_records=100)
  with pytest.raises(ValueError, match=message):
    train.make(**packed(source, **changes), rows=range(2))


def test_a_picture_among_text_alone_is_told(talks):
  source = dict(dataset=talks.path, split='', dir='', max_records=0)
  stream = train.make(**packed(source, length=200), rows=range(2))
  with pytest.raises(ValueError, match='<image> found, text alone expected with data.vision {}'):
    next(stream)
