"""Verifiable answers."""

import math

import numpy as np
import pytest

from vargrl.rewards import exact_match, mix, worker
from vargrl.rewards.host_samples import HostSamples
from vargrl.types import Samples


def scores(mode, *pairs, pattern=''):
  texts = {'text': [said for said, _ in pairs]}
  record = [{'prompt': '', 'label': 0, 'answer': answer} for _, answer in pairs]
  rows = HostSamples(None, texts, record, np.arange(len(pairs)))
  return exact_match.reward(rows, segment='text', mode=mode, pattern=pattern)


def test_exact_is_all_of_the_text_but_for_spaces_around_it():
  pairs = (' blue\n', 'blue'), ('Blue', 'blue'), ('it is blue', 'blue'), ('', 'blue'), ('4', 4)
  assert scores('exact', *pairs) == [1, 0, 0, 0, 1]


def test_number_is_the_last_number_by_its_value():
  right = (
    ('3 + 4 = 7', 7),
    ('$1,234.50 in all.', '1234.5'),
    ('it is -.5', '-0.5'),
    ('42', '#### 42'),
  )
  wrong = ('7, or rather 8', 7), ('seven', 7), ('', 7), ('0.1', '0.10000000000000000001'), ('-7', 7)
  assert scores('number', *right) == [1] * 4 and scores('number', *wrong) == [0] * 5


def test_regex_is_the_first_group_of_the_last_match():
  boxed = r'\\boxed\{([^}]*)\}'
  pairs = (r'\boxed{1}, no, \boxed{ x+1 }', 'x+1'), ('x+1', 'x+1'), (r'\boxed{}', 'x+1')
  assert scores('regex', *pairs, pattern=boxed) == [1, 0, 0]
  assert scores('regex', ('A? No: B', 'B'), pattern='[A-D]') == [1]


@pytest.mark.parametrize(
  'change, message',
  [
    ({'mode': 'fuzzy'}, "mode: 'fuzzy' found, one of"),
    ({'pattern': 'x'}, "pattern: 'x' found, '' expected with mode 'exact'"),
    ({'mode': 'regex'}, "pattern: '' found, a regular expression expected"),
    ({'segment': 'text_1'}, r"segment: 'text_1' found, one of \['text'\] expected"),
    ({}, r"record: keys \['label'\] found, 'answer' expected"),
  ],
)
def test_what_cannot_be_compared_is_one_sentence(change, message):
  rows = HostSamples(None, {'text': ['a']}, [{'label': 0}], np.arange(1))
  with pytest.raises(ValueError, match=message):
    exact_match.reward(rows, **dict(segment='text', mode='exact', pattern='') | change)


@pytest.mark.parametrize(
  'name, options, message',
  [
    ('rewards.exact_match', dict(segment='text', mode='fuzzy', pattern=''), "mode: 'fuzzy' found"),
    (
      'rewards.exact_match',
      dict(segment='text', mode='regex', pattern='('),
      r"pattern: '\(' found",
    ),
    ('rewards.jpeg', dict(quality=math.nan, sign=1), 'quality: nan found, an integer expected'),
    ('rewards.scenes', dict(world='large', strict=True, partial=True), "world: 'large' found"),
  ],
)
def test_values_that_cannot_work_are_told_before_the_first_row(name, options, message):
  with pytest.raises(ValueError, match=f'reward {name}: {message}'):
    worker.load(name, options)


def test_it_is_a_host_reward_of_rows_of_text_alone():
  options = dict(name='rewards.exact_match', weight=2.0, segment='text', mode='number', pattern='')
  knobs = dict(bind={}, max_failed=0.0, workers=1, timeout=60, retries=0, chunk=8)
  m = mix.make({'right': options}, **knobs)
  record = [{'prompt': '1 + 1', 'label': 0, 'answer': '2'}] * 2
  try:
    r_B, _, _ = m.score({}, Samples(None, {'text': ['it is 2', 'it is 3']}, record), 2)
  finally:
    m.close()
  assert r_B.tolist() == [2, 0]
