"""Sampling, export and whatever restores a run see the moving average of its weights, where it has
one, and the weights themselves where a leaf of them has none."""

import jax
import numpy as np
import pytest

from vargrl import main
from vargrl.checkpoint import store
from vargrl.commands import experiment, inference, sample
from vargrl.training import weights as run_weights
from vargrl.training.run import Run
from vargrl.types import State

GRPO = 'experiments/grpo_var_d16_jpeg.py:smoke'


@pytest.fixture(scope='module')
def config():
  found = experiment.load(GRPO)
  found.init = {}
  return found


@pytest.fixture(scope='module')
def run(config):
  return Run(config, '.', inference_only=True)


def random(shapes, seed):
  rng = np.random.default_rng(seed)
  one = lambda x: jax.device_put(0.2 * rng.standard_normal(x.shape).astype(x.dtype), x.sharding)
  return jax.tree.map(one, shapes)


def saved(folder, state):
  """The workdir of a run that has left this state at step 7."""
  keep = store.Store(folder / 'checkpoints', every_steps=1, max_to_keep=1)
  keep.save(7, state, None, {})
  keep.close()
  return folder


@pytest.fixture(scope='module')
def expected(run):
  """The weights that are seen: one leaf is frozen, and has no average."""
  params, ema = (random(run.shapes.params, seed) for seed in (1, 2))
  return params, ema, {'policy': ema['policy'] | {'classes': params['policy']['classes']}}


@pytest.fixture(scope='module')
def workdirs(expected, tmp_path_factory):
  """(of a run with a moving average, of one whose weights are those that are seen)."""
  params, ema, seen = expected
  root, opt = tmp_path_factory.mktemp('ema'), {'count': jax.numpy.zeros((), jax.numpy.int32)}
  average = {'policy': ema['policy'] | {'classes': None}}
  return saved(root / 'with', State(params, opt, average)), saved(root / 'plain', State(seen, opt))


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_is_restored_is_the_average_and_what_has_none(run, expected, workdirs):
  params, ema, seen = expected
  for workdir in workdirs:
    with jax.set_mesh(run.mesh):
      found, frozen, step = inference.restore(run, workdir)
    assert step == 7 and set(frozen) == {'tokenizer'}
    equal(found, seen)
  differs = lambda other: np.any(other['policy']['head']['w'] != found['policy']['head']['w'])
  assert differs(params) and not differs(ema)


def test_samples_are_of_the_average(config, workdirs):
  a, b = (sample.draw(config, workdir, labels=(3,), per_class=2)[0] for workdir in workdirs)
  np.testing.assert_array_equal(a, b)
  assert a.std() > 0


def test_an_export_is_of_the_average_and_goes_in_again(run, expected, workdirs, tmp_path):
  out = tmp_path / 'policy.safetensors'
  argv = ['vargrl', 'export', '--config', GRPO, '--workdir', str(workdirs[0]), f'--out={out}']
  assert main.main(argv) == 0
  config = experiment.load(GRPO)
  config.init = dict(policy=str(out))
  init = run.built.trained['policy']
  loaded, _ = run_weights.load_or_init(config, 'policy', init, run.mesh, tmp_path)
  equal(loaded, expected[2]['policy'])
