"""Collectives of compiled programs: kinds, bytes, and loops that count as often as they run."""
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from vargrl.parallel import hlo, topology

MESH = Mesh(np.array(jax.devices()[:8]), ('fsdp',), axis_types=(AxisType.Auto,))
ROWS, WHOLE = (NamedSharding(MESH, PartitionSpec(*p)) for p in (('fsdp',), ()))


def found(function, *args, out=WHOLE):
  return hlo.collectives(jax.jit(function, out_shardings=out).lower(*args).compile().as_text())


def array(shape, sharding):
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def test_a_sum_over_devices_is_one_all_reduce_of_its_bytes():
  assert found(lambda x: x.sum(0), array((16, 256), ROWS)) == {'all-reduce': (1, 1024)}


def test_a_gathered_array_counts_in_full():
  assert found(lambda x: x + 0, array((16, 256), ROWS)) == {'all-gather': (1, 16 * 1024)}


def test_what_is_in_a_loop_counts_as_often_as_it_runs():
  def layers(w_XDD, x_LD):
    step = lambda x, w: (jnp.tanh(x @ jax.lax.with_sharding_constraint(w, WHOLE)), None)
    return jax.lax.scan(step, x_LD, w_XDD)[0]
  weights = NamedSharding(MESH, PartitionSpec(None, 'fsdp'))
  total = found(layers, array((5, 64, 64), weights), array((8, 64), WHOLE))
  assert total == {'all-gather': (5, 5 * 64 * 64 * 4)}


def test_of_an_asynchronous_pair_the_result_counts_once():
  text = '''ENTRY %main (p: f32[4,8]) -> f32[32,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %start = (f32[4,8]{1,0}, f32[32,8]{1,0}) all-gather-start(%p), dimensions={0}
  ROOT %done = f32[32,8]{1,0} all-gather-done(%start)
}'''
  assert hlo.collectives(text) == {'all-gather': (1, 32 * 8 * 4)}


def test_topologies_by_name():
  assert topology.parse('v5e:4x4') == (1, 'v5e', (4, 4))
  assert topology.parse('2*v5p:2x2x4') == (2, 'v5p', (2, 2, 4))
  assert topology.memory('2*v6e:4x4') == 32 * 2 ** 30
  for wrong in ('v5e', 'v5litepod:4x4', 'v5e:4x4x4', 'v4:2x2', 'v5e:4', 'x*v5e:4x4', ''):
    with pytest.raises(ValueError, match='topology: '): topology.parse(wrong)
