"""The words of scenes as a tokenizer: all that is said is known, comes back as it was, and is saved
as a folder.
"""

import numpy as np
import pytest

from vargrl.data import scenes_tokenizer, text
from vargrl.scenes import captions
from vargrl.scenes import world as worlds


@pytest.mark.parametrize('name', tuple(worlds.WORLDS))
def test_every_word_of_scenes_is_known_and_every_text_comes_back(some, name):
  ours = scenes_tokenizer.build()
  unknown, said = text.token_id(ours, scenes_tokenizer.UNKNOWN), set()
  for r in [r for split in worlds.SPLITS for r in some(name, split, 60)]:
    said |= {r.edit.instruction, *(x for q in r.questions for x in (q.question, q.answer))}
    said |= {captions.text(r.meaning, phrasing) for phrasing in range(12)}
  assert len(said) > 500
  for line in said:
    ids = text.encode(ours, line)
    assert unknown not in ids and text.decode(ours, ids) == line


def test_capitals_are_letters_in_a_row_and_small_ones_alone():
  ours = scenes_tokenizer.build()
  names = lambda line: [ours.backend.id_to_token(i) for i in text.encode(ours, line)]
  assert names('Draw A circle,\nthe word "CAT"') == [
    'draw',
    'a',
    'circle',
    ',',
    '\n',
    'the',
    'word',
    '"',
    *'CAT',
    '"',
  ]
  assert names('zebra') == [scenes_tokenizer.UNKNOWN] and names('12') == ['1', '2']
  assert ours.backend.get_vocab_size() == len(scenes_tokenizer.vocabulary()) < 256


def test_a_saved_tokenizer_is_read_as_it_was(tmp_path):
  ours = scenes_tokenizer.build()
  text.save(ours, tmp_path / 'folder')
  again = text.load(tmp_path / 'folder')
  assert again.template == ours.template == text.TURNS
  messages = [
    {'role': 'user', 'content': 'draw "CAT".'},
    {'role': 'assistant', 'content': f'here{text.GEN_START}{text.GEN_PAD}{text.GEN_END}'},
  ]
  ids, mask = text.encode_dialogue(ours, messages)
  for a, b in zip(text.encode_dialogue(again, messages), (ids, mask), strict=True):
    np.testing.assert_array_equal(a, b)
  assert text.decode(again, ids, special=True) == (
    '<|im_start|>user\ndraw '
    '"CAT".<|im_end|>\n<|im_start|>assistant\nhere<|image_gen_start|><|image_gen_pad|>'
    '<|image_gen_end|><|im_end|>\n'
  )
