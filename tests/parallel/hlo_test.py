"""Collectives and arithmetic of compiled programs; loops count as often as they run."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from vargrl.parallel import hlo, topology

MESH = Mesh(np.array(jax.devices()[:8]), ('fsdp',), axis_types=(AxisType.Auto,))
SHARDED, REPLICATED = (NamedSharding(MESH, PartitionSpec(*p)) for p in (('fsdp',), ()))


def collectives(function, *args, out=REPLICATED):
  return hlo.collectives(compiled_program(function, *args, out=out))


def compiled_program(function, *args, out=REPLICATED):
  return hlo.parse(jax.jit(function, out_shardings=out).lower(*args).compile().as_text())


def abstract_array(shape, sharding):
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def test_a_sum_over_devices_is_one_all_reduce_of_its_bytes():
  assert collectives(lambda x: x.sum(0), abstract_array((16, 256), SHARDED)) == {
    'all-reduce': (1, 2 * 7 / 8 * 1024)
  }


def test_a_gathered_array_counts_what_the_others_have_of_it():
  assert collectives(lambda x: x + 0, abstract_array((16, 256), SHARDED)) == {
    'all-gather': (1, 7 / 8 * 16 * 1024)
  }


def test_what_is_in_a_loop_counts_as_often_as_it_runs():
  def layers(w_XDD, x_LD):
    step = lambda x, w: (jnp.tanh(x @ jax.lax.with_sharding_constraint(w, REPLICATED)), None)
    return jax.lax.scan(step, x_LD, w_XDD)[0]

  weights = NamedSharding(MESH, PartitionSpec(None, 'fsdp'))
  text = compiled_program(
    layers, abstract_array((5, 64, 64), weights), abstract_array((8, 64), REPLICATED)
  )
  assert hlo.collectives(text) == {'all-gather': (5, 5 * 7 / 8 * 64 * 64 * 4)}
  assert hlo.flops(text) == {'': 5 * 2 * 8 * 64 * 64}
  assert hlo.largest_arrays(text, 1)[0][0] == 64 * 64 * 4  # a layer, gathered


@pytest.mark.parametrize('step,runs', [(1, 16), (2, 8), (3, 6)])
def test_a_loop_runs_up_to_what_its_condition_compares_with(step, runs):
  text = f"""%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {{
  %at = s32[] get-tuple-element(%p), index=0
  %step = s32[]{{:T(128)}} constant({step})
  %next = s32[] add(%at, %step)
  %sum = f32[4,8]{{1,0}} all-reduce(%x), channel_id=1, replica_groups={{{{0,1}},{{2,3}}}}, \
to_apply=%add
  ROOT %both = (s32[], f32[4,8]) tuple(%next, %sum)
}}

%condition (p: (s32[], f32[4,8])) -> pred[] {{
  %limit = s32[]{{:T(128)}} constant(16)
  %at = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%at, %limit), direction=LT
}}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {{
  ROOT %loop = (s32[], f32[4,8]) while(%start), condition=%condition, body=%body
}}"""
  assert hlo.collectives(hlo.parse(text)) == {'all-reduce': (runs, runs * 4 * 8 * 4)}


def test_products_count_exactly_also_as_a_tpu_writes_them():
  dot = compiled_program(
    lambda x, y: jnp.einsum('bij,bjk->bik', x, y),
    abstract_array((3, 8, 16), REPLICATED),
    abstract_array((3, 16, 4), REPLICATED),
  )
  assert sum(hlo.flops(dot).values()) == 2 * 3 * 8 * 16 * 4
  image, kernel = abstract_array((2, 8, 8, 3), REPLICATED), abstract_array((3, 3, 3, 5), REPLICATED)
  convolve = lambda x, w: jax.lax.conv_general_dilated(
    x, w, (1, 1), [(1, 1)] * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  # A row of 8 meets a kernel of 3 in 22 places, its border aside.
  assert sum(hlo.flops(compiled_program(convolve, image, kernel)).values()) == 2 * 2 * 22**2 * 3 * 5
  # BD,Dcd->Bcd: the window's two places are c, of which each result has its own.
  text = """ENTRY %main (x: bf16[2,64,1], w: bf16[64,6,32]) -> bf16[2,6,32] {
  %x = bf16[2,64,1]{1,0,2:T(2,128)(2,1)} parameter(0)
  %w = bf16[64,6,32]{2,0,1:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[2,6,32]{2,0,1:T(2,128)(2,1)} convolution(%x, %w), \
window={size=6 pad=5_5 rhs_reversal=1}, dim_labels=bf0_i0o->b0f, metadata={op_name="a/b"}
}"""
  assert hlo.flops(hlo.parse(text), lambda scope: scope) == {'a/b': 2 * 2 * 64 * 6 * 32}


def test_a_collective_that_is_spread_over_operations_counts_once():
  gather = "all-gather(%p), channel_id=86, replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}"
  text = f"""%start (p: bf16[8,8]) -> bf16[32,8] {{
  %one = bf16[32,8]{{1,0}} {gather}
}}

%done (p: bf16[8,8]) -> bf16[32,8] {{
  %two = bf16[32,8]{{1,0}} {gather}
}}

ENTRY %main (p: bf16[8,8]) -> bf16[32,8] {{
  %s = bf16[32,8] fusion(%p), kind=kCustom, calls=%start
  ROOT %d = bf16[32,8] fusion(%s), kind=kCustom, calls=%done
}}"""
  assert hlo.collectives(hlo.parse(text)) == {'all-gather': (1, 3 / 4 * 32 * 8 * 2)}


def test_of_an_asynchronous_pair_the_result_counts_once():
  text = """HloModule m, num_partitions=8
ENTRY %main (p: f32[4,8]) -> f32[32,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %start = (f32[4,8]{1,0}, f32[32,8]{1,0}) all-gather-start(%p), dimensions={0}
  ROOT %done = f32[32,8]{1,0} all-gather-done(%start)
}"""
  assert hlo.collectives(hlo.parse(text)) == {'all-gather': (1, 7 / 8 * 32 * 8 * 4)}
  # That of a sum has the results alone.
  text = text.replace('all-gather', 'all-reduce').replace(
    '(f32[4,8]{1,0}, f32[32,8]{1,0})', '(f32[256], f8e4m3fn[512])'
  )
  assert hlo.collectives(hlo.parse(text)) == {'all-reduce': (1, 2 * 7 / 8 * (256 * 4 + 512))}


def test_topologies_by_name():
  assert topology.parse('v5e:4x4') == (1, 'v5e', (4, 4))
  assert topology.parse('2*v5p:2x2x4') == (2, 'v5p', (2, 2, 4))
  assert topology.memory_bytes('2*v6e:4x4') == 31.25 * 2**30
  for wrong in (
    'v5e',
    'v5litepod:4x4',
    'v5e:4x4x4',
    'v4:2x2',
    'v5e:4',
    'x*v5e:4x4',
    '0*v5e:4x4',
    'v5e:0x4',
    '',
  ):
    with pytest.raises(ValueError, match='topology: '):
      topology.parse(wrong)
