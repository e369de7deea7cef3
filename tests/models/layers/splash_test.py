"""Splash attention is dense attention: here interpreted, and compiled for TPUs that are not
there.
"""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from vargrl.models import var
from vargrl.models.layers import attention, masks, splash
from vargrl.models.nets import next_scale
from vargrl.parallel import hlo, mesh, rules, topology
from vargrl.rollout import score
from vargrl.rollout.kinds import scales
from vargrl.rollout.plan import Segment
from vargrl.tokenizers import vq

SCALES = (
  1,
  2,
  3,
  5,
  8,
  9,
  19,
)  # 545 tokens: 5 x 5 blocks of 128; the first 128 queries see 184 keys at most
MASK = masks.causal_by_scale(SCALES)
SAMPLER = scales.Config(2.5, True, temperature=0.9, top_k=0, top_p=0.0, logp_of='guided')
LABELS = jnp.arange(8) % 7


def drawn(rows, heads, keys, dtype, H=16):
  """q, k, v and a cotangent, of rows of one."""
  return [
    jax.random.normal(key, (rows, 1, n, len(MASK), H)).astype(dtype)
    for key, n in zip(jax.random.split(jax.random.key(0), 4), (heads, keys, keys, heads))
  ]


def forward_and_backward(kernel, *x):
  """(o, its gradients by q, k and v under a cotangent) of each row, float32."""

  def both(q, k, v, g):
    o, back = jax.vjp(
      lambda q, k, v: attention.attend(q, [(k, v, MASK)], scale=0.25, kernel=kernel), q, k, v
    )
    return o, *back(g)

  spread = {} if jax.sharding.get_abstract_mesh().empty else {'spmd_axis_name': rules.ROW_AXES}
  return [np.asarray(x, np.float32) for x in jax.jit(jax.vmap(both, **spread))(*x)]


@pytest.mark.parametrize(
  'sizes, dtype, atol',
  [
    ((1, 1, 1), 'bfloat16', 2e-2),
    ((2, 2, 2), 'float32', 1e-5),
    pytest.param((1, 1, 1), 'float32', 1e-5, marks=pytest.mark.slow),
    pytest.param((1, 8, 1), 'float32', 1e-5, marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_splash_is_dense_attention_forward_and_backward(sizes, dtype, atol):
  rows = sizes[0] * sizes[1]
  x = drawn(rows, 4, 2, dtype)  # two queries for each key
  dense = forward_and_backward('dense', *(a.astype(jnp.float32) for a in x))
  devices = mesh.make(list(zip(mesh.AXES, sizes)), jax.devices()[: np.prod(sizes)])
  with jax.set_mesh(devices):
    ours = forward_and_backward(
      'splash', *jax.device_put(x, NamedSharding(devices, PartitionSpec(rules.ROW_AXES)))
    )
  for a, b in zip(ours, dense, strict=True):
    assert abs(b).max() > 0.5
    np.testing.assert_allclose(a, b, atol=atol)


def test_blocks_that_the_mask_leaves_empty_are_not_touched():
  q, k, v, _ = (x[0] for x in drawn(1, 1, 1, 'float32'))
  attend = lambda v: attention.attend(q, [(k, v, MASK)], scale=0.25, kernel='splash')[:, :, :128]
  bad = v.at[:, :, 256:].set(jnp.nan)  # 0 x nan is nan, wherever it is computed
  np.testing.assert_array_equal(attend(bad), attend(v))


@pytest.mark.parametrize('tensor', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_splash_of_packed_rows_is_dense_attention(tensor):
  """Sequences of 130 and 50 and padding, causal; forward and backward."""
  L = 200
  x = [a[0, :, :, :L] for a in drawn(1, 4, 2, 'float32')]
  mask = masks.SegmentMask(
    np.tri(L, dtype=bool), jnp.repeat(jnp.array([[7, 3, 0]]), np.array([130, 50, 20]), axis=1)
  )

  def both(kernel):
    o, back = jax.vjp(
      lambda *qkv: attention.attend(qkv[0], [(*qkv[1:], mask)], scale=0.25, kernel=kernel), *x[:3]
    )
    return o, *back(x[3])

  dense = jax.jit(lambda: both('dense'))()
  with jax.set_mesh(
    mesh.make([('data', 1), ('fsdp', 1), ('tensor', tensor)], jax.devices()[:tensor])
  ):
    ours = jax.jit(lambda: both('splash'))()
  for a, b in zip(ours, dense, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  q, k, v = (a[:, :, 130:180] for a in x[:3])
  apart = attention.attend(q, [(k, v, np.tri(50, dtype=bool))], scale=0.25)
  np.testing.assert_allclose(ours[0][:, :, 130:180], apart, atol=1e-5)


def test_blocks_of_the_published_schedules():
  def computed(scales, block):
    mask = masks.causal_by_scale(scales)
    padded = np.pad(mask, (0, -len(mask) % block))
    blocks = padded.reshape(len(padded) // block, block, -1, block).any((1, 3))
    return blocks.sum(), blocks.size

  assert splash.block_size(680) == splash.block_size(2240) == 384
  assert computed(var.SCALES_256, 384) == (4, 4)
  assert computed(var.SCALES_512, 384) == (28, 36) and computed(var.SCALES_512, 128) == (222, 324)


def test_what_has_no_static_mask_is_dense():
  q, k, v, _ = (x[0] for x in drawn(1, 2, 2, 'float32'))
  programs = {
    kernel: str(
      jax.make_jaxpr(
        lambda q, k, v: attention.attend(q, [(k, v, None), (k, v, MASK)], scale=0.25, kernel=kernel)
      )(q, k, v)
    )
    for kernel in attention.KERNELS
  }
  assert programs['dense'] == programs['splash'] and 'pallas_call' not in programs['splash']


def test_refusals():
  with pytest.raises(
    ValueError, match="policy.attention: 'flash', expected one of .'dense', 'splash'"
  ):
    dataclasses.replace(var.SIZES['smoke'], attention='flash')
  with pytest.raises(ValueError, match="'splash' on gpu found, 'dense' expected"):
    splash.interpreted('gpu')


def test_a_splash_model_has_the_logits_of_a_dense_one(smoke, inputs):
  label_B, _, x_BLC = inputs
  dense, ours = (
    jax.jit(
      lambda p: var.Model(dataclasses.replace(smoke.c, attention=kernel)).apply(
        {'params': p}, label_B, x_BLC
      )
    )(smoke.params)
    for kernel in attention.KERNELS
  )
  np.testing.assert_allclose(ours, dense, atol=1e-5)


# The whole model: P x R rows under vmap, on meshes, with all that is recomputed.


@pytest.fixture(scope='module')
def model(small):
  return small(
    var.Config(2, 32, 2, scales=(1, 2, 4), vocab=32, channels=4, classes=10), vq.SIZES['smoke']
  )


def trained(m, sizes, **changes):
  """(scores, gradient of a loss of them) of 8 x 2 rows, and the compiled program."""
  network = var.Model(dataclasses.replace(m.c, **changes))
  plan = (Segment('image', scales, dataclasses.replace(SAMPLER, scales=m.c.scales)),)
  tokens_PRL = jax.random.randint(jax.random.key(3), (8, 2, m.c.length), 0, m.c.vocab)

  def f(params, vq_params, label_P, tokens_PRL):
    def loss(params):
      net = next_scale.Net(network, m.vae, params, vq_params)
      s, _ = score.score([net], plan, label_P, {'image': {'tokens': tokens_PRL}})
      return -jnp.mean(s.logp * jnp.cos(jnp.arange(m.c.length))[None, None]), s

    return jax.grad(loss, has_aux=True)(params)

  if sizes is None:
    program = jax.jit(f).lower(m.params, m.vq_params, LABELS, tokens_PRL).compile()
    return jax.device_get(program(m.params, m.vq_params, LABELS, tokens_PRL)), program
  devices = mesh.make(list(zip(mesh.AXES, sizes)), jax.devices()[: np.prod(sizes)])
  with jax.set_mesh(devices):
    params = jax.device_put(m.params, rules.weight_shardings(m.boxed, devices))
    whole, rows = (NamedSharding(devices, PartitionSpec(*p)) for p in ((), (rules.ROW_AXES,)))
    x = params, jax.device_put(m.vq_params, whole), *jax.device_put((LABELS, tokens_PRL), rows)
    program = jax.jit(f).lower(*x).compile()
    return jax.device_get(program(*x)), program


@pytest.fixture(scope='module')
def dense(model):
  return trained(model, None)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
  'sizes, remat',
  [
    (None, 'none'),
    ((1, 1, 1), 'dots'),
    ((1, 8, 1), 'blocks'),
    ((2, 2, 2), 'dots'),
    ((1, 4, 2), 'none'),
  ],
  ids=str,
)
def test_a_splash_model_has_the_scores_and_gradients_of_a_dense_one(model, dense, sizes, remat):
  out, _ = trained(model, sizes, attention='splash', remat=remat)
  for path, x in jax.tree.leaves_with_path(dense[0]):
    assert abs(x).max() > 0, path
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), out, dense)


# Compiled for TPUs.

TPU = pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason='libtpu is not installed')
KERNEL = 'custom_call_target="tpu_custom_call"'


@pytest.mark.slow
@TPU
@pytest.mark.parametrize(
  'where, sizes',
  [('v5e:2x2', (1, 4, 1)), ('v5e:2x2', (1, 2, 2)), ('v5p:2x2x2', (2, 2, 2))],
  ids=str,
)
def test_on_tpus_it_takes_less_memory_and_gathers_nothing(where, sizes):
  devices = mesh.make(list(zip(mesh.AXES, sizes)), topology.devices(where))
  mask_LS = masks.causal_by_scale(var.SCALES_512)

  def compiled(kernel, precision='default'):
    attend = lambda q, k, v: attention.attend(q, [(k, v, mask_LS)], scale=1.0, kernel=kernel)

    def both(q, k, v, g):
      o, back = jax.vjp(attend, q, k, v)
      return o, back(g)

    with jax.set_mesh(devices), jax.default_matmul_precision(precision):
      here = NamedSharding(devices, PartitionSpec(rules.ROW_AXES, None, 'tensor'))
      x = jax.ShapeDtypeStruct((16, 1, 16, len(mask_LS), 64), jnp.bfloat16, sharding=here)
      return jax.jit(jax.vmap(both, spmd_axis_name=rules.ROW_AXES)).lower(x, x, x, x).compile()

  theirs, ours = compiled('dense'), compiled('splash')
  assert (
    ours.as_text().count(KERNEL) == 3
  )  # forward, backward to the keys and values, backward to the queries
  assert hlo.SPLASH_KERNEL in ours.as_text() and hlo.SPLASH_KERNEL not in theirs.as_text()
  assert hlo.collectives(hlo.parse(ours.as_text())) == {}
  sizes = [p.memory_analysis().temp_size_in_bytes for p in (theirs, ours)]
  assert sizes[1] < sizes[0] / 4
  with pytest.raises(ValueError, match="bfloat16 at jax_default_matmul_precision 'highest' found"):
    compiled('splash', 'highest')


@pytest.mark.slow
@TPU
def test_recomputing_runs_the_kernel_forward_once_more(smoke, inputs):
  devices = mesh.make(list(zip(mesh.AXES, (1, 1, 1))), topology.devices('v5e:1x1'))

  def kernels(remat):  # of the one layer that is scanned
    network = var.Model(dataclasses.replace(smoke.c, attention='splash', remat=remat))
    loss = lambda p, label_B, x_BLC: network.apply({'params': p}, label_B, x_BLC).sum()
    here = NamedSharding(devices, PartitionSpec())
    x = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), (smoke.params, *inputs[::2])
    )
    with jax.set_mesh(devices):
      return jax.jit(jax.grad(loss)).lower(*x).compile().as_text().count(KERNEL)

  assert [kernels(remat) for remat in ('none', 'dots', 'blocks')] == [3, 4, 4]
