"""`python -m vargrl.main` and `vargrl` as processes; a run that continues with another config."""

import pathlib
import subprocess
import sys

import pytest

from vargrl import main

ROOT = pathlib.Path(__file__).parents[1]


def process(*argv):
  command = [sys.executable, '-m', 'vargrl.main', *argv]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_exit_codes_of_a_process():
  assert process('--help').returncode == 0
  wrong = process('trian')
  assert wrong.returncode == 2 and "did you mean 'train'?" in wrong.stderr
  wrong = process('train', '--config', 'experiments/quickstart.py:smoke', '--workdir=')
  assert (wrong.returncode, wrong.stderr) == (2, 'error: --workdir is missing\n')


def test_a_mistyped_flag_needs_no_jax():
  code = """
import sys
from vargrl import main
argv = ['train', '--config', 'experiments/quickstart.py:smoke', '--x']
assert main.main(['vargrl', *argv]) == 2
assert 'jax' not in sys.modules
"""
  run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr


def test_the_installed_command_is_the_same():
  script = pathlib.Path(sys.executable).with_name('vargrl')
  if not script.exists():
    pytest.skip("no command vargrl beside this Python: pip install -e '.[test]'")
  wrong = subprocess.run([script, 'trian'], cwd=ROOT, capture_output=True, text=True)
  assert wrong.returncode == 2 and wrong.stderr == process('trian').stderr


def test_a_run_continues_with_what_fits_it_alone(capsys, compiles, tmp_path):
  workdir = tmp_path / 'w'

  def train(*changes):
    config = 'experiments/pretrain_var_d16_imagenet256.py:smoke'
    code = main.main(['vargrl', 'train', '--config', config, '--workdir', str(workdir), *changes])
    return code, capsys.readouterr()

  assert train()[0] == 0
  before = len(compiles)
  code, said = train(
    '--config.steps=3', '--config.policy.size=digits', '--config.tokenizer.size=digits'
  )
  assert code == 2 and len(compiles) == before
  assert '~ params/policy/blocks/fc1/w checkpoint (2, 32, 128)' in said.err
  assert 'model (3, 96, 384)' in said.err
  # Nor on other data than what it was started with.
  code, said = train('--config.steps=3', '--config.seed=1')
  assert code == 2 and 'error: data: state of' in said.err
  code, said = train('--config.steps=1', '--config.optim.warmup=0')
  assert code == 2 and 'error: steps: 1, expected at least 2' in said.err
  # Nothing was lost: with the old shape, the run goes on from where it was.
  code, said = train('--config.steps=3')
  assert code == 0 and 'steps 2 to 3' in said.out
  code, said = train('--config.steps=3', '--config.data.batch=32')
  assert code == 0
  assert 'without effect on what is finished' in said.out and 'finished, 3 steps' in said.out
