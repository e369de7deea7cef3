"""A folder of answers: words that look like places of images, files that a crash has damaged."""

import json
import logging

import numpy as np
import pytest

from vargrl.commands import chat, dialogues, folder
from vargrl.data.dialogue import files, messages

PICTURE = np.full((4, 6, 3), 7, np.uint8)
WORDS = 'an <image> or <image_gen>, <ima\u2028ge>'
LITERAL = {'type': 'text', 'text': WORDS}
ASKED = [
  [{'role': 'user', 'content': [LITERAL]}],
  [{'role': 'user', 'content': ['<image>', LITERAL]}],
  [{'role': 'user', 'content': 'draw <'}],
]
ANSWERS = [[WORDS], [WORDS, PICTURE, '<image_gen>', PICTURE, '>'], []]


@pytest.fixture
def answer(tmp_path, monkeypatch):
  """(how many answers are given) -> (the records, how many are new); a picture is shown in one."""
  (tmp_path / 'shown.png').write_bytes(b'')
  files_of = [(), [str(tmp_path / 'shown.png')], ()]
  said = [
    dialogues.parse({'messages': x, 'images': list(y)}, 'dialogue') for x, y in zip(ASKED, files_of)
  ]
  given = lambda session, params, frozen, *, skip=0, **_: (
    (i, [x]) for i, x in enumerate(ANSWERS) if i >= skip
  )
  monkeypatch.setattr(chat, 'generate', given)
  monkeypatch.setattr(chat.pages, 'image_tag', lambda path, *_: (f'[{path.name}]', (1, 1)))
  out = tmp_path / 'out'
  return out, lambda: chat.resume_folder(None, out, said, {}, {}, seed=0, settings={})


def test_words_are_words_in_the_page_and_when_they_are_read_again(answer):
  out, go = answer
  records, new = go()
  assert new == 3 and go() == (records, 0)
  words = WORDS.replace('<', '&lt;').replace('>', '&gt;')
  page = (out / 'index.html').read_text()
  assert page.count(words) == 4 and page.count('[shown.png]') == 1
  assert f'{words}[00001_0.png]&lt;image_gen&gt;[00001_1.png]&gt;' in page
  (out / 'answers.jsonl').write_text(
    ''.join(json.dumps(x) + '\n' for x in records[:2])  # the third is empty, which nothing trains
  )
  read, count = files.open_source(str(out / 'answers.jsonl'), '', '', role='train')
  assert count == 2 and [len(read(i).images) for i in range(2)] == [0, 3]
  for i in range(2):
    asked, answered = (content for _, content in read(i).messages)
    assert messages.unmark(answered.replace('<image_gen>', '')) == ''.join(
      x for x in ANSWERS[i] if isinstance(x, str)
    )
    assert read(i).text == WORDS.replace('\u2028', ' ') and messages.unmark(asked).endswith(WORDS)
    assert answered.count('<image_gen>') == 2 * i and asked.count('<image>') == i


def test_answers_of_an_earlier_version_are_shown(tmp_path):
  record = {
    'messages': [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': '<image_gen>'}],
    'images': [],
  }
  assert dialogues.contents(tmp_path, record)[1] == ('assistant', ['', '<image_gen>', ''])


@pytest.mark.parametrize('damage', [b'', b'\0' * 40, b'{"messages', b'[]\n'])
def test_what_a_crash_has_damaged_is_given_again(answer, damage):
  out, go = answer
  records, _ = go()
  whole = (out / 'answers.jsonl').read_bytes()
  for kept in (0, 1, 2):
    lines = whole.splitlines(True)
    (out / 'answers.jsonl').write_bytes(b''.join([*lines[:kept], damage, b'\n', *lines[kept:]]))
    assert go() == (records, 3 - kept)
    assert (out / 'answers.jsonl').read_bytes() == whole


@pytest.mark.parametrize('damage', [b'', b'{"seed"', b'\0' * 10, b'3'])
def test_settings_that_a_crash_has_damaged_are_named_and_written_again(tmp_path, damage, caplog):
  settings = tmp_path / folder.SETTINGS
  (tmp_path / '0000_00000.png').write_bytes(b'')
  settings.write_bytes(damage)
  with caplog.at_level(logging.WARNING):
    folder.check_folder(tmp_path, {'seed': 3}, flag='--folder')
  assert str(settings) in caplog.text and json.loads(settings.read_text()) == {'seed': 3}
  with pytest.raises(ValueError, match='was started with seed 3, 4 found'):
    folder.check_folder(tmp_path, {'seed': 4}, flag='--folder')
