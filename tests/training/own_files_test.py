"""Files of a run that a crash has left empty, cut or full of zeros: none stands in the way."""

import types

from ml_collections import ConfigDict
import numpy as np
import pytest

from experiments import quickstart
from vargrl.commands import pairs
from vargrl.training import loop

LEFT = (b'', b'{"steps": 2, "da', b'\0' * 64, b'[1]', b'\xff\xfe{', b'[' * 100_000)


@pytest.mark.parametrize('left', LEFT)
def test_a_run_with_good_checkpoints_goes_on(left, tmp_path):
  run = types.SimpleNamespace(config=ConfigDict({'steps': 3}))
  (tmp_path / 'config.json').write_bytes(left)
  said = []
  loop.log_config_diff(run, tmp_path, said.append)
  (tmp_path / loop.FINAL_EVAL_FILE).write_bytes(left)
  assert not loop.is_evaluated(tmp_path, 3, {'unseen': True}) and not said


def test_a_config_that_is_whole_is_compared(tmp_path):
  run, said = types.SimpleNamespace(config=ConfigDict({'steps': 3, 'seed': 0})), []
  (tmp_path / 'config.json').write_text('{"steps": 2, "seed": 0}')
  loop.log_config_diff(run, tmp_path, said.append)
  assert said == ['config: steps changed from 2 to 3']
  (tmp_path / loop.FINAL_EVAL_FILE).write_text('3')
  assert loop.is_evaluated(tmp_path, 3, {'unseen': True})


def test_the_same_command_continues_after_a_crash(tmp_path):
  c = quickstart.get_config('smoke').classifier
  c.evals, said = {}, []
  loop.train(c, tmp_path, log=said.append)
  for name in ('config.json', loop.FINAL_EVAL_FILE):
    (tmp_path / name).write_bytes(b'')
  c.steps = 3
  loop.train(c, tmp_path, log=said.append)
  assert loop.io_text.read_json(tmp_path / 'config.json')['steps'] == 3
  assert (tmp_path / loop.FINAL_EVAL_FILE).read_text() == '3'


def test_a_part_of_pairs_that_is_cut_is_drawn_again(tmp_path):
  path, part = tmp_path / '0.npz', {'label': np.arange(3), 'group': np.arange(3)}
  assert pairs.read_part(path) is None
  pairs.save_part(path, part)
  assert [*pairs.read_part(path)] == ['label', 'group']
  for left in (*LEFT, path.read_bytes()[:-40]):
    path.write_bytes(left)
    assert pairs.read_part(path) is None


def test_pairs_of_another_config_are_refused_once_there_are_any(tmp_path):
  for left in LEFT:
    (tmp_path / 'config.txt').write_bytes(left)
    pairs.check_config(tmp_path, 'mine')
    assert (tmp_path / 'config.txt').read_text() == 'mine'
  (tmp_path / '000000.npz').touch()
  pairs.check_config(tmp_path, 'mine')
  with pytest.raises(ValueError, match='holds pairs of another config or seed'):
    pairs.check_config(tmp_path, 'yours')
