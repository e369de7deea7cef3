"""GRPO whose rewards have weights: loaded, told apart from others, run on the mesh of the
policy.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.commands import experiment
from vargrl.training import assemble, loop
from vargrl.training.run import Run
from vargrl.types import Samples

EXPERIMENT = pathlib.Path(__file__).parent.parent.parent / 'experiments' / 'grpo_var_d16_jpeg.py'


def config(names='digits'):
  c = experiment.load(f'{EXPERIMENT}:smoke')
  c.evals, c.optim.warmup = {}, 0
  backbone = dict(file='', size='smoke', dtype='bfloat16')
  c.objective.collect.rewards = dict(
    clip=dict(
      name='rewards.clip',
      weight=100.0,
      tokenizer='',
      template=('a photo of {class}', 'the number {class}'),
      names=names,
      scale=1.0,
      **backbone,
    ),
    aesthetic=dict(name='rewards.aesthetic', weight=1.0, head='', **backbone),
  )
  return c


def test_a_run_loads_the_weights_of_its_rewards_and_scores_with_them(tmp_path):
  run = Run(config(), tmp_path)
  with jax.set_mesh(run.mesh):
    frozen = {'rewards': run.frozen(only=('rewards',))['rewards']}
    image_Byxc = jnp.zeros((8, 8, 8, 3)).at[1:, 2].set(1.0)
    samples = Samples(image_Byxc, {}, {'label': np.arange(8)})
    r_B, each, _ = run.rewards.score(frozen, samples, 1)
    assert run.fingerprints(frozen) == {'rewards': 'random'}
    lean = assemble.rewards(run.config, run.built, abstract=True).weights(run.mesh)
  about = lambda x: x.shape  # random weights are not cast to what weights of a file are held in
  assert jax.tree.map(about, lean) == jax.tree.map(about, frozen['rewards'])
  assert len(frozen['rewards']['towers']) == 1 and set(each) == {'clip', 'aesthetic'}
  np.testing.assert_allclose(r_B, 100 * each['clip'] + each['aesthetic'], rtol=1e-6)
  assert each['aesthetic'][0] != each['aesthetic'][1] == each['aesthetic'][2]
  assert len(set(each['clip'])) == 8
  run.close()


@pytest.mark.slow
def test_grpo_runs_on_rewards_with_weights_and_resumes(tmp_path, capsys):
  one = config()
  one.steps = 1
  loop.train(one, tmp_path)
  assert 'reward tower smoke image: no file, random weights' in capsys.readouterr().out
  loop.train(config(), tmp_path, log=lambda _: None)
  rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  rows = [row for row in rows if row.get('rewards/clip') is not None]
  assert len(rows) == 2
  for row in rows:
    assert abs(row['reward'] - 100 * row['rewards/clip'] - row['rewards/aesthetic']) < 1e-3
    assert row['reward_std'] > 0 and row['reward/masked'] == 0


def test_a_lean_run_has_no_reward_weights(tmp_path):
  assert Run(config(), tmp_path, inference_only=True).rewards is None


def test_rewards_are_traced_without_their_files(tmp_path):
  c = experiment.load(EXPERIMENT)  # of full size
  c.init = {}
  backbone = dict(
    file='absent', weight=1.0, dtype='bfloat16', template='a photo of a {class}', names='imagenet'
  )
  collect = c.objective.collect
  collect.rewards = dict(
    aesthetic=dict(
      name='rewards.aesthetic',
      weight=1.0,
      size='l14',
      dtype='bfloat16',
      file='absent',
      head='absent',
    )
  )
  collect.rewards.clip = dict(name='rewards.clip', size='l14', tokenizer='', scale=1.0, **backbone)
  collect.rewards.image = dict(
    backbone, name='rewards.image_reward', size='large', vocab='absent', names='absent.txt'
  )
  collect.rewards.jpeg = dict(name='rewards.jpeg', weight=1.0, quality=90, sign=1)
  run = Run(c, tmp_path, inference_only=True)
  rewards = assemble.rewards(c, run.built, abstract=True)
  frozen = {'rewards': rewards.weights(run.mesh)}
  assert len(frozen['rewards']['towers']) == 2  # clip and aesthetic share theirs
  image = jax.ShapeDtypeStruct((16, 256, 256, 3), np.float32)
  with jax.set_mesh(run.mesh):
    samples = Samples(image, {}, {'label': np.zeros(16, np.int32)})
    each = jax.eval_shape(rewards.device, frozen, samples)
  assert {name: x.shape for name, x in each.items()} == dict.fromkeys(
    ('aesthetic', 'clip', 'image'), (16,)
  )


def test_names_that_are_not_as_many_as_the_classes_are_refused(tmp_path):
  with pytest.raises(
    ValueError, match='reward clip: 1000 names of classes, 10 classes in the policy'
  ):
    Run(config('imagenet'), tmp_path)
