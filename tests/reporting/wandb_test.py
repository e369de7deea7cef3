"""Weights & Biases beside the files of a run: a stand-in for the package records what it is asked,
in a real process; whatever fails there stops nothing."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from vargrl.reporting import wandb_run

ROOT = pathlib.Path(__file__).parents[2]
# The calls that reporting/wandb_run.py makes, each a line of JSON; FAILS raises in one of them.
WANDB = """
import json, os

def record(name, /, **arguments):
  with open(os.environ['CALLS'], 'a') as file:
    file.write(json.dumps([name, arguments], default=str) + '\\n')
  if os.environ.get('FAILS') == name:
    raise RuntimeError('the network is down')

class Image:
  def __init__(self, array):
    self.array = array
  def __str__(self):
    return f'image {list(self.array.shape)} {self.array.dtype}'

def Settings(**settings):
  return settings

class Run:
  def define_metric(self, name, *, step_metric):
    record('define_metric', name=name, step_metric=step_metric)
  def log(self, values):
    record('log', values=values)
  def finish(self):
    record('finish')

def init(**options):
  record('init', **options)
  return Run()
"""
WRITES = """
import sys
import numpy as np
from vargrl.reporting.writer import Writer
workdir, first, project = sys.argv[1], int(sys.argv[2]), sys.argv[3]
writer = Writer(workdir, first=first, allow_nonfinite=['kl'], wandb=project)
for step in range(first, first + 2):
  writer.write_images(step, {'samples': np.zeros((4, 5, 3), np.uint8)})
  writer.add(step, {'loss': 1.0 / (step + 1), 'kl': float('nan')})
writer.close()
"""


@pytest.fixture
def write(tmp_path):
  """write(first=0, project='digits', fails='') -> (calls of wandb, what was said on stderr)."""
  site, workdir, calls = tmp_path / 'site', tmp_path / 'runs' / 'quick', tmp_path / 'calls'
  (site / 'wandb').mkdir(parents=True)
  (site / 'wandb' / '__init__.py').write_text(WANDB)
  workdir.mkdir(parents=True)
  (workdir / 'config.json').write_text('{"steps": 2}')

  def run(first=0, project='digits', fails=''):
    calls.write_text('')
    path = os.pathsep.join((str(site), str(ROOT)))
    done = subprocess.run(
      [sys.executable, '-c', WRITES, str(workdir), str(first), project],
      env=dict(os.environ, PYTHONPATH=path, CALLS=str(calls), FAILS=fails),
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len((workdir / 'metrics.jsonl').read_text().splitlines()) == first + 2
    assert len([*workdir.glob('images/samples/*.png')]) == first + 2
    return [json.loads(line) for line in calls.read_text().splitlines()], done.stderr

  return run


def test_a_project_gets_config_numbers_and_images(write, tmp_path):
  calls, _ = write()
  (name, options), *rest = calls
  assert name == 'init' and options['project'] == 'digits' and options['config'] == {'steps': 2}
  assert options['name'] == 'runs/quick' and options['dir'] == str(tmp_path / 'runs' / 'quick')
  # The image of a step comes before the numbers of the step before; nan is left out.
  image = 'image [4, 5, 3] uint8'
  assert rest == [
    ['define_metric', {'name': '*', 'step_metric': 'step'}],
    ['log', {'values': {'step': 0, 'samples': image}}],
    ['log', {'values': {'step': 1, 'samples': image}}],
    ['log', {'values': {'step': 0, 'loss': 1.0}}],
    ['log', {'values': {'step': 1, 'loss': 0.5}}],
    ['finish', {}],
  ]


def test_a_run_that_continues_continues_there(write):
  first, second = write()[0][0][1], write(first=2)[0][0][1]
  assert first['id'] == second['id'] and len(first['id']) == 12
  assert first['resume'] == second['resume'] == 'allow'


def test_without_a_project_nothing_is_asked(write):
  assert write(project='') == ([], '')


@pytest.mark.parametrize('fails', ['init', 'log', 'finish'])
def test_an_error_stops_nothing_and_is_said_once(write, fails):
  calls, said = write(fails=fails)
  assert calls[-1][0] == fails
  assert said.count('the network is down') == 1
  assert 'no Weights & Biases logs from here on: RuntimeError: the network is down' in said


def test_a_project_without_the_package_is_refused(monkeypatch):
  wandb_run.check_installed('')
  monkeypatch.setattr(sys, 'path', [])
  monkeypatch.delitem(sys.modules, 'wandb', raising=False)
  with pytest.raises(ValueError, match="--wandb: 'digits' found, but no package wandb"):
    wandb_run.check_installed('digits')
