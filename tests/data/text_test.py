"""Tokens of texts and dialogues are transformers' (tests/golden/make_qwen2_text.py), from any of a
folder's files.
"""

import functools
import json
import pathlib
import pickle

import numpy as np
import pytest
import small_qwen

from vargrl.data import text


@functools.lru_cache(None)
def stored():
  return json.loads(
    (pathlib.Path(__file__).parent.parent / 'golden' / 'qwen2_text.json').read_text()
  )


@pytest.fixture
def words(tmp_path):
  """template or None -> Words of a fresh folder."""

  def call(template=None):
    small_qwen.write(tmp_path / 'hf', template)
    return text.load(tmp_path / 'hf')

  return call


def test_texts_are_cut_as_by_transformers_and_come_back(words, tmp_path):
  ours = words()
  for line, ids in zip(small_qwen.TEXTS, stored()['texts'], strict=True):
    assert text.encode(ours, line).tolist() == ids, line
  again = pickle.loads(pickle.dumps(ours))  # a data worker gets it so
  ours.backend.save(str(tmp_path / 'tokenizer.json'))
  (tmp_path / 'tokenizer_config.json').write_text(
    (tmp_path / 'hf' / 'tokenizer_config.json').read_text()
  )
  other = text.load(tmp_path)  # from tokenizer.json alone
  for line in ('naïve café — Zürich', '日本語', f'a{text.TURN_END}b', ' x\n\n'):
    ids = text.encode(ours, line)
    assert text.decode(ours, ids, special=True) == line and text.decode(ours, ids) == line.replace(
      text.TURN_END, ''
    )
    for words_ in (again, other):
      np.testing.assert_array_equal(text.encode(words_, line), ids)


@pytest.mark.parametrize('name', sorted(small_qwen.TEMPLATES))
def test_dialogues_are_those_of_apply_chat_template(words, name):
  ours = words(small_qwen.TEMPLATES[name])
  for dialogue, (closed, opened) in zip(
    small_qwen.DIALOGUES, stored()['dialogues'][name], strict=True
  ):
    pictures = (1, 1) if name == 'chatml' and not isinstance(dialogue[0]['content'], str) else ()
    assert text.encode_dialogue(ours, dialogue, counts=pictures)[0].tolist() == closed
    assert text.encode_prompt(ours, dialogue, counts=pictures).tolist() == opened


def test_a_folder_without_a_template_speaks_as_qwen2_vl(words):
  assert words().template == text.CHATML


@pytest.mark.parametrize('name', sorted(small_qwen.TEMPLATES))
def test_the_mask_is_what_the_assistant_says_and_nothing_else(words, name):
  ours = words(small_qwen.TEMPLATES[name])
  for dialogue in small_qwen.DIALOGUES[1 : 2 if name == 'blocks' else None]:
    ids, mask = text.encode_dialogue(ours, dialogue, counts=(3, 2) if len(dialogue) == 2 else ())
    said = [
      m['content'].strip() if name == 'blocks' else m['content']
      for m in dialogue
      if m['role'] == 'assistant'
    ]
    edges = np.flatnonzero(np.diff(np.r_[0, mask, 0]))
    spans = [text.decode(ours, ids[a:b], special=True) for a, b in edges.reshape(-1, 2)]
    # A line break that is one token with the template's own is not the assistant's.
    assert spans == [f'{x.removeprefix(chr(10))}{text.TURN_END}' for x in said]
    start = text.encode(ours, f'{text.TURN_START}assistant\n')[:2]
    for a in edges[::2]:
      assert ids[a - 3 : a - 1].tolist() == start.tolist()


def test_pictures_take_the_place_of_their_embeddings(words):
  ours, dialogue = words(), small_qwen.DIALOGUES[2]
  ids, mask = text.encode_dialogue(ours, dialogue, counts=(5, 2))
  first, last = (text.token_id(ours, token) for token in (text.VISION_START, text.VISION_END))
  starts, ends = np.flatnonzero(ids == first), np.flatnonzero(ids == last)
  assert (ends - starts - 1).tolist() == [5, 2]
  assert (ids[starts[0] + 1 : ends[0]] == text.token_id(ours, text.VISION_PAD)).all() and not mask[
    : ends[1]
  ].any()
  prompt = text.encode_prompt(ours, dialogue[:1], counts=(5, 2))
  np.testing.assert_array_equal(ids[: len(prompt)], prompt)
  for counts in ((5,), (), (1, 2, 3)):
    with pytest.raises(ValueError, match=rf'2 places for images .* found, {len(counts)} expected'):
      text.encode_dialogue(ours, dialogue, counts=counts)


def test_too_many_tokens_are_refused_and_fewer_are_padded():
  ids = np.arange(3, dtype=np.int32)
  out, length = text.pad_to(ids, 5, pad=9)
  assert (out.tolist(), out.dtype, length) == ([0, 1, 2, 9, 9], np.int32, 3)
  with pytest.raises(ValueError, match='answer: 3 tokens found, 1 to 2 expected'):
    text.pad_to(ids, 2, pad=9, what='answer')
  with pytest.raises(ValueError, match='prompt: 0 tokens found'):
    text.pad_to(ids[:0], 2, pad=9)


def test_a_template_is_a_program_that_may_do_little(words):
  attack = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
  with pytest.raises(ValueError, match='chat template refuses 1 messages .*unsafe'):
    text.render(words(attack), small_qwen.DIALOGUES[0], answer=True)
  with pytest.raises(ValueError, match='refuses 6 messages .too many'):
    text.render(words(small_qwen.BLOCKS), small_qwen.DIALOGUES[0] * 6, answer=True)
  with pytest.raises(ValueError, match='refuses 1 messages .*syntax|refuses 1 messages'):
    text.render(words('{% for %}'), small_qwen.DIALOGUES[0], answer=True)
  forgetful = (
    '{% for m in messages if loop is undefined or true %}{{ messages|length }}{{ '
    'm.content }}{% endfor %}'
  )
  with pytest.raises(ValueError, match='changes what is before message 2'):
    text.encode_dialogue(words(forgetful), small_qwen.DIALOGUES[1])


def test_templates_lie_in_several_files_and_may_have_names(words, tmp_path):
  ours, folder = words('one'), tmp_path / 'hf'
  assert ours.template == 'one'
  named = [{'name': 'tools', 'template': 'x'}, {'name': 'default', 'template': 'two'}]
  (folder / 'chat_template.json').write_text(json.dumps({'chat_template': named}))
  assert text.load(folder).template == 'two'
  (folder / 'chat_template.jinja').write_text('three')
  assert text.load(folder).template == 'three'
  (folder / 'chat_template.jinja').unlink()
  (folder / 'chat_template.json').write_text(json.dumps({'chat_template': named[:1]}))
  with pytest.raises(ValueError, match=r"\['tools'\] found, one of name default expected"):
    text.load(folder)


def test_what_is_no_tokenizer_is_told_in_a_sentence(words, tmp_path):
  with pytest.raises(
    FileNotFoundError, match='no tokenizer in .*: tokenizer.json, or vocab.json and merges.txt'
  ):
    text.load(tmp_path)
  ours, folder = words(), tmp_path / 'hf'
  with pytest.raises(ValueError, match=r'no token <\|nothing\|> in this tokenizer'):
    text.token_id(ours, '<|nothing|>')
  config = json.loads((folder / 'tokenizer_config.json').read_text())
  added = config['added_tokens_decoder']
  (folder / 'tokenizer_config.json').write_text(
    json.dumps({'added_tokens_decoder': {'151643': added[min(added)]}})
  )
  with pytest.raises(
    ValueError, match=rf'endoftext\|>. becomes number {min(added)}, 151643 expected'
  ):
    text.load(folder)
  for name, content in (
    ('tokenizer_config.json', '[]'),
    ('vocab.json', '{'),
    ('tokenizer.json', '{}'),
  ):
    small_qwen.write(folder)
    (folder / name).write_text(content)
    with pytest.raises(
      ValueError, match=f'{name}: (no JSON|list found in JSON|found no tokenizer in it)'
    ) as error:
      text.load(folder)
    assert '\n' not in str(error.value)


def test_tokens_for_drawing_come_after_all_others_and_are_written_and_read(words, tmp_path):
  ours = words()
  many = ours.backend.get_vocab_size()
  drawing = text.add_image_tokens(ours)
  added = [text.token_id(drawing, token) for token in (text.GEN_START, text.GEN_END, text.GEN_PAD)]
  assert added == [many, many + 1, many + 2]
  line = f'hello{text.GEN_START}{text.GEN_PAD}{text.GEN_END} naïve'
  text.save(drawing, tmp_path / 'written')
  for again in (text.add_image_tokens(drawing), text.load(tmp_path / 'written')):
    np.testing.assert_array_equal(text.encode(again, line), text.encode(drawing, line))
    assert (
      again.template == text.CHATML
      and text.decode(again, text.encode(again, line), special=True) == line
    )
  with pytest.raises(ValueError, match='no token'):
    text.token_id(ours, text.GEN_PAD)
