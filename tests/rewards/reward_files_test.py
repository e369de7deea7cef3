"""Files that rewards name: looked for at the start of a run, not where it is only compiled."""

import os

import numpy as np
import pytest

from vargrl.rewards import mix
from vargrl.types import Samples

KNOBS = dict(bind={}, max_failed=0.0, workers=1, timeout=1, retries=0, chunk=1)


@pytest.fixture(autouse=True)
def judges_are_importable(monkeypatch):
  monkeypatch.syspath_prepend(os.path.dirname(os.path.abspath(__file__)))


def test_a_judge_says_which_of_its_options_are_files(tmp_path):
  rewards = {'it': dict(name='weighty', weight=1.0, weights=str(tmp_path / 'w'))}
  with pytest.raises(FileNotFoundError, match=r'reward it \(weighty\): weights: there is no'):
    mix.make(rewards, **KNOBS)
  assert mix.make(rewards, **KNOBS, abstract=True).shapes(None)['judges']['it'] == {'number': 0}
  (tmp_path / 'w').write_text('2.5')
  m = mix.make(rewards, **KNOBS)
  r_B, _, _ = m.score({'rewards': m.load(None)}, Samples(None, {}, {'label': np.arange(3)}), 1)
  assert r_B.tolist() == [2.5] * 3


def test_a_file_in_the_home_folder_is_found(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'w').write_text('2.5')
  m = mix.make({'it': dict(name='weighty', weight=1.0, weights='~/w')}, **KNOBS)
  assert m.load(None)['judges']['it'] == {'number': 2.5}


def test_a_file_that_no_option_is_said_to_name_is_told_where_runs_are_compiled(monkeypatch):
  """Of FILES no option is None, so that the judge looks for its file."""
  import weighty

  monkeypatch.setattr(weighty, 'FILES', ('file',))
  rewards = {'it': dict(name='weighty', weight=1.0, weights='/none')}
  with pytest.raises(FileNotFoundError, match=r"no /none; FILES = \('file',\) found, all options"):
    mix.make(rewards, **KNOBS, abstract=True)


def test_a_judge_that_does_not_say_so_is_refused(monkeypatch):
  import weighty

  monkeypatch.delattr(weighty, 'FILES')
  with pytest.raises(ValueError, match='reward weighty: found no FILES in the module'):
    mix.make({'it': dict(name='weighty', weight=1.0, weights='')}, **KNOBS)


def test_a_name_for_each_record_is_expected(tmp_path):
  (tmp_path / 'prompts.txt').write_text('a cat\na dog\na fox\n')
  rewards = {
    'it': dict(name='judges.mean', weight=1.0),
    'hps': dict(name='rewards.hps', weight=1.0, names=str(tmp_path / 'prompts.txt')),
  }
  mix.check_names(rewards, classes=0, records=3)
  mix.check_names(rewards, classes=0, records=2)  # a run on the first records
  mix.check_names(rewards, classes=0, records=None)
  with pytest.raises(ValueError, match='reward hps: 3 names found, at least 10 expected, one for'):
    mix.check_names(rewards, classes=0, records=10)
  with pytest.raises(ValueError, match='reward hps: 3 names of classes, 2 classes in the policy'):
    mix.check_names(rewards, classes=2, records=None)
