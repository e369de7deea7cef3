"""Sharding changes where numbers are, never the numbers."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from vargrl.models import var
from vargrl.models.nets import next_scale
from vargrl.parallel import hlo, mesh, rules
from vargrl.rollout import generate, score, vmaps
from vargrl.rollout.kinds import scales
from vargrl.rollout.plan import Segment
from vargrl.tokenizers import vq
from vargrl.training import policy

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]
SAMPLER = scales.Config(2.5, True, 0.9, top_k=20, top_p=0.95, logp_of='guided', scales=(1, 2))
PLAN = (Segment('image', scales, SAMPLER),)
LABELS = jnp.arange(8) % 7


@pytest.fixture(scope='module')
def model(small):
  return small(
    var.Config(2, 64, 4, scales=(1, 2), vocab=32, channels=4, classes=10),
    dataclasses.replace(vq.SIZES['smoke'], scales=(1, 2)),
  )


def run(m, sizes, f):
  """f(params, vq_params, labels) jitted on a mesh; sizes None: on one device, without a mesh."""
  if sizes is None:
    return jax.jit(f)(m.params, m.vq_params, LABELS)
  return run_with_program(m, sizes, f)[0]


def run_with_program(m, sizes, f):
  """(what f returns on a mesh, its program)."""
  devices = mesh.make(list(zip(mesh.AXES, sizes)))
  with jax.set_mesh(devices):
    everywhere = NamedSharding(devices, PartitionSpec())
    args = (
      jax.device_put(m.params, rules.weight_shardings(m.boxed, devices)),
      *jax.device_put((m.vq_params, LABELS), everywhere),
    )
    program = jax.jit(f).lower(*args).compile()
    return jax.device_get(program(*args)), hlo.parse(program.as_text())


def sample_function(m, P, R, weights='sharded'):
  def f(params, vq_params, label_P):
    keys_PR = vmaps.row_keys(jax.random.key(11), P, R)
    params = vmaps.place_for_decoding(weights, m.model, params, next_scale.Net.CAST)
    vq_params = vmaps.place_for_decoding(weights, m.vae, vq_params)
    net = next_scale.Net(m.model, m.vae, params, vq_params)
    return generate.generate(net, PLAN, label_P[:P], keys_PR[:, 0], keys_PR)

  return f


def train_function(m, tokens_PRL):
  """Teacher-forced logits, log-probabilities, and the gradient of a loss of them."""

  def f(params, vq_params, label_P):
    def loss(params):
      heads = [params, jax.tree.map(lambda x: 0.9 * x, params)]
      heads = [next_scale.Net.gather_head(m.model, p) for p in heads]
      nets = [next_scale.Net(m.model, m.vae, p, vq_params) for p in heads]
      s, _ = score.score(nets, PLAN, label_P, {'image': {'tokens': tokens_PRL}})
      return jnp.mean(s.penalty - s.logp * jnp.cos(jnp.arange(m.c.length))[None, None]), s

    (value, s), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    inputs = m.vae.apply({'params': vq_params}, tokens_PRL[:, 0], method='embed')
    return value, s, gradient, m.model.apply({'params': params}, label_P, inputs)

  return f


def drawn(out):
  return out.data['image']['tokens']


@pytest.fixture(scope='module')
def one_device(model):
  out = jax.device_get(run(model, None, sample_function(model, 8, 2)))
  tokens = jnp.array(drawn(out))
  return out, tokens, jax.device_get(run(model, None, train_function(model, tokens)))


@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_sampled_tokens_are_the_same_on_every_mesh(model, one_device, sizes):
  out = run(model, sizes, sample_function(model, 8, 2))
  np.testing.assert_array_equal(drawn(out), one_device[1])
  np.testing.assert_allclose(out.logp, one_device[0].logp, atol=1e-5)


@pytest.mark.parametrize('sizes', [(1, 8, 1), (2, 2, 2)], ids=str)
def test_weights_gathered_once_draw_the_same_tokens(model, one_device, sizes):
  out, program = run_with_program(model, sizes, sample_function(model, 8, 2, 'gathered'))
  np.testing.assert_array_equal(drawn(out), one_device[1])
  shardings = rules.weight_shardings(model.boxed, mesh.make(list(zip(mesh.AXES, sizes))))
  parts = sum('fsdp' in s.spec for s in jax.tree.leaves(shardings))
  assert (
    hlo.collectives(program)['all-gather'][0] == parts > 10
  )  # not one more for a second scale or layer


def test_a_group_cut_over_the_mesh_samples_the_same_tokens(model):
  # Fewer prompts than devices: rows are spread.
  out = run(model, (1, 8, 1), sample_function(model, 2, 8))
  alone = run(model, None, sample_function(model, 2, 8))
  np.testing.assert_array_equal(drawn(out), drawn(alone))


def test_images_of_a_group_cut_over_the_mesh_are_decoded_once(model):
  def decode_all(params, vq_params, label_P):
    tokens_PRL = jax.lax.with_sharding_constraint(
      jnp.ones((2, 8, model.c.length), jnp.int32) + label_P[:2, None, None],
      PartitionSpec('data', 'fsdp'),
    )
    decode = policy.tokenizer_functions(vq, model.vae).decode
    return decode({'tokenizer': vq_params}, tokens_PRL.reshape(16, -1), None, None)

  devices = mesh.make([('data', 1), ('fsdp', 1), ('tensor', 1)], jax.devices()[:1])
  with jax.set_mesh(devices):
    one = hlo.parse(
      jax.jit(decode_all).lower(model.params, model.vq_params, LABELS).compile().as_text()
    )
  image_Byxc, program = run_with_program(model, (1, 8, 1), decode_all)
  assert sum(hlo.flops(program).values()) == sum(hlo.flops(one).values()) / 8 > 0
  np.testing.assert_array_equal(image_Byxc[:8], image_Byxc[:1].repeat(8, 0))


@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_teacher_forcing_and_gradients_are_the_same_on_every_mesh(model, one_device, sizes):
  out = run(model, sizes, train_function(model, one_device[1]))
  for path, x in jax.tree.leaves_with_path(one_device[2]):
    assert abs(x).max() > 0, path
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), out, one_device[2])


def test_weights_on_a_mesh_lie_in_parts(model):
  devices = mesh.make(list(zip(mesh.AXES, (1, 2, 4))))
  params = jax.device_put(model.params, rules.weight_shardings(model.boxed, devices))
  w = params['blocks']['fc1']['w']
  assert w.shape == (2, 64, 256)
  assert {s.data.shape for s in w.addressable_shards} == {(2, 32, 64)}
