"""K continuations of a rollout share its tokens up to the split, its cache, and what these cost."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from vargrl.models import var
from vargrl.models.nets import next_scale
from vargrl.parallel import mesh, rules
from vargrl.rollout import generate, score, vmaps
from vargrl.rollout.kinds import scales, text
from vargrl.rollout.plan import Segment
from vargrl.tokenizers import vq

SCALES = (1, 2, 3)
SAMPLER = scales.Config(
  guidance=3.0,
  guidance_ramp=True,
  temperature=0.8,
  top_k=12,
  top_p=0.9,
  logp_of='guided',
  scales=SCALES,
)
UNTRUNCATED = dataclasses.replace(SAMPLER, top_k=0, top_p=0.0)


def plan(c=SAMPLER):
  return (Segment('image', scales, c),)


@pytest.fixture(scope='module')
def model(small):
  return small(
    var.Config(2, 32, 2, scales=SCALES, vocab=32, channels=4, classes=10),
    dataclasses.replace(vq.SIZES['smoke'], scales=SCALES),
  )


def net(m, params, vq_params):
  return next_scale.Net(m.model, m.vae, params, vq_params)


def tokens(rollout):
  return rollout.data['image']['tokens']


@pytest.fixture(scope='module')
def branched(model):
  """split -> (plain Rollout [2, 3, L], branched [2, 3, 4, L], Scores of the latter, of its first
  `split` scales), from the same keys; one program."""

  def call(split):
    def all_of_it(params, vq_params):
      one, label_P = net(model, params, vq_params), jnp.array([1, 7])
      keys_PR = vmaps.row_keys(jax.random.key(5), 2, 3)
      plain = generate.generate(one, plan(), label_P, keys_PR[:, 0], keys_PR)
      out = generate.branch(one, plan(), label_P, keys_PR, split, 4)
      t_PRL = tokens(out).reshape(2, 12, -1)

      def scores(t_PRL):
        return score.score([one, one], plan(), label_P, {'image': {'tokens': t_PRL}})[0]

      return plain, out, scores(t_PRL), scores(t_PRL[..., : model.c.offsets[split]])

    return jax.jit(all_of_it)(model.params, model.vq_params)

  return call


@pytest.mark.parametrize('split', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_continuations_share_their_beginning_and_are_teacher_forced(model, branched, split):
  plain, out, whole, part = branched(split)
  at = model.c.offsets[split]
  assert tokens(out).shape == (2, 3, 4, model.c.length) and tokens(out).dtype == jnp.int32
  for x in jax.tree.leaves(out):
    np.testing.assert_array_equal(x[..., :at], jnp.broadcast_to(x[:, :, :1, :at], (2, 3, 4, at)))
  tails = np.asarray(tokens(out)[..., at:]).reshape(24, -1)
  assert len(np.unique(tails, axis=0)) == 24  # and no two continuations share a key
  # The first continuation is the rollout that did not branch.
  np.testing.assert_array_equal(tokens(out)[:, :, 0], tokens(plain))
  for name in ('logp', 'sampler_logp'):
    np.testing.assert_allclose(getattr(out, name)[:, :, 0], getattr(plain, name), atol=1e-4)
  np.testing.assert_allclose(out.logp.reshape(2, 12, -1), whole.logp, atol=1e-4)
  # The beginning alone says of its tokens what the whole says of them.
  assert part.logp.shape == (2, 12, at)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[..., :at], atol=1e-5), part, whole)


def test_a_split_outside_of_the_scales_is_refused(model):
  one = net(model, None, None)
  refused = lambda plan, split, copies: generate.branch(
    one,
    plan,
    jnp.zeros(1, jnp.int32),
    vmaps.row_keys(jax.random.key(0), 1, 1),
    split,
    copies,
  )
  for split, copies in ((0, 2), (3, 2), (2, 0)):
    with pytest.raises(ValueError, match=f'split={split}, {copies} copies with 3 scales'):
      refused(plan(), split, copies)
  words = Segment('text', text, text.Config(3, 1.0, 0, 0.0, ()))
  for other in (plan() * 2, (words,)):
    with pytest.raises(ValueError, match='branch: a plan of .* expected one picture by scales'):
      refused(other, 1, 2)
  with pytest.raises(ValueError, match='tokens: 6 of the scales'):
    model.vae.apply({'params': model.vq_params}, jnp.zeros((1, 6), jnp.int32), method='embed')


def sampled(m, P, G, K):
  def f(params, vq_params):
    keys_PG = vmaps.row_keys(jax.random.key(11), P, G)
    one = net(m, params, vq_params)
    return generate.branch(one, plan(UNTRUNCATED), jnp.arange(P) % 7, keys_PG, 1, K)

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
    assert not tokens(out).sharding.is_fully_replicated
    out = jax.device_get(out)
  np.testing.assert_array_equal(tokens(out)[:, :, :2], tokens(alone)[:P])
  np.testing.assert_allclose(out.logp[:, :, :2], alone.logp[:P], atol=1e-5)


# FLOPs of the compiled program; depth 1, since the cost of a scan's body is counted once.


def test_what_comes_before_the_split_is_computed_once_for_each_rollout(small):
  m = small(
    var.Config(1, 64, 2, scales=(1, 2), vocab=32, channels=4, classes=10),
    dataclasses.replace(vq.SIZES['smoke'], scales=(1, 2)),
  )
  c = dataclasses.replace(UNTRUNCATED, scales=(1, 2))

  def cost(f, *shape):
    keys = vmaps.row_keys(jax.random.key(0), *shape)
    lowered = jax.jit(f).lower(m.params, m.vq_params, jnp.zeros(shape[0], jnp.int32), keys)
    return lowered.compile().cost_analysis()['flops']

  def branch(P, G, K):
    run = lambda p, q, label, keys: generate.branch(net(m, p, q), plan(c), label, keys, 1, K)
    return cost(run, P, G)

  def head(P, G):
    """The first scale and the logits of the second, by themselves."""

    def one(p, q, label, key):
      bound = net(m, p, q)
      state = bound.start_image(bound.prefill(label), c.guided)
      state, z, out = scales.draw_scales(bound, c, state, m.vae.zeros(1), key, range(1))
      return state.logits_BLV, z, out

    rows = jax.vmap(one, (None, None, None, 0))
    return cost(jax.vmap(rows, (None, None, 0, 0)), P, G)

  # F(P, G, K) = a P + b P G + c P G K, and a P + b P G is what comes before the split.
  shared, repeated = branch(2, 2, 6), branch(2, 12, 1)
  np.testing.assert_allclose(repeated - shared, head(2, 12) - head(2, 2), rtol=0.05)
  assert repeated > 1.5 * shared


def test_a_beginning_costs_what_its_tokens_cost(model):
  def cost(L):
    def f(params, label, t):
      one = net(model, params, model.vq_params)
      return score.score([one], plan(), label, {'image': {'tokens': t}})[0]

    lowered = jax.jit(f).lower(
      model.params, jnp.zeros(1, jnp.int32), jnp.zeros((1, 8, L), jnp.int32)
    )
    return lowered.compile().cost_analysis()['flops']

  assert cost(5) < 5 / 14 * 1.2 * cost(14)
