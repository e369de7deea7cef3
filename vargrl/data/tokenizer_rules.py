"""The rules of a tokenizer.json: those that would make much of a short text are refused.

The tokenizers library applies them as they are written: thirty replacements of a letter by two make
a gigabyte of it.
"""

import base64
import binascii
import re
from re import _parser  # of the least length of a match, which has no public name

MAX_GROWTH = 64  # times that replacements may lengthen a text; no published tokenizer reaches 8
MAX_ADDED = 1000  # characters that rules put before or around a text
MAX_RULES = 1000  # the longest published lists have about thirty
MAX_PATTERN = 20_000  # characters of all regular expressions; a class of letters takes 10 kB


def check(path, value):
  """Raises ValueError for rules that could make a text much longer, or need much memory.

  value: the dictionary in a tokenizer.json; what is of another type is left to the library."""
  for part in ('normalizer', 'pre_tokenizer', 'decoder', 'post_processor'):
    growth, added, patterns, count = 1.0, 0, 0, 0
    for rule in rules(value.get(part)):
      count += 1
      growth *= growth_of(rule)
      added += sum(len(x) for x in map(rule.get, ('prepend', 'prefix')) if isinstance(x, str))
      patterns += len(regex_of(rule) or '')
      added += 100 * sum(isinstance(x, dict) and 'Sequence' in x for x in pieces(rule))
      check_charsmap(path, rule.get('precompiled_charsmap'))
    for found, most, what in (
      (growth, MAX_GROWTH, 'times as long a text by replacements'),
      (added, MAX_ADDED, 'characters that are added to every text'),
      (patterns, MAX_PATTERN, 'characters of regular expressions'),
      (count, MAX_RULES, 'rules'),
    ):
      if found > most:
        raise ValueError(f'{path}: {part} has {found:.0f} {what}, at most {most} expected')


def rules(value):
  """Yields the dictionaries of a rule and of the rules in it, in any depth."""
  left = [value]
  while left:
    x = left.pop()
    if isinstance(x, dict):
      if 'type' in x:
        yield x
      left.extend(x.values())
    elif isinstance(x, list):
      left.extend(x)


def pieces(rule):
  """The pieces of the templates of a TemplateProcessing."""
  return [x for key in ('single', 'pair') if isinstance(rule.get(key), list) for x in rule[key]]


def regex_of(rule):
  """The regular expression of a rule, or None."""
  pattern = rule.get('pattern')
  found = pattern.get('Regex') if isinstance(pattern, dict) else None
  return found if isinstance(found, str) else None


def growth_of(rule):
  """How many times longer a replacement may make a text, in characters."""
  content, pattern = rule.get('content'), rule.get('pattern')
  if not isinstance(content, str) or not isinstance(pattern, dict):
    return 1.0
  regex, text = regex_of(rule), pattern.get('String')
  least = least_length(regex) if regex is not None else len(text) if isinstance(text, str) else 0
  return max(1.0, len(content) / least if least else 1.0 + len(content))


def least_length(regex):
  """Characters that a match has at least; 0 where that is not known."""
  try:
    return _parser.parse(re.sub(r'\\[pP]\{[^}]*\}', r'\\w', regex)).getwidth()[0]
  except Exception:  # of a pattern that Python's re does not know, or that is too deep
    return 0


def check_charsmap(path, text):
  """Raises ValueError for a map of characters that says that it is longer than it is."""
  if not isinstance(text, str):
    return
  try:
    data = base64.b64decode(text, validate=True)
  except (binascii.Error, ValueError):
    return  # the library says what is wrong
  if int.from_bytes(data[:4], 'little') > len(data) - 4:
    raise ValueError(f'{path}: precompiled_charsmap is cut; download it again')
