"""The loop, on the real policy at its smallest; one device and eight."""

from functools import partial
import os
import pathlib
import subprocess
import sys

import flax
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

HERE = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(HERE / 'objectives'), str(HERE.parent)]

import toys  # noqa: E402

from experiments import quickstart  # noqa: E402
from vargrl.checkpoint import store as stores  # noqa: E402
from vargrl.parallel import mesh as meshes  # noqa: E402
from vargrl.parallel import place  # noqa: E402
from vargrl.parallel import rows as rows_on  # noqa: E402
from vargrl.reporting import writer as writing
from vargrl.training import assemble
from vargrl.training import loop as train
from vargrl.training.run import Run
from vargrl.types import Experience, State  # noqa: E402

WEIGHTS = dict(scale_weight_power=0.7, segments=(('.*', {}),))
GRPO = dict(level='token', clip=0.2, clip_high=0.3, penalty=0.1, estimator='exact')
GRPO |= dict(first_scale=0, last_scale=-1, **WEIGHTS)

# The real policy, with weights from numpy: XLA takes longer to compile an initializer than a step.


def shaped(shapes, seed):
  """Weights like `shapes`: normal with variance 1 / fan-in, biases 0, scales 1."""
  rng = np.random.default_rng(seed)

  def one(path, x):
    name = path[-1].key
    if name in ('b', 'bias', 'temperature'):
      return np.zeros(x.shape, np.float32)
    if name == 'scale':
      return np.ones(x.shape, np.float32)
    fan = np.prod(x.shape[:-1]) if len(x.shape) == 4 else x.shape[-1]
    return (rng.normal(size=x.shape) / np.sqrt(fan)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(one, shapes)


def config(objective, loss, steps, **changes):
  """The quickstart's smallest run, changed."""
  c = quickstart.get_config('smoke').grpo
  del c.classifier
  c.steps, c.save_every, c.init, c.evals, c.reference = steps, 10**6, {}, {}, False
  c.mesh = (('data', 1), ('fsdp', 1), ('tensor', 1))
  c.optim.update(peak=2e-2, warmup=1, clip=1.0)
  c.objective.name = objective
  c.objective.loss = dict(loss)
  c.update(changes)
  return c


@pytest.fixture(scope='module')
def one_device():
  """A run is made for all devices of the machine; most of these tests need one."""
  before = meshes.make
  meshes.make = lambda axes, devices=None: before(axes, devices or jax.devices()[:1])
  yield
  meshes.make = before


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory, one_device):
  """{name: folder} of a random tokenizer and policy, as other runs would have left them."""
  folder = tmp_path_factory.mktemp('weights')
  c, found = config('objectives.grpo', GRPO, 1), {}
  for seed, name in enumerate(('policy', 'tokenizer')):
    python, model = assemble.module(c[name], name)
    shapes = flax.linen.unbox(jax.eval_shape(partial(python.init, model), jax.random.key(0)))
    found[name] = str(folder / name / 'checkpoints')
    params = {'policy': jax.tree.map(jnp.asarray, shaped(shapes, seed))}
    store = stores.Store(pathlib.Path(found[name]), every_steps=1, max_to_keep=1)
    store.save(0, State(params, {}), {}, {'config': '{}'}, force=True)
    store.close()
  return found


def test_grpo_starts_at_the_old_policy_and_raises_the_reward(tmp_path, checkpoints):
  """Two prompts, 64 rows a step; the first update sees the policy that sampled, to the bit."""
  c = config(
    'objectives.grpo', GRPO | dict(penalty=0.0, scale_weight_power=0.0), 60, init=dict(checkpoints)
  )
  c.reference, c.optim.peak = True, 1e-2
  c.data.update(classes=2, prompts=2)
  c.objective.collect.rollouts = 32
  c.objective.collect.rewards = ConfigDict(dict(light=dict(name='rewards.brightness', weight=1.0)))
  train.train(c, tmp_path, log=lambda _: None)
  rows = [row for row in writing.load(tmp_path) if 'reward' in row]
  first = {k: v for k, v in rows[0].items() if k.startswith(('ratio', 'kl', 'clip_ratio'))}
  assert len(first) > 10 and first.pop('ratio') == 1
  assert {v for k, v in first.items() if k.startswith('kl')} == {0}
  # The trainer's log-probabilities are of another program: 1 + 6e-8 is the next float32.
  assert max(map(abs, first.values())) < 1e-7
  reward = np.array([row['reward'] for row in rows])
  noise = rows[0]['reward_std'] / 64**0.5  # of the mean of 64 rewards
  assert len(rows) == 60 and not any(row['skipped'] for row in rows)
  assert reward[-5:].mean() > reward[:3].mean() + 12 * noise, (reward, noise)


def test_dpo_learns_to_prefer_the_chosen(tmp_path, checkpoints):
  loss = dict(kind='sigmoid', beta=0.1, smoothing=0.0, **WEIGHTS | dict(scale_weight_power=0.0))
  c = config('objectives.dpo', loss, 25, init=dict(checkpoints), reference=True)
  c.objective.collect = dict(flip=0.0, flip_scales=0, same_flips=True)
  c.data = dict(quickstart.get_config('smoke').pretrain.data)
  c.data.update(dataset='digit_pairs', split='train[:8]', batch=8, dir=str(tmp_path / 'tfds'))
  train.train(c, tmp_path / 'run', log=lambda _: None)
  rows = [row for row in writing.load(tmp_path / 'run') if 'loss' in row]
  assert rows[0]['loss'] == pytest.approx(np.log(2), abs=1e-5)
  assert rows[0]['rewards/margins'] == pytest.approx(0, abs=1e-5)
  assert np.mean([row['rewards/accuracies'] for row in rows[-5:]]) > 0.9
  assert rows[-1]['loss'] < 0.5


def test_a_run_without_a_good_update_ends_and_keeps_what_it_had(tmp_path, one_device):
  c = quickstart.get_config('smoke').classifier
  c.steps, c.evals = 100, {}
  state = train.train(
    ConfigDict(c.to_dict() | dict(steps=2)), tmp_path / 'good', log=lambda _: None
  )
  bad = State(jax.tree.map(lambda x: x * jnp.nan, state.params), {})
  store = stores.Store(tmp_path / 'nan' / 'checkpoints', every_steps=1, max_to_keep=1)
  store.save(0, bad, {}, {}, force=True)
  store.close()
  c.init = dict(policy=str(tmp_path / 'nan' / 'checkpoints'))
  with pytest.raises(
    FloatingPointError, match=f'no update of the {train.MAX_SKIPPED_STEPS} steps up to 9'
  ):
    train.train(c, tmp_path / 'run', log=lambda _: None)
  rows = [row for row in writing.load(tmp_path / 'run') if 'skipped' in row]
  assert [row['skipped'] for row in rows] == [1] * (train.MAX_SKIPPED_STEPS + 1)
  assert not any('loss' in row or 'grad_norm' in row for row in rows)


# One device and eight, in a process that has eight.

MESHES = {'data 8': (8, 1, 1), 'fsdp 8': (1, 8, 1), '2 x 2 x 2': (2, 2, 2), '1 x 2 x 4': (1, 2, 4)}


def step_on(sizes, P=8, R=2):
  """The policy's weights before one GRPO step on a mesh of these sizes; after it, with their
  moving average."""
  axes = tuple(zip(meshes.AXES, sizes))
  c = config('objectives.grpo', GRPO, 2, mesh=axes, reference=True, max_replicated_share=1.0)
  c.policy.update(width=64, heads=4, scales=(1, 2))
  c.tokenizer.update(scales=(1, 2))
  c.data.prompts, c.objective.collect.rollouts = P, R
  c.objective.collect.rewards = ConfigDict(dict(light=dict(name='rewards.brightness', weight=1.0)))
  c.optim.update(
    peak=1e-2, warmup=0, eps=1e-3, clip=1.0, ema=0.5
  )  # eps: else rounding decides signs
  make = meshes.make
  meshes.make = lambda axes, devices=None: make(axes, jax.devices()[: int(np.prod(sizes))])
  try:
    run = Run(c, '', inference_only=True)
  finally:
    meshes.make = make
  put = lambda x, like: jax.device_put(x, like.sharding)
  with jax.set_mesh(run.mesh):
    policy = shaped(run.shapes.params['policy'], 0)
    params = {'policy': jax.tree.map(put, policy, run.shapes.params['policy'])}
    opt = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), run.shapes.opt)
    other = jax.tree.map(lambda x: 0.9 * x, policy)
    frozen = {'reference': jax.tree.map(put, other, run.shapes.params['policy'])}
    shapes = place.abstract_params(run.built.frozen['tokenizer'], run.mesh)
    frozen['tokenizer'] = jax.tree.map(put, shaped(shapes, 1), shapes)
    rng, length = np.random.default_rng(0), run.policy.config.length
    batch = Experience(
      prompt=rng.integers(0, 10, P),
      data={'image': {'tokens': rng.integers(0, 32, (P, R, length))}},
      old_logp=rng.normal(size=(P, R, length)).astype(np.float32) * 0.1
      - np.log(32).astype(np.float32),
      advantage=rng.normal(size=(P, R)).astype(np.float32),
      row_mask=(np.arange(P * R) > 2).reshape(P, R).astype(np.float32),
    )
    spec = jax.sharding.PartitionSpec(*rows_on.mesh_axes(run.mesh, P, R))
    one = jax.sharding.PartitionSpec(spec[0])
    where = lambda x: jax.sharding.NamedSharding(run.mesh, one if x.ndim == 1 else spec)
    batch = jax.tree.map(lambda x: jax.device_put(x, where(x)), batch)
    state = State(params, opt, run.initial_ema(params))
    state, facts = run.collect_and_update()[1](state, frozen, batch)
  assert toys.mean(facts['skipped']) == 0
  jax.tree.map(lambda e, p: check_sharding(e, p), state.ema, state.params)
  return policy, jax.device_get((state.params['policy'], state.ema['policy']))


def check_sharding(a, b):
  assert a.sharding == b.sharding


def meshes_agree():
  before, one = step_on((1, 1, 1))
  moved = jax.tree.map(lambda a, b: abs(a - b).max(), before, one[0])
  assert max(jax.tree.leaves(moved)) > 1e-3
  middle = jax.tree.map(lambda a, b: (a + b) / 2, before, one[0])
  jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-6), one[1], middle)
  for name, sizes in MESHES.items():
    _, eight = step_on(sizes)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-5, err_msg=name), one, eight)


def test_one_device_is_eight_whatever_the_mesh():
  if len(jax.devices()) >= 8:
    return meshes_agree()
  flags = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
  code = 'import loop_test; loop_test.meshes_agree()'
  env = os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-c', code]
  run = subprocess.run(
    command, cwd=pathlib.Path(__file__).parent, env=env, capture_output=True, text=True
  )
  assert run.returncode == 0, run.stderr[-3000:]
