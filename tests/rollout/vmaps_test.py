"""Keys of rows, chunks of actions, and where weights lie while rows are sampled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.models import infinity
from vargrl.parallel import mesh, rules
from vargrl.rollout import vmaps


def data(keys):
  return np.asarray(jax.random.key_data(keys))


def test_keys_are_a_function_of_seed_prompt_and_row():
  rng = jax.random.key(0)
  whole = data(vmaps.row_keys(rng, 4, 6))
  assert whole.shape[:2] == (4, 6) and len(np.unique(whole.reshape(24, -1), axis=0)) == 24
  np.testing.assert_array_equal(data(vmaps.row_keys(rng, 3, 2)), whole[:3, :2])
  assert (data(vmaps.row_keys(jax.random.key(1), 4, 6)) != whole).any((-1)).all()


def test_the_key_of_a_group_is_none_of_its_rows_and_knows_no_number_of_prompts():
  rng = jax.random.key(0)
  groups, rows = data(vmaps.group_keys(rng, 4)), data(vmaps.row_keys(rng, 4, 6)).reshape(24, -1)
  assert len(np.unique(np.concatenate([groups, rows]), axis=0)) == 28
  np.testing.assert_array_equal(data(vmaps.group_keys(rng, 2)), groups[:2])


@pytest.mark.parametrize('A, chunk', [(5, 8), (8, 8), (13, 8), (40, 16)])
def test_chunks_are_the_function_of_all_and_what_pads_them_has_no_gradient(A, chunk):
  """Nor does it divide by 0, which would make every gradient NaN."""
  x_AD = jax.random.normal(jax.random.key(0), (A, 3))
  divisor_A = np.linspace(1, 2, A, dtype=np.float32)
  seen = []

  def function(w_D, part, t_A):
    seen.append(len(t_A))
    return {'y': part['x'] @ w_D / part['divisor'], 't': t_A + 1}

  def total(w_D, in_parts):
    trees = {'x': x_AD, 'divisor': divisor_A}, jnp.arange(A)
    one = lambda *trees: function(w_D, *trees)
    out = vmaps.in_chunks(one, *trees, chunk=chunk) if in_parts else one(*trees)
    return (out['y'] ** 2).sum(), out

  run = jax.value_and_grad(total, has_aux=True)
  (found, gradient), (expected, expected_gradient) = (run(jnp.ones(3), x) for x in (True, False))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    (found, gradient),
    (expected, expected_gradient),
  )
  assert max(seen[:-1]) <= max(chunk, 8)


def test_weights_that_lie_otherwise_are_refused():
  for weights in vmaps.WEIGHTS:
    vmaps.check_weights(weights)
  with pytest.raises(ValueError, match="rollout: weights='x', expected one of"):
    vmaps.check_weights('x')


@pytest.mark.parametrize(
  'weights, cast, dtype',
  [
    ('sharded', None, 'float32'),
    ('sharded', (), 'float32'),
    ('sharded', ('w',), 'bfloat16'),
    ('gathered', None, 'float32'),
    ('gathered', (), 'bfloat16'),
    ('gathered', ('w',), 'bfloat16'),
  ],
)
def test_weights_are_gathered_once_and_cast_with_that_or_where_they_are_named(
  bits, weights, cast, dtype
):
  model = infinity.Model(dataclasses.replace(bits.c, dtype='bfloat16'))
  devices = mesh.make(list(zip(mesh.AXES, (2, 2, 2))))
  with jax.set_mesh(devices):
    params = jax.device_put(bits.params, rules.weight_shardings(bits.boxed, devices))
    w = jax.jit(lambda p: vmaps.place_for_decoding(weights, model, p, cast))(params)['head']['w']
  axes = {axis for part in w.sharding.spec if part for axis in np.atleast_1d(part)}
  assert w.dtype == dtype and ('fsdp' in axes) == (weights == 'sharded')
