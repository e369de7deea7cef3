"""Tokens against those of transformers and open_clip (tests/golden/clip_reference.py), by a small
vocabulary.
"""

import json
import pathlib

import numpy as np
import pytest
import small_bpe

from vargrl.data import clip_bpe, names

STORED = np.load(pathlib.Path(__file__).parent.parent / 'golden' / 'clip.npz')
TEXTS = [*small_bpe.TEXTS, *small_bpe.ODD]
START = 512 + len(small_bpe.merges())
END = START + 1


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('bpe')
  small_bpe.write(folder)
  return folder


def upto_end(ids):
  """Up to the first end token: with what is filled up does not matter."""
  return [row[: list(row).index(END) + 1].tolist() for row in ids]


def test_of_hugging_faces_files_the_ids_are_those_of_transformers(folder):
  ours = clip_bpe.encode(folder / 'hf', TEXTS)
  assert ours.shape == (len(TEXTS), 77) and ours.dtype == np.int32
  for text, mine, theirs in zip(TEXTS, upto_end(ours), upto_end(STORED['ids_hf'])):
    assert mine == theirs, text


def test_of_openais_file_the_ids_are_those_of_open_clip(folder):
  ours = clip_bpe.encode(folder, TEXTS)
  fixed = {
    text for text in small_bpe.ODD if text != small_bpe.ODD[0]
  }  # by ftfy, which is not there
  for text, mine, theirs in zip(TEXTS, ours, STORED['ids_open_clip']):
    assert (mine.tolist() == theirs.tolist()) == (text not in fixed), text


def test_a_long_text_ends_with_the_end(folder):
  for path in (folder, folder / 'hf'):
    long, short = clip_bpe.encode(path, ['photo ' * 100, 'photo'])
    assert long[0] == START and long[-1] == END and (long[:-1] != END).all()
    assert upto_end([short]) == [[START, short[1], END]] and not short[3:].any()


def test_an_end_in_the_text_is_the_end(folder):
  (ids,) = clip_bpe.encode(folder / 'hf', ['cat <|endoftext|> dog'])
  assert ids[2] == END and ids[4] == END


def test_tokenizer_json_is_the_same_and_its_own_padding_is_not_used(folder, tmp_path):
  built, _, _ = clip_bpe.load_hugging_face(folder / 'hf' / 'vocab.json')
  built.enable_padding(length=5, pad_id=3)
  built.enable_truncation(4)
  built.save(str(tmp_path / 'tokenizer.json'))
  for path in (tmp_path, tmp_path / 'tokenizer.json'):
    np.testing.assert_array_equal(
      clip_bpe.encode(path, TEXTS), clip_bpe.encode(folder / 'hf', TEXTS)
    )


def test_what_is_no_tokenizer_is_one_sentence(folder, tmp_path):
  with pytest.raises(
    FileNotFoundError, match='no tokenizer in .*: tokenizer.json, vocab.json with merges.txt or'
  ):
    clip_bpe.encode(tmp_path, ['a'])
  (tmp_path / 'tokenizer.json').write_text('{"a": 1}')
  with pytest.raises(ValueError, match='tokenizer.json: found no tokenizer in it'):
    clip_bpe.encode(tmp_path, ['a'])
  words = json.loads((folder / 'hf' / 'vocab.json').read_text())
  del words['<|startoftext|>']
  (tmp_path / 'vocab.json').write_text(json.dumps(words))
  (tmp_path / 'merges.txt').write_text((folder / 'hf' / 'merges.txt').read_text())
  (tmp_path / 'tokenizer.json').unlink()
  with pytest.raises(ValueError, match='expected'):
    clip_bpe.encode(tmp_path, ['a'])


def test_imagenets_names_are_in_the_order_of_wordnet_ids():
  found = names.load('imagenet')
  assert len(found) == 1000 and found[:2] == ('tench', 'goldfish') and found[-1] == 'toilet paper'
  assert [found.index(name) for name in ('ostrich', 'tabby cat', 'Golden Retriever')] == [
    9,
    281,
    207,
  ]
  assert (
    found[134] == 'crane bird' and found[517] == 'construction crane'
  )  # of two meanings, told apart
  assert names.load('digits')[3] == 'three' and names.load(['a', 'b']) == ('a', 'b')
  for wrong in ('cifar', (), [1]):
    with pytest.raises(ValueError, match='names: .* found'):
      names.load(wrong)
