"""Data files as they come from outside: words that look like places, odd lines, hostile files."""

import json

import pytest

from vargrl.data import names, text
from vargrl.data.dialogue import encode, files, pairs, prompts, train

ASK, ANSWER = {'role': 'user', 'content': '<image>hello'}, {'role': 'assistant', 'content': 'a cat'}


def read(dataset, role='train', dir=''):
  load, count = files.open_source(str(dataset), '', str(dir), role=role)
  return [load(i) for i in range(count)]


def test_words_that_look_like_places_are_written_as_texts_of_a_list(talks, tmp_path):
  texts = lambda *said: [
    {'type': 'image'} if x is None else {'type': 'text', 'text': x} for x in said
  ]
  asked, said = texts('an <image> of <image_gen>', None, '<ima', 'ge> \\<image>'), texts('<image>')
  messages = [{'role': 'user', 'content': asked}, {'role': 'assistant', 'content': said}]
  (tmp_path / 'x.json').write_text(json.dumps([{'messages': messages, 'images': ['0.png']}]))
  (dialogue,) = read(tmp_path / 'x.json', dir=talks.images)
  assert dialogue.text == 'an <image> of <image_gen> <image> \\<image>'
  format = talks.format()
  tokens, mask = encode.encode_text(format, dialogue.messages)
  shown = text.decode(format.tokenizer, tokens, special=True)
  places = f'{text.VISION_START}{text.VISION_PAD}{text.VISION_END}'
  assert f'an <image> of <image_gen>{places}<image> \\<image>{text.TURN_END}' in shown
  assert text.decode(format.tokenizer, tokens[mask]) == '<image>'


@pytest.mark.parametrize(
  'part', [3, {'type': 'text'}, {'type': 'image', 'image': 'x.png'}, {'type': 'video'}, ['a']]
)
def test_other_parts_of_a_list_are_told(tmp_path, part):
  record = {'messages': [{'role': 'user', 'content': [part]}, ANSWER], 'images': []}
  (tmp_path / 'x.json').write_text(json.dumps([record]))
  with pytest.raises(ValueError, match=r"record 0: part .* of 'user' found, .*'type': 'text'"):
    read(tmp_path / 'x.json')


@pytest.mark.parametrize(
  'name, data, message',
  [
    ('x.json', b'[' * 100_000, 'x.json: JSON nested too deeply'),
    ('x.jsonl', b'{}\n' + b'[' * 100_000, 'x.jsonl: record 0: '),
    ('x.jsonl', b'{"messages":' * 100_000, 'x.jsonl: record 0: JSON nested too deeply'),
    ('x.jsonl', b'{"messages":"' + b'a' * 10**7 + b'"}', "record 0: messages 'aaa"),
    ('x.jsonl', b'"' + b'a' * 10**7, 'record 0: no JSON'),
    ('x.jsonl', b'{"messages":[{"role":"user","content":"\\ud83d"}]}', 'record 0: half of a surr'),
    ('x.json', b'[{"messages":' + b'[' * 900 + b']' * 900 + b'}]', 'x.json: record 0: '),
    ('x.json', b'[{"images":["' + b'a' * 5000 + b'"],"messages":[]}]', 'record 0: roles'),
    (
      'x.json',
      b'[{"images":["a\\u0000"],"messages":' + json.dumps([ASK, ANSWER]).encode() + b'}]',
      "record 0: picture 'a.x00' found neither",
    ),
    (
      'x.json',
      b'[{"images":["'
      + b'a' * 5000
      + b'"],"messages":'
      + json.dumps([ASK, ANSWER]).encode()
      + b'}]',
      "record 0: picture 'aaa.* found neither",
    ),
  ],
)
def test_a_hostile_file_is_one_short_sentence(tmp_path, name, data, message):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(ValueError, match=message) as error:
    read(tmp_path / name)
  assert len(str(error.value)) < 2000 and '\n' not in str(error.value)


@pytest.mark.parametrize('depth', range(880, 1000, 5))
def test_metadata_is_kept_at_any_depth_that_is_read(tmp_path, depth):
  record = json.dumps({'messages': [{'role': 'user', 'content': 'a'}, ANSWER]})
  deep = f'{record[:-1]}, "deep": {"[" * depth}{"]" * depth}}}'
  (tmp_path / 'x.jsonl').write_text(deep)
  try:
    assert read(tmp_path / 'x.jsonl')[0].text == 'a'
  except ValueError as e:
    assert 'record 0: JSON nested too deeply' in str(e)


def test_lines_end_at_line_feeds_and_a_mark_of_byte_order_is_no_text(tmp_path):
  said = ['a\u2028b', 'c\x0cd', 'e\x85f']
  (tmp_path / 'x.txt').write_bytes(b'\xef\xbb\xbf' + '\r\n'.join(said).encode())
  records = [{'messages': [{'role': 'user', 'content': x}]} for x in said]
  lines = [json.dumps(x, ensure_ascii=False) for x in records]
  (tmp_path / 'x.jsonl').write_bytes(b'\xef\xbb\xbf' + '\n'.join(lines).encode())
  (tmp_path / 'x.json').write_bytes(b'\xef\xbb\xbf' + f'[{",".join(lines)}]'.encode())
  for name in ('x.txt', 'x.jsonl', 'x.json'):
    assert [d.messages[0][1] for d in read(tmp_path / name, 'prompt')] == said
  assert names.load(str(tmp_path / 'x.txt')) == tuple(said)


def test_a_home_folder_is_expanded_and_a_name_with_a_tilde_is_a_name(talks, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  (tmp_path / '~p.png').write_bytes(b'')
  record = {'messages': [ASK, ANSWER], 'images': ['~p.png']}
  (tmp_path / 'x.json').write_text(json.dumps([record]))
  assert read('~/x.json')[0].images == (str(tmp_path / '~p.png'),)
  assert read('x.json')[0].images == ('~p.png',)
  (tmp_path / 'y.json').write_text(json.dumps([record | {'images': ['~/~p.png']}]))
  assert read('~/y.json', dir='~/none')[0].images == (str(tmp_path / '~p.png'),)


@pytest.mark.parametrize('module', [train, prompts, pairs])
def test_a_text_with_tokens_of_images_is_told_before_anything_starts(talks, tmp_path, module):
  ask = lambda said: {'messages': [{'role': 'user', 'content': said}], 'images': []}
  answers = {'train': {}, 'prompts': {}, 'pairs': dict(chosen=ANSWER, rejected=ANSWER)}
  own = answers[module.__name__.rpartition('.')[2]]
  records = [ask('hello') | own, ask(f'hello {text.VISION_PAD}') | own]
  for record in records if module is train else ():
    record['messages'].append(ANSWER)
  (tmp_path / 'x.json').write_text(json.dumps(records))
  options = dict(dataset=str(tmp_path / 'x.json'), split='', dir='', max_records=0)
  sees = dict(tokenizer=talks.tokenizer, vision=talks.vision, size=(8, 8), crop='cover')
  read = dict(shuffle=False, max_unreadable=0.0, threads=0, workers=0, seed=0, rows=range(1))
  room = dict(length=32, max_patches=16)
  if module is train:
    room |= dict(sources={'a': options | {'weight': 1.0}}, batch=1, examples_per_row=1)
    room |= dict(max_images=1, max_context=32, image_tokens=5, prompt_drop=0.0)
    room |= dict(loss_on='assistant', positions='mrope')
  else:
    more = dict(prefill_image=False) if module is prompts else dict(max_answer=8)
    room |= options | dict(prompts=1) | more
  with pytest.raises(ValueError, match='x.json: record 1: dialogue: 1 places for images') as error:
    module.make(**room, **sees, **read)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('examples', [1, 2, 3])
def test_any_number_of_dialogues_share_a_row(examples):
  source = dict(dataset='sums/99', split='train', dir='', max_records=32, weight=1.0)
  read = dict(shuffle=True, max_unreadable=0.0, threads=0, workers=0, seed=0, rows=range(2))
  room = dict(length=80, max_patches=0, max_images=0, max_context=0, image_tokens=0)
  sees = dict(tokenizer='characters', vision={}, size=(), crop='none', positions='sequential')
  stream = train.make(
    sources={'a': source, 'b': source | {'weight': 3.0}},
    batch=2,
    examples_per_row=examples,
    loss_on='assistant',
    prompt_drop=0.0,
    **room,
    **sees,
    **read,
  )
  assert [*next(stream)['segment'].max(1)] == [examples] * 2


@pytest.mark.parametrize('weight', [float('nan'), float('inf'), 0.0, -1.0])
def test_a_weight_that_is_none_is_told(talks, weight):
  source = dict(dataset=talks.path, split='', dir='', max_records=0)
  train.open_mixture({'a': source | {'weight': 0.5}})
  with pytest.raises(
    ValueError, match=r'data.sources.a.weight: .* found, a (finite )?number above'
  ):
    train.open_mixture({'a': source | {'weight': weight}})
