"""CLIP's tokenizer: byte pairs of texts, by the files that a checkpoint comes with."""

import html

import numpy as np

from vargrl.data import tokenizer_files
from vargrl.io import paths
from vargrl.io import text as io_text

FILES = (
  'tokenizer.json',
  'vocab.json',
  'bpe_simple_vocab_16e6.txt.gz',
)  # vocab.json: with merges.txt
# Runs of letters, single digits, runs of other symbols; English contractions apart.
# https://github.com/openai/CLIP/blob/main/clip/simple_tokenizer.py
SPLIT_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
MERGES = 49152 - 256 - 2  # of the 262,144 lines of OpenAI's file, so many were used
MAX_TEXT = 2**24  # bytes of OpenAI's file, which has 3 million, when it is unpacked
LENGTH = 77


def find_file(path):
  """The tokenizer file at `path`, which is one of FILES (by ending), or a folder with one of them.

  Raises FileNotFoundError, which names what was looked for."""
  path = paths.path(path)
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
  load = load_openai if path.suffix == '.gz' else load_hugging_face
  with tokenizer_files.told(path, 'found no CLIP tokenizer in it'):
    tokenizer, clean, specials = load(path)
  start, end = (tokenizer.token_to_id(token) for token in specials)
  if start is None or end is None:
    raise ValueError(f'{path}: no token {specials[start is not None]}, a CLIP tokenizer expected')
  out = np.zeros((len(texts), length), np.int32)
  for row, text in zip(out, texts):
    ids = tokenizer_files.encoded(tokenizer, clean(text), path).ids
    ids = [start, *ids][: length - 1] + [end]
    row[: len(ids)] = ids
  return out


def load_hugging_face(path):
  """(Tokenizer, clean, (start, end)) of tokenizer.json, or of vocab.json and merges.txt.

  clean(text) is what the Tokenizer takes; start and end are the special tokens of a text."""
  from tokenizers import Regex, normalizers

  specials = '<|startoftext|>', '<|endoftext|>'
  if path.name != 'vocab.json':
    return tokenizer_files.load_json(path), str, specials
  merges = tokenizer_files.read_merges(path.parent / 'merges.txt')
  tokenizer = build_tokenizer(tokenizer_files.read_vocab(path), merges, specials)
  tokenizer.normalizer = normalizers.Sequence(
    [normalizers.NFC(), normalizers.Replace(Regex(r'\s+'), ' '), normalizers.Lowercase()]
  )
  return tokenizer, str, specials


def load_openai(path):
  """`load_hugging_face` of OpenAI's file: merges alone, which the vocabulary follows from."""
  lines = io_text.split_lines(tokenizer_files.read_gzip(path, MAX_TEXT))
  pairs = tokenizer_files.parse_merges(lines[: MERGES + 1])
  specials = '<start_of_text>', '<end_of_text>'
  symbols = [*bytes_to_unicode().values()]
  words = symbols + [s + '</w>' for s in symbols] + [a + b for a, b in pairs] + [*specials]
  clean = lambda text: ' '.join(html.unescape(html.unescape(text)).split()).lower()
  return (
    build_tokenizer({word: i for i, word in enumerate(words)}, pairs, specials),
    clean,
    specials,
  )


def build_tokenizer(vocab, pairs, specials):
  """A Tokenizer that splits by SPLIT_PATTERN and merges the bytes of a part, `specials` apart.

  ValueError where the vocabulary lacks one of these."""
  from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

  absent = [end for end in specials if end not in vocab]
  if absent:
    raise ValueError(f'no token {absent[0]}, a CLIP vocabulary expected')  # it would be added
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
