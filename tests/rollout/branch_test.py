"""K continuations of a rollout share its tokens up to the split, its cache, and what these cost."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from vargrl.models import var
from vargrl.parallel import mesh, rules
from vargrl.rollout import next_scale
from vargrl.tokenizers import vq

SCALES = (1, 2, 3)
SAMPLER = next_scale.Config(guidance=2.0, temperature=0.8, top_k=12, top_p=0.9, record='guided')


@pytest.fixture(scope='module')
def model(small):
  return small(
    var.Config(2, 32, 2, scales=SCALES, vocab=32, channels=4, classes=10),
    dataclasses.replace(vq.SIZES['smoke'], scales=SCALES),
  )


@pytest.fixture(scope='module')
def branched(model):
  """split -> (plain Rollout [2, 3, L], branched [2, 3, 4, L], Scores of the latter, of its first
  `split` scales), from the same keys; one program."""

  def call(split):
    def all_of_it(params, vq_params):
      args, label_P = (model.model, model.vae, SAMPLER, params, vq_params), jnp.array([1, 7])
      keys_PR = next_scale.keys(jax.random.key(5), 2, 3)
      plain = next_scale.generate(*args, label_P, keys_PR)
      out = next_scale.branch(*args, label_P, keys_PR, split, 4)
      rows_PRL = out.tokens.reshape(2, 12, -1)
      whole = next_scale.logprobs(*args, label_P, rows_PRL, reference=params)
      part = next_scale.logprobs(
        *args, label_P, rows_PRL[..., : model.c.offsets[split]], reference=params
      )
      return plain, out, whole, part

    return jax.jit(all_of_it)(model.params, model.vq_params)

  return call


@pytest.mark.parametrize('split', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_continuations_share_their_beginning_and_are_teacher_forced(model, branched, split):
  plain, out, whole, part = branched(split)
  at = model.c.offsets[split]
  assert out.tokens.shape == (2, 3, 4, model.c.length) and out.tokens.dtype == jnp.int32
  for x in jax.tree.leaves(out):
    np.testing.assert_array_equal(x[..., :at], jnp.broadcast_to(x[:, :, :1, :at], (2, 3, 4, at)))
  tails = np.asarray(out.tokens[..., at:]).reshape(24, -1)
  assert len(np.unique(tails, axis=0)) == 24  # and no two continuations share a key
  # The first continuation is the rollout that did not branch.
  np.testing.assert_array_equal(out.tokens[:, :, 0], plain.tokens)
  for name in ('logp', 'sampler'):
    np.testing.assert_allclose(getattr(out, name)[:, :, 0], getattr(plain, name), atol=1e-4)
  np.testing.assert_allclose(out.logp.reshape(2, 12, -1), whole.logp, atol=1e-4)
  # The beginning alone says of its tokens what the whole says of them.
  assert part.logp.shape == (2, 12, at)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[..., :at], atol=1e-5), part, whole)


def test_a_split_outside_of_the_scales_is_refused(model):
  for split, K in ((0, 2), (3, 2), (2, 0)):
    with pytest.raises(ValueError, match=f'split={split}, K={K}'):
      next_scale.branch(
        model.model,
        model.vae,
        SAMPLER,
        None,
        None,
        jnp.zeros(1, jnp.int32),
        next_scale.keys(jax.random.key(0), 1, 1),
        split,
        K,
      )
  with pytest.raises(ValueError, match='tokens: 6 of the scales'):
    model.vae.apply({'params': model.vq_params}, jnp.zeros((1, 6), jnp.int32), method='embed')


def sampled(m, P, G, K):
  def f(params, vq_params):
    return next_scale.branch(
      m.model,
      m.vae,
      dataclasses.replace(SAMPLER, top_k=0, top_p=0.0),
      params,
      vq_params,
      jnp.arange(P) % 7,
      next_scale.keys(jax.random.key(11), P, G),
      1,
      K,
    )

  return f


@pytest.fixture(scope='module')
def alone(model):
  return jax.device_get(jax.jit(sampled(model, 8, 1, 2))(model.params, model.vq_params))


@pytest.mark.parametrize('sizes, P, K', [((2, 2, 2), 8, 2), ((1, 8, 1), 1, 8)], ids=str)
def test_branches_are_the_same_on_every_mesh(model, alone, sizes, P, K):
  """Spread over the prompts, or over the continuations of the only one. A continuation depends on
  its prompt, key and number alone."""
  devices = mesh.make(list(zip(mesh.AXES, sizes)))
  with jax.set_mesh(devices):
    params = jax.device_put(model.params, rules.weight_shardings(model.boxed, devices))
    vq_params = jax.device_put(model.vq_params, NamedSharding(devices, PartitionSpec()))
    out = jax.jit(sampled(model, P, 1, K))(params, vq_params)
    assert not out.tokens.sharding.is_fully_replicated
    out = jax.device_get(out)
  np.testing.assert_array_equal(out.tokens[:, :, :2], alone.tokens[:P])
  np.testing.assert_allclose(out.logp[:, :, :2], alone.logp[:P], atol=1e-5)


# FLOPs of the compiled program; depth 1, since the cost of a scan's body is counted once.


def test_what_comes_before_the_split_is_computed_once_for_each_rollout(small):
  m = small(
    var.Config(1, 64, 2, scales=(1, 2), vocab=32, channels=4, classes=10),
    dataclasses.replace(vq.SIZES['smoke'], scales=(1, 2)),
  )
  args = (m.model, m.vae, dataclasses.replace(SAMPLER, top_k=0, top_p=0.0))

  def cost(f, *shape):
    keys = next_scale.keys(jax.random.key(0), *shape)
    lowered = jax.jit(f).lower(m.params, m.vq_params, jnp.zeros(shape[0], jnp.int32), keys)
    return lowered.compile().cost_analysis()['flops']

  def branch(P, G, K):
    return cost(lambda p, q, label, keys: next_scale.branch(*args, p, q, label, keys, 1, K), P, G)

  def head(P, G):
    """The first scale and the logits of the second, by themselves."""

    def one(p, q, label, key):
      begun = next_scale.begin(*args, p, label)
      (logits, _, z), out = next_scale.proceed(*args, p, q, begun, key, range(1))
      return logits, z, out

    rows = jax.vmap(one, (None, None, None, 0))
    return cost(jax.vmap(rows, (None, None, 0, 0)), P, G)

  # F(P, G, K) = a P + b P G + c P G K, and a P + b P G is what comes before the split.
  shared, repeated = branch(2, 2, 6), branch(2, 12, 1)
  np.testing.assert_allclose(repeated - shared, head(2, 12) - head(2, 2), rtol=0.05)
  assert repeated > 1.5 * shared


def test_a_beginning_costs_what_its_tokens_cost(model):
  def cost(L):
    f = lambda p, label, t: next_scale.logprobs(
      model.model, model.vae, SAMPLER, p, model.vq_params, label, t
    )
    lowered = jax.jit(f).lower(
      model.params, jnp.zeros(1, jnp.int32), jnp.zeros((1, 8, L), jnp.int32)
    )
    return lowered.compile().cost_analysis()['flops']

  assert cost(5) < 5 / 14 * 1.2 * cost(14)
