"""Config keys of earlier versions are refused, and the sentence has their present names."""

import inspect

import pytest

from vargrl import contracts
from vargrl.data.dialogue import encode, pairs, prompts, train


@pytest.fixture
def table(monkeypatch):
  names = {
    'data.look': 'vision',
    'data.records': ('examples_per_row', 'max_records'),
    'evals.*.look': 'vision',
  }
  monkeypatch.setattr(contracts, 'RENAMED', names)


def test_a_key_is_known_by_its_section_whatever_the_section_lies_in(table):
  assert contracts.renamed('data', 'look') == 'vision'
  assert contracts.renamed('config.draw.data', 'look') == 'vision'
  assert contracts.renamed('evals.generation', 'look') == 'vision'
  assert contracts.renamed('metadata', 'look') is None
  assert contracts.renamed('data', 'seed') is None


def test_a_key_that_has_become_several_is_the_one_that_the_section_expects(table):
  assert contracts.renamed('data', 'records') == 'examples_per_row'
  assert contracts.renamed('data', 'records', {'max_records', 'seed'}) == 'max_records'
  assert contracts.renamed('data', 'records', {'seed'}) is None


def test_keys_are_refused_in_one_sentence(table):
  contracts.check_keys('data', {'vision'}, {'vision'})
  found, expected = {'look', 'records', 'seed'}, {'vision', 'max_records', 'seed'}
  message = (
    "data: key 'look' found, it is called 'vision' now; key 'records' found, it is called "
    "'max_records' now"
  )
  with pytest.raises(ValueError) as e:
    contracts.check_keys('data', found, expected)
  assert str(e.value) == message
  with pytest.raises(ValueError) as e:
    contracts.check_keys('data', {'seeds'}, {'seed'})
  assert str(e.value) == "data: keys ['seeds'] found, ['seed'] expected"


def test_an_old_key_is_new_nowhere():
  for old, new in contracts.RENAMED.items():
    assert old.rpartition('.')[2] not in ((new,) if isinstance(new, str) else new), old


def test_the_new_keys_of_data_are_those_that_its_functions_take():
  known = {'vision', *encode.VISION_KEYS, *train.SOURCE_KEYS}
  for module in (train, prompts, pairs):
    known |= set(inspect.signature(module.make).parameters)
  for old, new in contracts.RENAMED.items():
    if old.startswith('data.'):
      assert known >= set((new,) if isinstance(new, str) else new), old
