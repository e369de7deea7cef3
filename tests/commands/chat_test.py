"""Dialogues in, answers of words and pictures out; the command writes them and goes on where it was
cut.
"""

import json
import pathlib
import types

import jax
import numpy as np
import pytest
from small_chain import SCENES

from vargrl import main
from vargrl.commands import chat, dialogues, experiment, inference
from vargrl.data import image, text
from vargrl.data import scenes_tokenizer as scenes
from vargrl.data.dialogue import encode
from vargrl.data.dialogue import files as sharegpt

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
ASKED = [
  'a red circle',
  [{'role': 'user', 'content': [PICTURE, 'what is this?']}],
  {
    'messages': [{'role': 'user', 'content': '<image>make it red'}],
    'images': [image.encode_png(PICTURE)],
  },
  *[f'{n} blue squares' for n in ('one', 'two', 'three', 'four', 'five', 'six', 'seven')],
]


def plain(answers):
  """Pictures as bytes, so that answers compare."""
  return [[x if isinstance(x, str) else x.tobytes() for x in answer] for answer in answers]


def prepared(spoken, asked):
  names = [f'dialogue {i}' for i in range(len(asked))]
  return chat.prepare(
    spoken.chain,
    spoken.workdir,
    [dialogues.parse(*one) for one in zip(asked, names)],
    names,
    run='',
    max_text_tokens=(2, 2, 0),
    begin=None,
    length=32,
    patches=64,
  )


@pytest.fixture(scope='module')
def asking(spoken):
  return prepared(spoken, ASKED)


@pytest.fixture(scope='module')
def drawn(asking):
  return chat.answer_all(asking, seed=0, batch=1)


def kinds(answer):
  return ''.join('w' if isinstance(part, str) else 'p' for part in answer)


def test_answers_are_words_and_pictures_in_turn(drawn, spoken):
  assert len(drawn) == len(ASKED)
  found = {kinds(answer) for answer in drawn}
  assert any('pp' in kind or 'pwp' in kind for kind in found), found  # two pictures of one dialogue
  assert any(kind in ('', 'w') for kind in found) and any('pw' in kind for kind in found), found
  vocabulary = {scenes.build().backend.id_to_token(n) for n in (100, 101)}
  for answer in drawn:
    for part in answer:
      if isinstance(part, str):
        assert set(part.split()) <= vocabulary
      else:
        assert part.shape == (32, 32, 3) and part.dtype == np.uint8
  pictures = [part for part in plain(drawn) for part in part if isinstance(part, bytes)]
  assert len({*pictures}) == len(pictures) > 2


def test_an_answer_is_a_function_of_its_dialogue_the_seed_and_its_place(drawn, asking, spoken):
  again = prepared(spoken, [*ASKED[:4], 'a cat', *ASKED[5:]])._replace(sample=asking.sample)
  again = chat.answer_all(again, seed=0, batch=1)
  assert plain(again[:4] + again[5:]) == plain(drawn[:4] + drawn[5:])
  assert 'p' in kinds(drawn[4]) and plain(again[4:5]) != plain(drawn[4:5])


@pytest.mark.slow  # compiles again what the others share
def test_one_call_does_it_all(drawn, spoken):
  again = chat.draw(SCENES, spoken.workdir, ASKED, max_text_tokens=(2, 2, 0), batch=1)
  assert plain(again) == plain(drawn)


def test_an_answer_is_cut_where_its_row_ended():
  tokenizer = scenes.build()
  lengths = {'text': 2, 'image': 3, 'text2': 2, 'image2': 3, 'text3': 1}
  ends = np.cumsum([*lengths.values()])
  spans = [
    types.SimpleNamespace(name=name, start=end - lengths[name], stop=end)
    for name, end in zip(lengths, ends)
  ]
  session = types.SimpleNamespace(
    format=types.SimpleNamespace(tokenizer=tokenizer),
    policy=types.SimpleNamespace(spans=spans, texts=('text', 'text2', 'text3')),
  )
  ids = {
    'text': [*text.encode(tokenizer, 'red circle')],
    'text2': [*text.encode(tokenizer, 'small'), 6],
  }
  ids['text3'] = [*text.encode(tokenizer, 'blue')]
  data = {name: {'tokens': np.array(x)} for name, x in ids.items()}
  split = lambda prefix, mask: chat.split_answer(session, prefix, data, np.array(mask), range(2))
  assert split('', [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]) == ['red circle', 0, 'small', 1, 'blue']
  assert split('here is it', [0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0]) == ['here is it', 0, 'small']
  assert split('', [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]) == ['red'] and split('', [0] * 11) == []


def files(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def asked(folder, count):
  """A file of the first dialogues, and what the users say."""
  (folder / 'see.png').write_bytes(image.encode_png(PICTURE))
  said = [x if isinstance(x, str) else '<image>what is this?' for x in ASKED]
  said[2] = '<image>make it red'
  records = [
    {'messages': [{'role': 'user', 'content': x}], 'images': ['see.png'] * x.count('<image>')}
    for x in said
  ]
  records[2]['messages'].append({'role': 'assistant', 'content': 'here is a circle.<image_gen>'})
  (folder / 'asked.json').write_text(json.dumps(records[:count]))
  return folder / 'asked.json', said


def test_the_command_writes_data(spoken, tmp_path, capsys):
  path, said = asked(tmp_path, 7)
  argv = [
    'vargrl',
    'sample',
    '--config',
    SCENES,
    '--workdir',
    str(spoken.workdir),
    '--begin=it is a cat.',
    f'--prompts={path}',
    '--max_text_tokens=0,2',
  ]
  out = tmp_path / 'out'
  assert main.main([*argv, f'--out={out}']) == 0, capsys.readouterr().err
  assert f'step 7: 7 answers in {out}/index.html, 7 of them given now' in capsys.readouterr().out
  read, count = sharegpt.open_source(str(out / 'answers.jsonl'), '', '', role='train')
  assert count == 7
  for i in range(count):
    found = read(i)
    assert found.messages[0] == ('user', said[i])
    assert found.messages[1][1].startswith(
      f'{"here is a circle." if i == 2 else "it is a cat."}<image_gen>'
    )
    assert found.images[-1] == str(out / f'{i:05d}_0.png')
    assert encode.load_image(found.images[-1]).shape == (32, 32, 3)
  np.testing.assert_array_equal(encode.load_image(read(1).images[0]), PICTURE)
  page = (out / 'index.html').read_text()
  assert page.count('<img src="data:image/png;base64,') == 9 and page.count('<section>') == 7
  before = files(out)
  assert main.main([*argv, f'--out={out}']) == 0 and files(out) == before
  assert '7 answers' in (said := capsys.readouterr().out) and '0 of them given now' in said
  assert main.main([*argv, f'--out={out}', '--seed=1']) == 2
  assert f'--out: {out} was started with seed 0, 1 found' in capsys.readouterr().err


def test_what_was_cut_goes_on_to_the_same_files(spoken, tmp_path):
  said, names = dialogues.read(asked(tmp_path, 10)[0])
  made = chat.prepare(
    spoken.chain,
    spoken.workdir,
    said,
    names,
    run='',
    max_text_tokens=(0, 2),
    begin='it is a cat.',
    length=0,
    patches=0,
  )
  with jax.set_mesh(made.run.mesh):
    params, frozen, _ = inference.restore(made.run, made.folder)
    go = lambda folder: chat.resume_folder(
      made, folder, said, params, frozen, seed=0, settings={}, batch=1
    )[1]
    assert go(tmp_path / 'whole') == 10
    whole, cut = files(tmp_path / 'whole'), tmp_path / 'cut'
    cut.mkdir()  # after the first call of eight rows, in the midst of the second
    for name in whole:
      if name not in ('index.html', '00009_0.png'):
        (cut / name).write_bytes(whole[name])
    (cut / 'answers.jsonl').write_bytes(b''.join(whole['answers.jsonl'].splitlines(True)[:8]))
    assert go(cut) == 2 and files(cut) == whole


@pytest.mark.parametrize(
  'asked, options, words',
  [
    ([], {}, r'dialogues: \[\] found, a list of at least 1 expected'),
    (['a cat', ' '], {}, 'dialogue 1: an empty message to answer found'),
    ([[]], {}, r"dialogue 0: roles \[\] found, 'user' and 'assistant' in turns expected"),
    (
      ['<image>this'],
      {},
      r'dialogue 0: 1 places of pictures \(<image>, <image_gen>\) and 0 images found',
    ),
    (
      [[{'role': 'user', 'content': [PICTURE / 255.0, 'this']}]],
      {},
      r'dialogue 0: image float64 \[32, 32, 3\] found',
    ),
    (
      [[{'role': 'user', 'content': [pathlib.Path('no.png'), 'this']}]],
      {},
      'dialogue 0: picture no.png: .*No such file',
    ),
    ([[{'role': 'user', 'content': [b'x', 'this']}]], {}, 'dialogue 0: picture of 1 bytes'),
    (['a cat'], dict(length=4), 'dialogue 0: .* tokens found, at most 4 expected'),
    (
      ['a circle', 'a red circle ' * 400],
      {},
      r'dialogue 1: \d{4} tokens found, at most 240 \(data.length',
    ),
    (['a circle', 3], {}, 'dialogue 1: messages 3 found, a list expected'),
    (
      [{'messages': [{'role': 'user', 'content': '<image>what?'}], 'images': 'a.png'}],
      {},
      "images 'a.png' found, a list",
    ),
    (
      [[{'role': 'user', 'content': [pathlib.Path(__file__), 'this']}]],
      {},
      r'dialogue 0: \S*chat_test.py: picture of \d+ bytes: of no known kind, PNG, JPEG, WEBP or '
      r'the like expected',
    ),
    (
      ['a cat'],
      dict(max_text_tokens=(10**7, 0)),
      r'max_text_tokens: \(10000000, 0\) found, 1 to 32768 of them in all',
    ),
    (
      ['a cat'],
      dict(max_text_tokens=(0,)),
      r'max_text_tokens: \(0,\) found, 1 to 32768 of them in all',
    ),
    (
      ['a cat'],
      dict(begin='x<image_gen>y'),
      "begin: 'x<image_gen>y' found, text without <image_gen>",
    ),
    (['a cat'], dict(run='draw'), r"--run: no checkpoint of 'draw' in .*, but of dpo, tokenizer"),
    (
      [[{'role': 'user', 'content': [PICTURE, 'this']}]],
      dict(patches=16),
      '64 patches of shown images found, at most 16',
    ),
    (
      [[{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': [PICTURE]}]],
      {},
      'expected of users alone',
    ),
    (
      [
        {
          'messages': [
            {'role': 'user', 'content': 'a'},
            {'role': 'assistant', 'content': '<image_gen>'},
            {'role': 'user', 'content': 'b'},
          ],
          'images': [PICTURE],
        }
      ],
      {},
      'which no prompt can hold',
    ),
    (
      ['a cat'],
      dict(max_text_tokens=(8,), begin=''),
      r'max_text_tokens: \(8,\) found, two numbers at least',
    ),
    (
      ['a cat'],
      dict(max_text_tokens=(8, 0, 8)),
      "rollout.plan: picture 'image_1' after picture 'image', expected a text in between",
    ),
    (
      ['a cat'],
      dict(run='tokenizer'),
      '--run: tokenizer trains tokenizers.bsq, a policy that answers',
    ),
    (['a cat'], dict(workdir='nowhere'), 'no checkpoint in nowhere'),
  ],
)
def test_what_cannot_be_answered_is_told(spoken, compiles, asked, options, words):
  before, workdir = len(compiles), options.pop('workdir', spoken.workdir)
  with pytest.raises((ValueError, OSError), match=words):
    chat.draw(SCENES, workdir, asked, **options)
  assert len(compiles) == before, 'compiled before the error'


def test_words_that_the_tokenizer_does_not_know_are_told(spoken, caplog):
  prepared(spoken, ['two squares', 'a zebra'])
  assert [
    'dialogue 1' in record.message for record in caplog.records if 'does not know' in record.message
  ] == [True]


def test_a_tokenizer_of_another_model_is_told(spoken, talks, tmp_path):
  config = experiment.load(SCENES)
  config.dpo.data.tokenizer = talks.tokenizer
  with pytest.raises(
    ValueError,
    match=r'policy.image_tokens: \(6, 7, 8\) found, .* expected, the tokens of .*tokenizer for',
  ):
    chat.draw(config, spoken.workdir, ['a cat'])
  config.dpo.data.tokenizer = str(tmp_path)
  with pytest.raises(FileNotFoundError, match='no tokenizer in'):
    chat.draw(config, spoken.workdir, ['a cat'])
