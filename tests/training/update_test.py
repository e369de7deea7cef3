"""The update on a toy: accumulated parts, gradients that are none, frozen weights, clipping."""

from functools import partial
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'objectives'))

import toys  # noqa: E402

from vargrl.objectives import sft, surrogate  # noqa: E402
from vargrl.training import optim  # noqa: E402
from vargrl.training import update as updates  # noqa: E402
from vargrl.types import Experience, State  # noqa: E402

TX = optax.sgd(1.0, momentum=0.9)
WEIGHTS = dict(scale_weight_power=0.7, segments=(('.*', {}),))
GRPO = dict(level='token', clip=0.2, clip_high=0.3, penalty=0.1, estimator='exact')
GRPO |= dict(first_scale=0, last_scale=-1, **WEIGHTS)
LOSSES = {
  'sft': partial(sft.loss, toys.SCORED, **WEIGHTS),
  'grpo': partial(surrogate.loss, toys.SCORED, **GRPO),
}


def toy_state():
  params = toys.params()
  return State(params, TX.init(params))


def update(loss, batch, accum=1, state=None):
  frozen = {'reference': toys.params(1)['policy']}
  return jax.jit(updates.make_update(loss, optim.Optimizer(TX, None, None), accum))(
    state or toy_state(), frozen, batch
  )


@pytest.mark.parametrize(
  'loss, P, R, masked',
  [('sft', 8, 1, 0), ('grpo', 4, 4, 0), ('grpo', 4, 4, 5), ('grpo', 1, 8, 3), ('grpo', 2, 4, 3)],
)
def test_accumulating_four_parts_is_one_update(loss, P, R, masked):
  """Rows without a verdict make the parts weigh unequally: with 1 x 8 and 2 x 4, the first part of
  two rows has none at all; groups are cut."""
  batch = toys.experience(P, R, masked=masked)
  mask = np.random.default_rng(1).integers(0, 2, (P, R, toys.L)).astype(np.float32)
  batch = (
    batch.replace(loss_mask=jnp.asarray(mask))
    if loss == 'grpo'
    else Experience(prompt=batch.prompt, data=batch.data)
  )
  (one, facts), (four, merged) = (update(LOSSES[loss], batch, accum) for accum in (1, 4))
  moved = one.params['policy']['table'] - toy_state().params['policy']['table']
  assert float(abs(moved).max()) > 0.01
  equal = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
  jax.tree.map(equal, one, four)
  assert facts.keys() == merged.keys()
  for name in facts:
    equal(toys.mean(facts[name]), toys.mean(merged[name]), err_msg=name)


@pytest.mark.parametrize(
  'P, R, n', [(8, 1, 4), (4, 4, 2), (4, 4, 4), (2, 4, 4), (1, 8, 4), (6, 2, 3)]
)
def test_parts_hold_every_row_once_with_its_own_label(P, R, n):
  row = np.arange(P * R).reshape(P, R)
  tokens = jnp.asarray(np.repeat(row[..., None], 3, -1))
  drop_path = jnp.zeros((P, R, 2, 2)) + tokens[..., :1, None]
  batch = Experience(
    prompt={'label': jnp.arange(P), 'text': jnp.arange(2 * P).reshape(P, 2)},
    data={'image': {'tokens': tokens, 'drop_path': drop_path}},
    row_mask=jnp.asarray(row),
    loss_mask=2 * tokens,
  )
  updates.check_split(P, R, n)
  parts = updates.split(batch, n)
  image, label = parts.data['image'], parts.prompt['label']
  found = image['tokens'][..., 0]
  assert found.shape[0] == n and parts.old_logp is None
  p, r = found.shape[1:]
  assert p * r * n == P * R and label.shape == (n, p)
  np.testing.assert_array_equal(np.sort(found.reshape(-1)), np.arange(P * R))
  np.testing.assert_array_equal(found, parts.row_mask)
  np.testing.assert_array_equal(2 * image['tokens'], parts.loss_mask)
  np.testing.assert_array_equal(
    image['drop_path'], np.broadcast_to(found[..., None, None], (n, p, r, 2, 2))
  )
  np.testing.assert_array_equal(found // R, np.repeat(label[..., None], r, 2))
  np.testing.assert_array_equal(parts.prompt['text'][..., 0], 2 * label)


def test_images_are_split_with_their_labels():
  image = jnp.zeros((8, 2, 2, 3)) + jnp.arange(8)[:, None, None, None]
  parts = updates.split(Experience(prompt=jnp.arange(8), image=image), 4)
  np.testing.assert_array_equal(parts.image[..., 0, 0, 0], parts.prompt)
  np.testing.assert_array_equal(np.sort(parts.prompt.reshape(-1)), np.arange(8))


@pytest.mark.parametrize('P, R, n', [(3, 4, 2), (2, 3, 4), (4, 1, 8)])
def test_parts_of_unequal_size_are_refused(P, R, n):
  with pytest.raises(ValueError, match='divisor'):
    updates.check_split(P, R, n)


def batches_without_a_gradient():
  batch = toys.experience(4, 4)
  yield 'nan', batch.replace(advantage=batch.advantage.at[2, 1].set(jnp.nan))
  yield 'inf', batch.replace(advantage=batch.advantage.at[2, 1].set(jnp.inf))
  yield 'no verdict', batch.replace(row_mask=jnp.zeros((4, 4)), advantage=jnp.zeros((4, 4)))


@pytest.mark.parametrize('accum', [1, 4])
def test_a_gradient_that_is_none_leaves_the_state_as_it_is(accum):
  start, facts = update(LOSSES['grpo'], toys.experience(4, 4), accum)  # with moments
  assert toys.mean(facts['skipped']) == 0
  for name, batch in batches_without_a_gradient():
    state, facts = update(LOSSES['grpo'], batch, accum, start)
    jax.tree.map(partial(np.testing.assert_array_equal, err_msg=name), state, start)
    assert toys.mean(facts['skipped']) == 1, name


@pytest.mark.parametrize('accum', [1, 4])
def test_clipping_by_pattern_reports_the_norm_of_each_group(accum):
  """Of what is frozen there is none; together they are the norm of all."""
  params = {'policy': toys.params()['policy'] | {'more': jnp.ones((3,)), 'still': jnp.ones((2,))}}
  trained = {'policy': {'table': True, 'more': True, 'still': False}}

  def loss(params, frozen, batch):
    value, metrics = LOSSES['grpo']({'policy': {'table': params['policy']['table']}}, frozen, batch)
    return value.replace(total=value.total + value.count * params['policy']['more'].sum()), metrics

  groups = {'policy': {'table': 0, 'more': 2, 'still': None}}
  optimizer = optim.Optimizer(TX, None, trained, clip_groups=groups)
  state = State(params, TX.init(optim.partition(params, trained)[0]))
  step = jax.jit(updates.make_update(loss, optimizer, accum))
  _, metrics = step(state, {'reference': toys.params(1)['policy']}, toys.experience(4, 4))
  norms = {k: float(toys.mean(v)) for k, v in metrics.items() if k.startswith('grad_norm')}
  assert norms.keys() == {'grad_norm', 'grad_norm/0', 'grad_norm/2'}
  assert norms['grad_norm/2'] == pytest.approx(3**0.5, rel=1e-5)
  whole = (norms['grad_norm/0'] ** 2 + norms['grad_norm/2'] ** 2) ** 0.5
  assert norms['grad_norm'] == pytest.approx(whole, rel=1e-5) and norms['grad_norm/0'] > 0


@pytest.mark.parametrize('accum', [1, 4])
def test_what_is_frozen_stays_and_what_is_trained_does_not_notice(accum):
  """Against gradients of everything, zeroed where frozen before the norm is taken."""
  batch, rng = toys.experience(4, 4), np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {
    'policy': {'w': toys.params()['policy']['table'], 'a': draw(4, 5, 2), 'b': 0.1 * draw(2, 4)}
  }
  trained = {'policy': {'w': False, 'a': True, 'b': True}}

  def loss(params, frozen, batch):
    p = params['policy']
    return LOSSES['grpo']({'policy': {'table': p['w'] + p['a'] @ p['b']}}, frozen, batch)

  tx = optax.chain(optax.clip_by_global_norm(0.01), optax.adamw(0.1))
  all_of = lambda tree, which: jax.tree.map(lambda t: t == which, tree)
  old = optax.chain(
    optax.masked(optax.set_to_zero(), all_of(trained, False)),
    optax.clip_by_global_norm(0.01),
    optax.masked(optax.adamw(0.1), trained),
  )
  frozen = {'reference': toys.params(1)['policy']}
  few = State(params, tx.init(optim.partition(params, trained)[0]))
  every = State(params, old.init(params))
  step = jax.jit(updates.make_update(loss, optim.Optimizer(tx, None, trained), accum))
  other = jax.jit(updates.make_update(loss, optim.Optimizer(old, None, None), accum))
  for _ in range(3):
    (few, facts), (every, whole) = step(few, frozen, batch), other(every, frozen, batch)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), few.params, every.params)
    assert 0 < toys.mean(facts['grad_norm']) < toys.mean(whole['grad_norm'])
  np.testing.assert_array_equal(few.params['policy']['w'], params['policy']['w'])
  assert float(abs(few.params['policy']['a'] - params['policy']['a']).max()) > 0.1
