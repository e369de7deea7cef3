"""Whether a row says the answer of its record: the verifiable reward of GRPO on text."""

from fractions import Fraction
import re

HOST = True
MODES = ('exact', 'number', 'regex')
NUMBER = re.compile(r'[-+]?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)')  # 1,234.5 and -$3, as GSM8K has them


def check(*, segment, mode, pattern):
  """ValueError for a mode, or a pattern, that cannot be."""
  if mode not in MODES:
    raise ValueError(f'mode: {mode!r} found, one of {MODES} expected')
  if bool(pattern) != (mode == 'regex'):
    expected = 'a regular expression' if mode == 'regex' else "''"
    raise ValueError(f'pattern: {pattern!r} found, {expected} expected with mode {mode!r}')
  try:
    re.compile(pattern)
  except re.error as e:
    raise ValueError(f'pattern: {pattern!r} found, a regular expression expected ({e})') from e


def reward(samples, *, segment, mode, pattern):
  """r_B: 1.0 where the row's answer is its record's 'answer', 0.0 where it is another or none.

  segment: the name of the segment that holds the row's answer, such as 'text'. mode says what of it
  is compared. 'exact': all of it. 'number': the last number in it, with the last number of the
  record's answer, by value. 'regex': what the last match of `pattern` has in its first group, or
  the match itself if it has no groups. Spaces around either are dropped. pattern: '' but for
  'regex'. Raises ValueError for another mode, segment or pattern, or a record without 'answer'."""
  check(segment=segment, mode=mode, pattern=pattern)
  if segment not in samples.texts:
    raise ValueError(f'segment: {segment!r} found, one of {sorted(samples.texts)} expected')
  rows = zip(samples.texts[segment], samples.record, strict=True)
  return [float(matches(said, answer(record), mode, pattern)) for said, record in rows]


def answer(record):
  """The record's answer as a string."""
  if 'answer' not in record:
    raise ValueError(f"record: keys {sorted(record)} found, 'answer' expected among them")
  return str(record['answer'])


def matches(said, expected, mode, pattern):
  """Whether what a row said has the expected answer; see `reward`."""
  if mode == 'number':
    found = last_number(said)
    return found is not None and found == last_number(expected)
  if mode == 'regex':
    found = [*re.finditer(pattern, said)]
    said = (found[-1][1] if found[-1].re.groups else found[-1][0]) if found else None
  return said is not None and said.strip() == expected.strip()


def last_number(text):
  """The last number in a text, exactly, or None: '1,234.50' is 1234.5."""
  found = NUMBER.findall(text)
  return Fraction(found[-1].replace(',', '').replace('$', '')) if found else None
