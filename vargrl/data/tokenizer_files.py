"""Files of tokenizers, which are checked before the tokenizers library sees them.

The library, in Rust, makes tables as long as the largest id, and ends a thread ("panics") where a
regular expression or a number is not what it expects: PanicException is no Exception.
"""

import contextlib
import gzip
import reprlib

from vargrl.data import tokenizer_rules
from vargrl.io import paths
from vargrl.io import text as io_text

MAX_BYTES = 2**27  # of any file of a tokenizer; the largest published ones have a quarter
MAX_ID = 2**24  # of a token; the largest vocabularies have a million
SPECIAL = '_token'  # the end of the names of special tokens in tokenizer_config.json


@contextlib.contextmanager
def told(where, what):
  """Errors of the tokenizers library within become ValueError: '{where}: {what} (the error)'."""
  try:
    yield
  except BaseException as e:
    if isinstance(e, OSError) or str(e).startswith(f'{where}: '):
      raise  # says where it is
    # The library raises Exception itself, and what its threads end with is none.
    if not isinstance(e, Exception) and type(e).__name__ != 'PanicException':
      raise
    said = ' '.join(str(e).split())[:300]
    raise ValueError(f'{where}: {what} ({said or type(e).__name__})') from e


def read_json(path, kind=dict):
  """The value of a JSON file; ValueError if it is too large or no JSON."""
  return io_text.read_json(path, kind, max_bytes=MAX_BYTES)


def check_id(where, token, number):
  """Returns the id of a token; ValueError unless it is a number that a vocabulary can have."""
  if type(number) is not int or not 0 <= number < MAX_ID:
    raise ValueError(
      f'{where}: token {reprlib.repr(token)} has id {reprlib.repr(number)}, one of 0 to '
      f'{MAX_ID - 1} expected'
    )
  return number


def read_vocab(path):
  """{token: id} of vocab.json."""
  vocab = read_json(path)
  for token, number in vocab.items():
    check_id(path, token, number)
  return vocab


def read_merges(path):
  """[(left, right)] of merges.txt."""
  return parse_merges(io_text.split_lines(io_text.read_text(path, max_bytes=MAX_BYTES)))


def parse_merges(lines):
  """[(left, right)] of a merges file's lines, the first of which may be a version."""
  lines = lines['#version' in lines[0] :] if lines else lines
  pairs = [tuple(line.split()) for line in lines]
  return [pair for pair in pairs if len(pair) == 2]


def read_gzip(path, most):
  """The text of a .gz file; ValueError if it is none, or has more than `most` bytes."""
  try:
    with gzip.open(paths.path(path)) as file:
      data = file.read(most + 1)
  except (OSError, EOFError, gzip.zlib.error) as e:
    raise ValueError(f'{path}: not a whole .gz file ({str(e)[:80]}); download it again') from e
  if len(data) > most:
    raise ValueError(f'{path}: more than {most} bytes of text in it, at most that expected')
  return io_text.decode_text(data, str(path))


def load_json(path):
  """The tokenizers.Tokenizer of a tokenizer.json, which neither cuts nor pads.

  Raises ValueError for what is none, and for ids that no vocabulary has."""
  from tokenizers import Tokenizer

  value = read_json(path)
  model = value.get('model')
  vocab = model.get('vocab') if isinstance(model, dict) else None
  for token, number in vocab.items() if isinstance(vocab, dict) else ():
    check_id(path, token, number)
  added = value.get('added_tokens')
  for token in added if isinstance(added, list) else ():
    if isinstance(token, dict) and 'id' in token:
      check_id(path, token.get('content'), token['id'])
  tokenizer_rules.check(path, value)
  del value, model, vocab, added
  with told(path, 'found no tokenizer in it'):
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
  return tokenizer


def encoded(backend, text, where):
  """The tokenizers.Encoding of a text, in which special tokens stand for themselves.

  Raises ValueError where the text is none, such as half of a surrogate pair, or the tokenizer's own
  rules fail."""
  try:
    text.encode()
  except UnicodeEncodeError as e:
    raise ValueError(
      f'{where}: half of a surrogate pair ({text[e.start]!a}) found in the text '
      f'{reprlib.repr(text)}, whole characters expected'
    ) from None
  with told(where, f'its tokenizer cannot encode the text {reprlib.repr(text)}'):
    return backend.encode(text, add_special_tokens=False)


def special_tokens(config):
  """{name: text} of the special tokens of a tokenizer_config.json, such as bos_token."""
  out = {}
  for name, token in config.items():
    content = token.get('content') if isinstance(token, dict) else token
    if name.endswith(SPECIAL) and isinstance(content, str):
      out[name] = content
  return out
