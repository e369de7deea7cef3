"""One letter, one mesh axis: the tables, the mesh, and what they refuse."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from vargrl.models import var
from vargrl.parallel import mesh, rows, rules

AXES = ('data', 'fsdp', 'tensor')


def make(*sizes, devices=None):
  return mesh.make(list(zip(AXES, sizes)), devices)


@pytest.mark.parametrize(
  'sizes,found',
  [
    ((1, -1, 1), (1, 8, 1)),
    ((2, 2, 2), (2, 2, 2)),
    ((-1, 2, 4), (1, 2, 4)),
    ((8, 1, -1), (8, 1, 1)),
  ],
)
def test_a_mesh_has_all_devices_and_minus_one_takes_what_is_left(sizes, found):
  m = make(*sizes)
  assert m.axis_names == AXES and m.devices.shape == found
  assert m.devices.ravel().tolist() == jax.devices()
  assert m.axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize(
  'sizes,word',
  [
    ((1, 1, 1), '8'),
    ((3, -1, 1), '8'),
    ((4, 4, 1), '16'),
    ((-1, -1, 1), '-1'),
    ((0, 8, 1), '0'),
    ((-2, 8, 1), '-2'),
  ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes, word):
  with pytest.raises(ValueError, match='mesh: .*' + word):
    make(*sizes)


def test_a_mesh_has_the_three_axes_in_their_order():
  for axes in [('fsdp', 8), ('data', 1), ('tensor', 1)], [('data', 8)]:
    with pytest.raises(ValueError, match='mesh: axes'):
      mesh.make(axes)
  assert make(1, 1, 1, devices=jax.devices()[:1]).size == 1


def test_rows_are_spread_over_prompts_first_then_within_groups():
  m = make(2, 4, 1)
  assert rows.mesh_axes(m, 8, 3) == (('data', 'fsdp'), ())
  assert rows.mesh_axes(m, 2, 4) == (('data',), ('fsdp',))
  assert rows.mesh_axes(m, 1, 8) == ((), ('data', 'fsdp'))
  assert rows.mesh_axes(make(1, 1, 8), 3, 5) == (('data', 'fsdp'), ())  # tensor holds no rows
  for P, R in (3, 5), (2, 2), (1, 4), (4, 1):
    with pytest.raises(ValueError, match=f'batch: {P} prompts x {R} rows'):
      rows.mesh_axes(m, P, R)


def test_a_letter_is_a_mesh_axis_unless_its_size_does_not_divide():
  m = make(1, 2, 4)
  spec = lambda axes, *shape: rules.spec(axes, shape, rules.WEIGHTS, m)
  assert spec('DNH', 64, 4, 16) == PartitionSpec('fsdp', 'tensor', None)
  assert spec('DNH', 63, 4, 16) == PartitionSpec(None, 'tensor', None)
  assert spec('DNH', 64, 6, 16) == PartitionSpec('fsdp', None, None)
  assert spec('XDcd', 2, 64, 6, 64) == PartitionSpec(None, 'fsdp', None, None)
  assert rules.spec('BLV', (8, 5, 32), rules.ACTIVATIONS, m) == PartitionSpec(
    PartitionSpec.UNCONSTRAINED, None, 'tensor'
  )


def test_without_a_mesh_shard_does_nothing():
  x = jnp.ones((2, 3))
  assert rules.shard(x, 'BD') is x


def test_every_weight_of_the_released_models_is_cut_over_the_mesh():
  m = make(1, 2, 4)
  for name in 'd16', 'd36-512':
    model = var.Model(var.SIZES[name])
    boxed = jax.eval_shape(lambda key: var.init(model, key), jax.random.key(0))
    placed, shapes = rules.weight_shardings(boxed, m), nn.unbox(boxed)
    assert jax.tree.structure(placed) == jax.tree.structure(shapes)
    assert placed['blocks']['q']['w'].spec == PartitionSpec(None, 'fsdp', 'tensor', None)
    assert placed['blocks']['fc2']['w'].spec == PartitionSpec(None, 'tensor', 'fsdp')
    assert placed['head']['w'].spec == PartitionSpec('fsdp', 'tensor')
    rules.check_replicated(shapes, placed, max_share=0.02)


def test_weights_that_a_mesh_does_not_cut_are_counted_and_refused():
  m = make(1, 8, 1)
  x = {
    'a': jax.ShapeDtypeStruct((30,), jnp.float32),
    'b': jax.ShapeDtypeStruct((20,), jnp.bfloat16),
  }
  cut, whole = (NamedSharding(m, PartitionSpec(s)) for s in ('fsdp', None))
  assert rules.replicated_share(x, {'a': cut, 'b': whole}) == 40 / 160
  rules.check_replicated(x, {'a': cut, 'b': whole}, max_share=0.25)
  with pytest.raises(ValueError, match='sharding: 25.0% .* at most 20%'):
    rules.check_replicated(x, {'a': cut, 'b': whole}, max_share=0.2)
  # On a mesh of data alone nothing could be cut, and nothing is wrong.
  only_data = NamedSharding(make(8, 1, 1), PartitionSpec())
  rules.check_replicated(x, {'a': only_data, 'b': only_data}, max_share=0.0)


def test_what_has_no_letters_is_replicated():
  m = make(1, 8, 1)
  placed = rules.weight_shardings({'x': np.zeros((8, 8), np.float32)}, m)
  assert placed['x'].spec == PartitionSpec()
