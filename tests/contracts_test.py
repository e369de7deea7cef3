"""Names in a config are modules of vargrl or of the user, under the same contracts; config keys of
earlier versions are refused, and the sentence has their present names.
"""

import importlib
import inspect
import sys

import pytest

from vargrl import contracts
from vargrl.data.dialogue import encode, pairs, prompts, train
from vargrl.objectives import grpo


@pytest.fixture
def mine(tmp_path, monkeypatch):
  """(name of a file, its text) -> writes it into the folder mine_of_test, which is on sys.path."""
  monkeypatch.syspath_prepend(tmp_path)
  folder = tmp_path / 'mine_of_test'
  folder.mkdir()

  def write(name, text):
    (folder / name).write_text(text)
    importlib.invalidate_caches()  # a folder is listed anew once in a tick of its clock

  yield write
  for name in [name for name in sys.modules if name.split('.')[0] == 'mine_of_test']:
    del sys.modules[name]


def test_a_module_of_the_user_is_taken_under_the_same_contract(mine):
  mine('words.py', 'PACKED = False\ndef make(*, seed, rows): ...\n')
  found = contracts.module('mine_of_test.words', 'data')
  assert found.__name__ == 'mine_of_test.words' and not found.PACKED
  sentence = "name: 'mine_of_test.words' found, which has no collect"
  with pytest.raises(ValueError, match=sentence):
    contracts.module('mine_of_test.words', 'objective')


def test_a_module_of_vargrl_comes_before_one_of_the_user(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'objectives').mkdir()
  (tmp_path / 'objectives' / 'grpo.py').touch()
  assert contracts.module('objectives.grpo', 'objective').__name__ == 'vargrl.objectives.grpo'


def test_a_name_in_a_config_is_the_path_of_a_file():
  assert contracts.module('objectives.grpo') is grpo
  assert 'objectives.grpo' in contracts.names() and 'types' not in contracts.names()


@pytest.mark.parametrize(
  'name, meant',
  [
    ('objectives.gpro', 'objectives.grpo'),
    ('models.vra', 'models.var'),
    ('os.path', ''),
    ('objectives.__init__', 'objectives.'),
    ('mine_of_test.nothing', ''),
    ('nobody.has.this', ''),
    ('vargrl.objectives.grpo', 'objectives.grpo'),
    ('mine_of_test', ''),
    ('', ''),
    ('../escape', ''),
  ],
)
def test_a_name_of_no_module_is_refused(mine, name, meant):
  mine('note.txt', 'a folder alone is no module')
  with pytest.raises(ValueError) as e:
    contracts.module(name)
  assert f'name: there is no {name!r}' in str(e.value) and meant in str(e.value)


def test_a_module_of_the_user_that_fails_says_why(mine):
  mine('bad.py', 'import nobody_has_this\n')
  sentence = "name: importing 'mine_of_test.bad' failed: ModuleNotFoundError: No module named 'nob"
  with pytest.raises(ValueError, match=sentence):
    contracts.module('mine_of_test.bad', 'data')
  mine('__init__.py', '1 / 0\n')
  sys.modules.pop('mine_of_test', None)
  with pytest.raises(ValueError, match="importing 'mine_of_test.bad' failed: ZeroDivisionError"):
    contracts.module('mine_of_test.bad', 'data')


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
