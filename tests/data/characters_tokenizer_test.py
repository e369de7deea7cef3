"""Every printable character is a token, and a text comes back as it was."""

import string

import numpy as np
import pytest

from vargrl.data import characters_tokenizer, text


def test_text_comes_back_and_what_is_not_ascii_is_unknown():
  ours = characters_tokenizer.build()
  for line in (string.printable[:95], '17+25=', 'a user\nand  users'):
    ids = text.encode(ours, line)
    assert text.decode(ours, ids) == line
  assert len(text.encode(ours, '17+25=')) == 6
  unknown = text.token_id(ours, characters_tokenizer.UNKNOWN)
  assert text.encode(ours, 'é').tolist() == [unknown]
  assert len(characters_tokenizer.vocabulary()) == ours.backend.get_vocab_size() <= 128


def test_a_dialogue_is_short_and_its_answer_is_marked():
  ours = characters_tokenizer.build()
  said = [{'role': 'user', 'content': '3+4='}, {'role': 'assistant', 'content': '7'}]
  tokens, mask = text.encode_dialogue(ours, said)
  assert len(tokens) == 15 and mask.sum() == 2
  assert text.decode(ours, tokens[mask], special=True) == f'7{text.TURN_END}'
  prompt = text.encode_prompt(ours, said[:1])
  np.testing.assert_array_equal(prompt, tokens[: len(prompt)])


def test_a_saved_one_is_read_by_transformers_as_by_us(tmp_path):
  transformers = pytest.importorskip('transformers')
  ours = characters_tokenizer.build()
  text.save(ours, tmp_path)
  again = text.load(tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  said = [{'role': 'user', 'content': '3 + 4 = ?\n'}]
  ids = text.encode_prompt(ours, said)
  np.testing.assert_array_equal(text.encode_prompt(again, said), ids)
  prompt = theirs.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
  assert theirs(prompt, add_special_tokens=False)['input_ids'] == ids.tolist()
