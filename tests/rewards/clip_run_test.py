"""GRPO whose rewards have weights: loaded, told apart from others, run on the mesh of the policy."""
import json
import pathlib

import pytest

from vargrl import experiment, train
from vargrl.run import Run

EXPERIMENT = pathlib.Path(__file__).parent.parent.parent / 'experiments' / 'grpo_var_d16_jpeg.py'


def config(names='digits'):
  c = experiment.load(f'{EXPERIMENT}:smoke')
  c.evals, c.optim.warmup = {}, 0
  backbone = dict(file='', size='smoke', dtype='bfloat16')
  c.objective.collect.rewards = dict(
      clip=dict(name='rewards.clip', weight=100., tokenizer='', template=('a photo of {class}', 'the number {class}'),
                names=names, scale=1., **backbone),
      aesthetic=dict(name='rewards.aesthetic', weight=1., head='', **backbone))
  return c


def test_grpo_runs_on_rewards_with_weights_and_resumes(tmp_path, capsys):
  one = config()
  one.steps = 1
  train.train(one, tmp_path)
  assert 'reward tower smoke image: no file, random weights' in capsys.readouterr().out
  train.train(config(), tmp_path, say=lambda _: None)
  rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  rows = [row for row in rows if row.get('rewards/clip') is not None]
  assert len(rows) == 2
  for row in rows:
    assert abs(row['reward'] - 100 * row['rewards/clip'] - row['rewards/aesthetic']) < 1e-3
    assert row['reward_std'] > 0 and row['reward/masked'] == 0


def test_a_lean_run_has_no_reward_weights(tmp_path):
  assert Run(config(), tmp_path, lean=True).models.reward_weights is None


def test_names_that_are_not_as_many_as_the_classes_are_refused(tmp_path):
  with pytest.raises(ValueError, match='reward clip: 1000 names of classes, 10 classes in the policy'):
    Run(config('imagenet'), tmp_path)
