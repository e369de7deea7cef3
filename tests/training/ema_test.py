"""The moving average of the weights: what it is, that it survives a restart, and who sees it."""

from functools import partial
import pathlib

from clu.metrics import Average
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import quickstart
from vargrl.checkpoint import digest
from vargrl.checkpoint import store as stores
from vargrl.eval.run import Evaluator
from vargrl.parallel import mesh as meshes
from vargrl.training import loop, optim, update, weights
from vargrl.training.run import Run
from vargrl.types import Experience, State

DECAY = 0.75
OLD = pathlib.Path(__file__).parents[1] / 'golden' / 'checkpoint_1'


@pytest.fixture(autouse=True, scope='module')
def one_device():
  """A run is made for all devices of the machine; these tests need one."""
  before = meshes.make
  meshes.make = lambda axes, devices=None: before(axes, devices or jax.devices()[:1])
  yield
  meshes.make = before


def config(ema, steps=4, **init):
  c = quickstart.get_config('smoke').classifier
  c.steps, c.save_every, c.evals, c.keep = steps, 1, {}, 9
  c.optim.update(ema=ema, warmup=0, peak=1e-2, schedule='constant')
  c.init = init
  return c


def train(workdir, *args, **options):
  lines = []
  state = loop.train(config(*args), workdir, log=lines.append, **options)
  return state, lines


def at_step(workdir, step):
  """The State of the checkpoint of this step."""
  run = Run(config(DECAY), '')
  abstract = run.shapes if has_ema(workdir, step) else run.shapes.replace(ema=None)
  _, state, *_ = stores.integrity.newest_good(workdir / 'checkpoints', [step], abstract, item='')
  run.close()
  return state


def has_ema(workdir, step):
  record, _, _ = stores.integrity.read_metadata(workdir / 'checkpoints' / str(step), step)
  return any(name.startswith('ema/') for name in record['leaves'])


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def step_by_hand(ema, params):
  return jax.tree.map(lambda e, p: DECAY * e + (1 - DECAY) * p, ema, params)


close = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """(workdir, last State) of four steps with a moving average."""
  workdir = tmp_path_factory.mktemp('ema') / 'whole'
  return workdir, train(workdir, DECAY)[0]


def test_it_is_the_recursion_over_good_updates_of_what_is_trained():
  """w moves by -1, -2, (skipped), -3; u is frozen; the critic has no average."""
  leaf = lambda x: jnp.full((2,), x, jnp.float32)
  params = {'policy': {'w': leaf(4.0), 'u': leaf(1.0)}, 'critic': {'v': leaf(0.0)}}
  trained = {'policy': {'w': True, 'u': False}, 'critic': {'v': True}}

  def loss(params, frozen, batch):
    total = (params['policy']['w'] * batch.advantage[0]).sum() + params['critic']['v'].sum()
    return Average(total=total, count=jnp.ones(())), {}

  optimizer = optim.Optimizer(optax.sgd(1.0), None, trained, ema=DECAY)
  ema = optim.ema_start(params, trained)
  state = State(params, optimizer.tx.init(optim.partition(params, trained)[0]), ema)
  step = jax.jit(update.make_update(loss, optimizer, 1))
  found = []
  for gradient in (1.0, 2.0, np.nan, 3.0):
    state, metrics = step(state, {}, Experience(advantage=leaf(gradient)[None]))
    assert float(metrics['skipped'].total) == np.isnan(gradient)
    found.append(float(state.ema['policy']['w'][0]))
  # w is 4, 3, 1, 1, -2.
  first = 0.75 * 4 + 0.25 * 3
  second = 0.75 * first + 0.25 * 1
  assert found == [first, second, second, 0.75 * second + 0.25 * -2]
  assert digest.named_leaves(state.ema).keys() == {'policy/w'}
  seen = optim.ema_params(state)
  assert seen['policy']['w'] is state.ema['policy']['w']
  assert (
    seen['policy']['u'] is state.params['policy']['u'] and seen['critic'] == state.params['critic']
  )


def test_off_it_takes_no_memory():
  on, off = (Run(config(ema), '', inference_only=True) for ema in (DECAY, 0.0))
  assert off.shapes.ema is None
  names = digest.named_leaves(off.shapes)
  more = digest.named_leaves(on.shapes).keys() - names.keys()
  assert more == {name.replace('params', 'ema', 1) for name in names if name.startswith('params/')}
  assert off.initial(lambda _: None)[0].ema is None


@pytest.mark.parametrize('ema', [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(ema):
  with pytest.raises(ValueError, match=f'optim.ema: {ema} found, a number at least 0 and below 1'):
    Run(config(ema), '', inference_only=True)


def test_a_run_keeps_the_recursion_in_its_checkpoints(whole):
  workdir, last = whole
  states = [at_step(workdir, step) for step in range(5)]
  equal(states[0].ema, states[0].params)
  equal(states[4], last)
  for before, after in zip(states, states[1:]):
    close(step_by_hand(before.ema, after.params), after.ema)


def test_resumed_is_uninterrupted_bit_for_bit(whole, tmp_path):
  saves = []

  def cut():
    saves.append(0)
    if len(saves) == 3:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    train(tmp_path, DECAY, on_save=cut)
  state, lines = train(tmp_path, DECAY)
  assert 'steps 2 to 4' in lines[-1]
  equal(state, whole[1])


def test_switched_on_it_starts_from_the_parameters_and_switched_off_it_ends(whole, tmp_path):
  train(tmp_path, 0.0, 2)
  state, lines = train(tmp_path, DECAY, 3)
  assert lines[0] == (
    'optim.ema: none in the checkpoint of step 2, it starts from the parameters there'
  )
  close(state.ema, step_by_hand(at_step(tmp_path, 2).params, state.params))
  equal(at_step(tmp_path, 3), state)
  state, lines = train(tmp_path, 0.0, 4)
  assert lines[0] == 'optim.ema: 0, the moving average in the checkpoint of step 3 is left out'
  assert state.ema is None and not has_ema(tmp_path, 4)
  equal(state.params, whole[1].params)  # which an average does not change


def test_an_older_checkpoint_without_it_is_used_where_the_newest_is_corrupt(tmp_path):
  train(tmp_path, 0.0, 1)
  train(tmp_path, DECAY, 2)
  data = tmp_path / 'checkpoints' / '2' / 'data' / 'metadata'
  data.write_text('{}')
  state, lines = train(tmp_path, DECAY, 2)
  assert lines[0].startswith('optim.ema: none in the checkpoint of step 1')
  assert 'steps 1 to 2' in lines[-1] and state.ema is not None


def test_it_is_what_is_evaluated(tmp_path):
  run, seen = Run(config(DECAY, 2), tmp_path), []

  def look(params, frozen, poll):
    seen.append(jax.device_get(params))
    yield 'count', len(seen)

  run.evals.append(Evaluator('look', look, every_steps=1))
  state = loop.train(run.config, tmp_path, run=run, log=lambda _: None)
  assert len(seen) == 3
  equal(seen[-1], state.ema)
  differs = jax.tree.map(lambda a, b: np.any(a != b), seen[-1], state.params)
  assert all(jax.tree.leaves(differs))


def test_it_is_what_a_later_run_and_the_commands_load(whole):
  workdir, last = whole
  folder = workdir / 'checkpoints'
  run = Run(config(0.0, policy=str(folder)), '', inference_only=True)
  equal(run.initial(lambda _: None)[0].params, last.ema)
  step, params, _ = weights.load_trained(folder, run.shapes.params, item='params')
  assert step == 4
  equal(params, last.ema)


def test_a_checkpoint_of_an_earlier_version_loads_with_its_parameters():
  params = {'policy': {'blocks': {'q': {'w': np.zeros((2, 3, 4), np.float32)}}}}
  params['policy']['half'] = np.zeros((3, 4), jnp.bfloat16)
  _, found, _ = weights.load_trained(OLD, params, item='params')
  _, same, _ = stores.load(OLD, params, item='params')
  equal(found, same)
