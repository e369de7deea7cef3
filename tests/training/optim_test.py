import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest

from vargrl.training import optim

ALL = (('.*', 1.0),)
NONE = (('.*', 0.0),)


def config(**changes):
  defaults = dict(name='adamw', b1=0.9, b2=0.95, eps=1e-8, clip=0.0, ema=0.0, peak=0.1, warmup=0)
  c = ConfigDict(defaults | dict(schedule='constant', end=1.0))
  c.scale, c.decay = ALL, NONE
  c.update({k: v for k, v in changes.items() if k != 'clip'})
  if 'clip' in changes:
    del c.clip  # its type may be another one
    c.clip = changes['clip']
  return c


def weights(seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return {'block': {'w': draw(3, 2), 'b': draw(2)}, 'head': {'w': draw(2, 4)}}


def step(c, grads, params, updates=10):
  tx = optim.make(c, params, updates).tx
  return tx.update(grads, tx.init(params), params)[0]


def equal(a, b, **options):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **options), a, b)


@pytest.mark.parametrize(
  'schedule, middle, end', [('constant', 2.0, 2.0), ('linear', 1.1, 0.2), ('cosine', 1.1, 0.2)]
)
def test_schedules_at_the_start_after_warm_up_in_the_middle_and_at_the_end(schedule, middle, end):
  # peak 2, 4 updates of warm-up, 13 updates: 4 is the peak, 8 halfway, 12 the last one.
  rate = optim.schedule(config(peak=2.0, warmup=4, schedule=schedule, end=0.1), 13)
  found = [float(rate(n)) for n in (0, 1, 3, 4, 8, 12, 99)]
  np.testing.assert_allclose(found, [0.5, 1.0, 2.0, 2.0, middle, end, end], rtol=1e-6)


def test_without_warm_up_the_first_rate_is_the_peak():
  assert float(optim.schedule(config(peak=2.0, schedule='linear', end=0.0), 5)(0)) == 2
  assert float(optim.schedule(config(peak=2.0, schedule='linear', end=0.0), 5)(4)) == 0
  assert float(optim.schedule(config(peak=2.0, schedule='cosine', end=0.0), 1)(0)) == 2


def test_one_pattern_for_all_is_adamw():
  c = config(clip=0.5, warmup=2, schedule='cosine', end=0.1, decay=(('.*', 0.3),))
  params = ours = theirs = weights()
  tx, rate, *_ = optim.make(c, params, 10)
  clip = optax.clip_by_global_norm(0.5)
  other = optax.chain(clip, optax.adamw(rate, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.3))
  a, b = tx.init(ours), other.init(theirs)
  for seed in range(4):
    u, a = tx.update(weights(seed), a, ours)
    v, b = other.update(weights(seed), b, theirs)
    ours, theirs = optax.apply_updates(ours, u), optax.apply_updates(theirs, v)
  equal(ours, theirs, rtol=1e-6)
  assert float(jnp.abs(ours['head']['w'] - params['head']['w']).min()) > 0


def test_what_is_frozen_has_no_moments_and_no_update():
  c = config(clip=1.0, scale=(('^head', None), ('.*', 1.0)), decay=(('.*', 0.5),))
  params = weights()
  tx, _, trained, *_ = optim.make(c, params, 10)
  assert trained == {'block': {'w': True, 'b': True}, 'head': {'w': False}}
  trained_params, frozen_params = optim.partition(params, trained)
  assert trained_params['block'] == params['block'] and frozen_params['head'] == params['head']
  assert not jax.tree.leaves([trained_params['head'], frozen_params['block']])
  assert optim.merge(trained_params, frozen_params) == params
  state = tx.init(trained_params)
  sizes = sorted(x.size for x in jax.tree.leaves(state))
  assert sizes == [1, 1, 2, 2, 6, 6]  # two counts, and the two moments of block/b and block/w
  grads, _ = optim.partition(weights(1), trained)
  updates, _ = tx.update(grads, state, trained_params)
  assert jax.tree.structure(updates) == jax.tree.structure(trained_params)


def test_the_norm_is_clipped_over_all_that_is_trained():
  params = weights()
  grads = jax.tree.map(lambda x: 100 * x, weights(1))
  tx = optim.make(config(clip=1.0), params, 10).tx
  moments = tx.update(grads, tx.init(params), params)[1]
  first = [x for x in jax.tree.leaves(moments) if x.ndim][:3]  # mu = (1 - b1) g at the first update
  assert float(optax.global_norm(first)) == pytest.approx(0.1, rel=1e-5)


TABLE = (('/b$', 1.0), ('^block', 2.0), ('.*', None))


def gradients():
  """Norms by the groups of TABLE: block/b 5, block/w 1, head/w 13."""
  w = jnp.zeros((3, 2)).at[1, 0].set(1.0)
  head = jnp.zeros((2, 4)).at[0, 0].set(5.0).at[1, 3].set(12.0)
  return {'block': {'w': w, 'b': jnp.array([3.0, -4.0])}, 'head': {'w': head}}


def clipped(clip, grads, params, **changes):
  """What Adam gets of these gradients."""
  optimizer = optim.make(config(clip=clip, **changes), params, 10)
  params, _ = optim.partition(params, optimizer.trained)
  grads, _ = optim.partition(grads, optimizer.trained)
  _, (_, adam, _) = optimizer.tx.update(grads, optimizer.tx.init(params), params)
  return jax.tree.map(lambda m: m / (1 - 0.9), adam.mu)


def test_a_table_clips_the_parameters_of_each_pattern_by_their_joint_norm():
  params, grads = weights(), gradients()
  found = clipped(TABLE, grads, params)
  # 5 to 1; 1 is below 2; 13 has no limit.
  np.testing.assert_allclose(found['block']['b'], [0.6, -0.8], rtol=1e-6)
  np.testing.assert_allclose(found['block']['w'], grads['block']['w'], rtol=1e-6)
  np.testing.assert_allclose(found['head']['w'], grads['head']['w'], rtol=1e-6)
  # Two parameters of one pattern: their norm is sqrt(25 + 1).
  found = clipped((('^block', 1.0), ('.*', 0)), grads, params)
  np.testing.assert_allclose(found['block']['b'], np.array([3, -4]) / 26**0.5, rtol=1e-6)
  np.testing.assert_allclose(found['block']['w'][1, 0], 1 / 26**0.5, rtol=1e-6)
  np.testing.assert_allclose(found['head']['w'], grads['head']['w'], rtol=1e-6)
  # What is frozen is no part of a norm.
  frozen = (('^block/w', None), ('.*', 1.0))
  found = clipped((('^block', 1.0), ('.*', 0)), grads, params, scale=frozen)
  np.testing.assert_allclose(found['block']['b'], [0.6, -0.8], rtol=1e-6)
  assert found['block']['w'] is None


def test_one_pattern_for_all_is_the_global_norm_and_none_is_zero_bit_for_bit():
  params, grads = weights(), weights(1)
  equal(clipped((('.*', 0.3),), grads, params), clipped(0.3, grads, params), rtol=0)
  equal(clipped(None, grads, params), clipped(0.0, grads, params), rtol=0)
  equal(clipped((('.*', None),), grads, params), clipped(0.0, grads, params), rtol=0)


def test_groups_of_the_table_have_norms_of_their_own():
  params, grads = weights(), gradients()
  optimizer = optim.make(config(clip=TABLE), params, 10)
  assert optimizer.clip_groups == {'block': {'w': 1, 'b': 0}, 'head': {'w': 2}}
  norms = optim.group_norms(grads, optimizer.clip_groups)
  assert {i: float(x) for i, x in norms.items()} == {0: 5, 1: 1, 2: 13}
  assert optim.make(config(clip=1.0), params, 10).clip_groups is None


def test_a_multiplier_scales_the_rate_decay_included():
  c = config(decay=(('.*', 0.5),))
  whole = step(c, weights(1), weights())
  c.scale = (('/b$', 0.1), ('.*', 1.0))
  part = step(c, weights(1), weights())
  np.testing.assert_allclose(part['block']['b'], 0.1 * whole['block']['b'], rtol=1e-6)
  np.testing.assert_array_equal(part['block']['w'], whole['block']['w'])


def test_decay_is_where_its_pattern_is():
  params = weights()
  c = config(decay=(('/b$', 0.0), ('^block', 0.5), ('.*', 0.0)))
  updates = step(c, jax.tree.map(jnp.zeros_like, params), params)
  np.testing.assert_allclose(updates['block']['w'], -0.1 * 0.5 * params['block']['w'], rtol=1e-6)
  assert not np.any(updates['block']['b']) and not np.any(updates['head']['w'])


@pytest.mark.parametrize(
  'changes, words',
  [
    (dict(scale=(('^block', 1.0),)), 'optim.scale: no pattern covers the parameter .head/w'),
    (dict(decay=(('/b$', 0.0),)), 'optim.decay: no pattern covers'),
    (dict(scale=(('.*', 1.0), ('^head', None))), 'optim.scale: the pattern .* decides no'),
    (dict(decay=(('bias', 0.0), ('.*', 0.1))), "optim.decay: the pattern 'bias' decides no"),
    (dict(scale=(('.*', None),)), 'optim.scale: every parameter is frozen'),
    (dict(clip=(('^block', 1.0),)), 'optim.clip: no pattern covers the parameter .head/w'),
    (dict(clip=(('.*', 1.0), ('^head', None))), 'optim.clip: the pattern .* decides no'),
    (dict(clip=(('.*', -1.0),)), 'optim.clip: -1.0 found, a number at least 0 expected'),
    (dict(clip=float('inf')), 'optim.clip: inf found, a finite number at least 0'),
    (dict(ema=1.0), 'optim.ema: 1.0 found, a number at least 0 and below 1'),
    (dict(name='sgd'), 'optim.name'),
    (dict(schedule='step'), 'optim.schedule'),
    (dict(warmup=10), 'optim.warmup'),
    (dict(warmup=-1), 'optim.warmup'),
  ],
)
def test_a_parameter_without_a_pattern_and_an_idle_pattern_are_errors(changes, words):
  with pytest.raises(ValueError, match=words):
    optim.make(config(**changes), weights(), 10)
