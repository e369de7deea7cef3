"""One real step of objectives on policies that no experiment has together."""

import jax
import numpy as np
import pytest
import tiny_configs

from vargrl.parallel import mesh as meshes
from vargrl.training.run import Run
from vargrl.training.stage import Stage


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """A run is made for all devices of the machine; one will do."""
  before = meshes.make
  one = lambda axes, devices=None: before(axes, devices or jax.devices()[:1])
  monkeypatch.setattr(meshes, 'make', one)


def step(run, number):
  """(phases, Experience, metrics of collect, metrics of the update) of a run's first state."""
  phases, key = [], jax.random.key(0)
  try:
    with jax.set_mesh(run.mesh):
      state, frozen = run.initial(lambda _: None)[0], run.frozen(lambda _: None)
      collect, update = run.collect_and_update()
      stage = Stage(number, lambda name, x=None: phases.append(name))
      batch, metrics, _ = collect.run(stage, state.params, frozen, next(run.data), key)
      moved, facts = update(state, frozen, batch)
      jax.block_until_ready(moved)
      return phases, batch, metrics, facts
  finally:
    run.close()


def value(metric):
  return float(metric.total) / float(metric.count)


def test_preferences_between_texts():
  phases, batch, _, facts = step(Run(tiny_configs.config('dpo', 'qwen2'), ''), 0)
  assert phases == [] and value(facts['skipped']) == 0
  assert value(facts['loss']) == pytest.approx(np.log(2), abs=1e-5)
  tokens = batch.data['text']['tokens']
  assert tokens.shape == (8, 2, 5) and (tokens[..., 0] > 0).all()
  assert batch.loss_mask.sum(-1).min() >= 2  # a sum and the token that ends it


def test_preferences_between_the_texts_that_a_policy_says():
  c = tiny_configs.config('dpo_groups', 'qwen2')
  c.objective.collect.rewards = dict(long=dict(name='said_reward.length', weight=1.0))
  phases, batch, metrics, facts = step(Run(c, ''), 0)
  assert phases == ['wait_for_update', 'rollout', 'reward']
  assert value(metrics['pairs']) > 0 and value(metrics['pairs/gap']) > 0
  assert value(metrics['reward']) == value(metrics['rewards/long']) > 0
  assert value(facts['loss']) == pytest.approx(np.log(2), abs=1e-5)
  assert batch.ref_logp.shape == batch.loss_mask.shape == (8, 2, 5)


@pytest.mark.slow
def test_prefixes_of_bits():
  phases, batch, metrics, facts = step(Run(tiny_configs.config('vmr', 'infinity'), ''), 0)
  assert phases[:3] == ['wait_for_update', 'rollout', 'reward']
  assert batch.data['image']['tokens'].shape == (8, 4, 1, 4) and batch.advantage.shape == (8, 4)
  assert value(facts['ratio']) == 1 and value(facts['skipped']) == 0
  assert metrics['vmr/prefix'] == 1 and float(metrics['rewards/light'].count) == 8 * 4 * 2
