"""A run with adapters: what it trains, what its reference is, and where its weights come from."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import quickstart
from vargrl.checkpoint import store as stores
from vargrl.models.layers import lora
from vargrl.parallel import mesh as meshes
from vargrl.parallel import place
from vargrl.reporting import writer as writing
from vargrl.training import assemble, loop
from vargrl.training.run import Run
from vargrl.types import Experience, State

ADAPTERS = (('/lora_', 1.0), ('.*', None))
P, R = 2, 4


def config(rank=4, **changes):
  """The quickstart's smallest GRPO, of adapters beside a base whose adapter-off pass is the
  reference.
  """
  c = quickstart.get_config('smoke').grpo
  del c.classifier
  c.steps, c.save_every, c.init, c.evals, c.reference = 4, 2, {}, {}, True
  c.mesh = (('data', 1), ('fsdp', 1), ('tensor', 1))
  c.policy.update(lora_rank=rank, lora_alpha=8.0, scales=(1, 2))
  c.tokenizer.update(scales=(1, 2))
  c.data.prompts, c.objective.collect.rollouts = P, R
  c.objective.collect.rewards = dict(light=dict(name='rewards.brightness', weight=1.0))
  c.objective.loss.update(penalty=0.1, estimator='exact')
  c.optim.update(peak=1e-2, warmup=0)
  if rank:
    c.optim.scale = ADAPTERS
  c.update(changes)
  return c


@pytest.fixture(scope='module', autouse=True)
def one_device():
  """A run is made for all devices of the machine; these need one."""
  before = meshes.make
  meshes.make = lambda axes, devices=None: before(axes, devices or jax.devices()[:1])
  yield
  meshes.make = before


def saved(folder, params):
  """The folder, with a checkpoint of this policy."""
  store = stores.Store(pathlib.Path(folder), every_steps=1, max_to_keep=1)
  store.save(0, State({'policy': params}, {}), {}, {'config': '{}'}, force=True)
  store.close()
  return str(folder)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """{name: folder} of a random tokenizer and a random policy without adapters."""
  folder, c, found = tmp_path_factory.mktemp('base'), config(rank=0), {}
  for seed, name in enumerate(('policy', 'tokenizer')):
    python, model = assemble.module(c[name], name)
    shapes = nn.unbox(jax.eval_shape(lambda key: python.init(model, key), jax.random.key(0)))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), x.dtype), shapes)
    found[name] = saved(folder / name, params)
  return found


@pytest.fixture(scope='module')
def trained(tmp_path_factory, base):
  """(Run, workdir, State) after four steps from the base."""
  workdir = tmp_path_factory.mktemp('lora') / 'run'
  c = config(init=dict(base))
  run = Run(c, workdir)
  return run, workdir, loop.train(c, workdir, run=run, log=lambda _: None)


def leaves(tree):
  return {'/'.join(k.key for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def of_base(run, folder):
  """The weights of a base checkpoint, loaded apart from the run's."""
  return stores.load(folder, lora.base_params(run.shapes.params['policy']), item='params/policy')[1]


def test_adapters_learn_and_the_base_stays_bit_for_bit(trained, base):
  run, workdir, state = trained
  equal(lora.base_params(state.params['policy']), of_base(run, base['policy']))
  first, _ = run.initial(lambda _: None)
  before, after = (leaves(lora.split(s.params['policy'])[1]) for s in (first, state))
  assert len(after) == 12 and all((before[name] != after[name]).any() for name in after)
  rows = [row for row in writing.load(workdir) if 'reward' in row]
  assert len(rows) == 4 and not any(row['skipped'] for row in rows)
  count = sum(x.size for x in after.values())
  assert sum(x.size for x in jax.tree.leaves(state.opt)) == 2 * count + 2  # two moments, two counts


def test_the_first_update_sees_the_policy_that_sampled_and_no_kl(trained):
  rows = [row for row in writing.load(trained[1]) if 'reward' in row]
  assert rows[0]['ratio'] == 1 and {v for k, v in rows[0].items() if k.startswith('kl')} == {0}
  assert rows[-1]['kl'] > 1e-3


def test_the_reference_is_the_base_and_no_second_copy(trained, base):
  run, _, state = trained
  frozen = run.frozen(lambda _: None)
  assert set(frozen) == {'tokenizer'}
  reference = run.policy.reference(state.params, frozen)
  assert leaves(reference)['blocks/q/w'] is state.params['policy']['blocks']['q']['w']
  rng, L = np.random.default_rng(0), run.policy.config.length
  data = {'image': {'tokens': jnp.asarray(rng.integers(0, 32, (P, R, L)))}}
  score = lambda reference: jax.jit(run.policy.score)(
    state.params['policy'], frozen, jnp.arange(P), data, reference
  )
  own = score(reference)
  equal(own, score(of_base(run, base['policy'])))
  assert float(own.penalty.mean()) > 1e-4
  c = config(init=dict(base) | dict(reference=base['policy']))
  apart = Run(c, '').frozen(lambda _: None)
  equal(apart['reference'], of_base(run, base['policy']))


def test_cut_and_continued_is_uninterrupted(trained, base, tmp_path):
  c, saves = config(init=dict(base)), []

  def cut():
    saves.append(1)
    if len(saves) == 2:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    loop.train(c, tmp_path, log=lambda _: None, on_save=cut)
  said = []
  equal(loop.train(c, tmp_path, log=said.append), trained[2])
  assert 'steps 2 to 4' in said[-1] and ' trained)' in said[-1], said


def test_weights_come_from_a_base_or_from_a_run_with_adapters(trained, base):
  run, workdir, state = trained
  drawn, _ = run.initial(lambda _: None)
  adapters = lora.split(drawn.params['policy'])[1]
  assert not any(x.any() for name, x in leaves(adapters).items() if name.endswith('lora_b'))
  c = config(init=dict(base) | dict(policy=''))
  equal(
    lora.split(Run(c, '').initial(lambda _: None)[0].params['policy'])[1], adapters
  )  # of the seed
  c.init.policy = str(workdir / 'checkpoints')
  equal(Run(c, '').initial(lambda _: None)[0].params, state.params)
  c.policy.lora_rank = 2
  with pytest.raises(ValueError, match=r'not a checkpoint of this model, 12 leaves differ'):
    Run(c, '')
  whole, bare = run.shapes.params, {'policy': lora.base_params(run.shapes.params['policy'])}
  c.policy.lora_rank, c.init.policy = 4, 'earlier'
  for upstream in (whole, bare):
    Run(c, '', upstream={'earlier': upstream})
  c.policy.lora_rank = 2
  with pytest.raises(ValueError, match='12 leaves differ'):
    Run(c, '', upstream={'earlier': whole})


def test_a_reference_that_would_move_is_refused(base):
  c = config(init=dict(base))
  c.optim.scale = (('/lora_', 1.0), ('/blocks/', None), ('.*', 1.0))
  with pytest.raises(
    ValueError, match='optim.scale: trains .* base weights .policy/classes is one'
  ) as error:
    Run(c, '')
  assert '\n' not in str(error.value)
  c.init.reference = base['policy']
  assert 'reference' in Run(c, '').built.frozen
  c.reference, c.init, c.objective.loss.penalty = False, dict(base), 0.0
  assert 'reference' not in Run(c, '').built.frozen


@pytest.mark.slow
def test_an_update_of_adapters_takes_less_memory_and_fewer_flops():
  """Than one of all weights with a reference of its own, of the compiled programs."""
  found = {}
  for rank in (4, 0):
    c = config(rank)
    c.policy.update(width=128, heads=4)
    run = Run(c, '', inference_only=True)
    with jax.set_mesh(run.mesh):
      row = lambda *shape: jax.ShapeDtypeStruct((P, R, *shape), jnp.float32)
      L = run.policy.config.length
      batch = Experience(
        prompt=jax.ShapeDtypeStruct((P,), jnp.int32),
        data={'image': {'tokens': jax.ShapeDtypeStruct((P, R, L), jnp.int32)}},
        old_logp=row(L),
        advantage=row(),
        row_mask=row(),
      )
      frozen = {
        name: place.abstract_params(init, run.mesh) for name, init in run.built.frozen.items()
      }
      program = run.collect_and_update()[1].lower(run.shapes, frozen, batch).compile()
    memory = program.memory_analysis()
    found[rank] = (
      program.cost_analysis()['flops'],
      memory.temp_size_in_bytes,
      memory.argument_size_in_bytes,
    )
  weights = sum(x.size for x in jax.tree.leaves(run.shapes.params)) * 4
  flops, temp, held = (found[4][i] / found[0][i] for i in range(3))
  assert flops < 0.9 and temp < 0.9 and held < 0.6, (flops, temp, held)
  assert found[0][2] > 4 * weights  # policy, two moments, reference
