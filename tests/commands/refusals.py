"""Runs a command that must be refused: one sentence, exit code 2, and nothing compiled before."""

from vargrl import main

QUICK = 'experiments/quickstart.py:smoke'


def refused(capsys, compiles, *argv):
  """The sentence on stderr, from 'error:' on."""
  before = len(compiles)
  assert main.main(['vargrl', *argv]) == 2
  err = capsys.readouterr().err
  assert len(compiles) == before, 'compiled before the error'
  lines = [line for line in err.splitlines() if line.startswith('error:')]
  assert len(lines) == 1, err
  return err[err.index('error:') :]


def refused_train(capsys, compiles, tmp_path, *argv, config=QUICK):
  return refused(
    capsys, compiles, 'train', '--config', config, '--workdir', str(tmp_path / 'w'), *argv
  )
