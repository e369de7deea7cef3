"""CLIP's tokenizer: byte pairs of texts, by the files that a checkpoint comes with."""

import gzip
import html
import json
import pathlib

import numpy as np

FILES = (
  'tokenizer.json',
  'vocab.json',
  'bpe_simple_vocab_16e6.txt.gz',
)  # vocab.json: with merges.txt
# Runs of letters, single digits, runs of other symbols; English contractions apart.
# https://github.com/openai/CLIP/blob/main/clip/simple_tokenizer.py
SPLIT_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
MERGES = 49152 - 256 - 2  # of the 262,144 lines of OpenAI's file, so many were used
LENGTH = 77


def find_file(path):
  """The tokenizer file at `path`, which is one of FILES (by ending), or a folder with one of them.

  Raises FileNotFoundError, which names what was looked for."""
  path = pathlib.Path(path)
  if path.is_file():
    return path
  for name in FILES:
    if (path / name).is_file() and (name != 'vocab.json' or (path / 'merges.txt').is_file()):
      return path / name
  raise FileNotFoundError(
    f'no tokenizer in {path}: tokenizer.json, vocab.json with merges.txt or '
    'bpe_simple_vocab_16e6.txt.gz expected'
  )


def encode(path, texts, *, length=LENGTH):
  """ids int32 [n, length] of n texts: start, byte pairs, end, then zeros.

  Texts that are too long are cut, and end with the end token. From Hugging Face files, the ids are
  those of transformers; from OpenAI's, those of open_clip, but for what the latter repairs with
  ftfy: mojibake, ligatures, full-width letters, curly quotes, control characters. What follows the
  end token has no influence on CLIP. Raises ValueError where the file holds no such tokenizer."""
  path = find_file(path)
  try:
    tokenizer, clean, specials = (
      load_openai(path) if path.suffix == '.gz' else load_hugging_face(path)
    )
  except Exception as e:  # tokenizers raises Exception itself
    raise ValueError(f'{path}: found no CLIP tokenizer in it ({e}), expected one of {FILES}') from e
  start, end = (tokenizer.token_to_id(token) for token in specials)
  if start is None or end is None:
    raise ValueError(f'{path}: no token {specials[start is not None]}, a CLIP tokenizer expected')
  out = np.zeros((len(texts), length), np.int32)
  for row, text in zip(out, texts):
    ids = [start, *tokenizer.encode(clean(text), add_special_tokens=False).ids][: length - 1] + [
      end
    ]
    row[: len(ids)] = ids
  return out


def load_hugging_face(path):
  """(Tokenizer, clean, (start, end)) of tokenizer.json, or of vocab.json and merges.txt.

  clean(text) is what the Tokenizer takes; start and end are the special tokens of a text."""
  from tokenizers import Regex, Tokenizer, normalizers

  specials = '<|startoftext|>', '<|endoftext|>'
  if path.name != 'vocab.json':
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, str, specials
  lines = (path.parent / 'merges.txt').read_text(encoding='utf-8').split('\n')
  tokenizer = build_tokenizer(
    json.loads(path.read_text(encoding='utf-8')), parse_merges(lines), specials
  )
  tokenizer.normalizer = normalizers.Sequence(
    [normalizers.NFC(), normalizers.Replace(Regex(r'\s+'), ' '), normalizers.Lowercase()]
  )
  return tokenizer, str, specials


def load_openai(path):
  """`load_hugging_face` of OpenAI's file: merges alone, which the vocabulary follows from."""
  with gzip.open(path) as file:
    pairs = parse_merges(file.read().decode('utf-8').split('\n')[: MERGES + 1])
  specials = '<start_of_text>', '<end_of_text>'
  symbols = [*bytes_to_unicode().values()]
  words = symbols + [s + '</w>' for s in symbols] + [a + b for a, b in pairs] + [*specials]
  clean = lambda text: ' '.join(html.unescape(html.unescape(text)).split()).lower()
  return (
    build_tokenizer({word: i for i, word in enumerate(words)}, pairs, specials),
    clean,
    specials,
  )


def parse_merges(lines):
  """[(left, right)] of a merges file's lines, the first of which may be a version."""
  pairs = [tuple(line.split()) for line in lines['#version' in lines[0] :]]
  return [pair for pair in pairs if len(pair) == 2]


def build_tokenizer(vocab, pairs, specials):
  """A Tokenizer that splits by SPLIT_PATTERN and merges the bytes of a part, `specials` apart.

  ValueError where the vocabulary lacks one of these."""
  from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

  absent = [end for end in specials if end not in vocab]
  if absent:
    raise ValueError(f'no token {absent[0]}')  # it would be added
  tokenizer = Tokenizer(models.BPE(vocab, pairs, end_of_word_suffix='</w>', unk_token=specials[1]))
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(SPLIT_PATTERN), 'removed', invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.add_special_tokens(
    [AddedToken(end, special=True, normalized=False) for end in specials]
  )
  return tokenizer


def bytes_to_unicode():
  """{byte: printable character} in the order of the vocabulary.

  Printable bytes stand for themselves, the others for the characters from 256 on."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in printable]
  return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
