"""Policies of bits: cached sampling is teacher forcing, the likelihood is one, a prompt is read
once.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from vargrl.models import infinity
from vargrl.models.nets import next_scale
from vargrl.parallel import mesh, rules
from vargrl.rollout import generate, sampling, score, vmaps
from vargrl.rollout.kinds import bits as kind
from vargrl.rollout.plan import Segment
from vargrl.tokenizers import bsq


def config(logp_of='cond', guidance=3.0, temperature=0.7, top_p=0.9, scales=()):
  return kind.Config(guidance, temperature, top_p, logp_of, scales)


def plan(m, c):
  return (Segment('image', kind, dataclasses.replace(c, scales=m.c.scales, bits=m.c.bits)),)


def net(m, params, vq_params=None):
  return next_scale.Net(m.model, m.vae, params, m.vq_params if vq_params is None else vq_params)


def sample(m, c, params, prompt_P, keys_PR):
  return generate.generate(net(m, params), plan(m, c), prompt_P, keys_PR[:, 0], keys_PR)


def score_data(m, c, params, prompt_P, data, reference=None):
  nets = [net(m, p) for p in (params, reference) if p is not None]
  return score.score(nets, plan(m, c), prompt_P, {'image': data})[0]


@pytest.fixture(scope='module')
def rows(bits, said):
  """config -> (Rollout of two prompts x 3 keys, the branches of two of the keys from scale 2 on,
  Scores of the rows)."""
  done = {}

  def all_of_it(c, params, keys_PR):
    out = sample(bits, c, params, said[0], keys_PR)
    many = generate.branch(net(bits, params), plan(bits, c), said[0], keys_PR[:, :2], 2, 3)
    return out, many, score_data(bits, c, params, said[0], out.data['image'], params)

  def call(c):
    if c not in done:
      program = jax.jit(all_of_it, static_argnums=0)
      done[c] = program(c, bits.params, vmaps.row_keys(jax.random.key(5), 2, 3))
    return done[c]

  return call


@pytest.mark.parametrize(
  'c',
  [
    config('cond', top_p=0.0),
    config('guided', (1.0, 2.0, 4.0), (1.0, 0.8, 0.5)),
    config('guided', guidance=1.0),
  ],
  ids=lambda c: f'{c.logp_of}-{c.guidance}',
)
def test_logp_of_cached_sampling_is_logp_of_teacher_forcing(rows, c):
  out, _, scores = rows(c)
  tokens = out.data['image']['tokens']
  assert tokens.shape == (2, 3, 13, 4)
  assert out.logp.shape == out.sampler_logp.shape == scores.accuracy.shape == (2, 3, 13)
  assert tokens.dtype == jnp.int32 and set(np.unique(tokens)) == {0, 1}
  np.testing.assert_allclose(out.logp, scores.logp, atol=1e-4)
  np.testing.assert_allclose(scores.ref_logp, scores.logp, atol=1e-5)
  np.testing.assert_array_equal(scores.penalty, 0)
  if c.logp_of != 'cond':
    assert (out.sampler_logp >= out.logp - 1e-5).all()  # truncation moves mass to what is kept
  assert (scores.entropy >= 0).all() and (scores.entropy <= 4 * np.log(2) + 1e-5).all()
  # The share of a token's bits.
  assert set(np.unique(scores.accuracy)) <= {0.0, 0.25, 0.5, 0.75, 1.0}


def test_continuations_of_a_branch_share_their_beginning_and_the_first_is_the_row_itself(rows):
  out, many, _ = rows(config('guided', (1.0, 2.0, 4.0), (1.0, 0.8, 0.5)))
  tokens = many.data['image']['tokens']
  assert tokens.shape == (2, 2, 3, 13, 4)
  np.testing.assert_array_equal(tokens[:, :, 0], out.data['image']['tokens'][:, :2])
  np.testing.assert_array_equal(tokens[:, :, :, :5], tokens[:, :, :1, :5].repeat(3, 2))
  assert (tokens[:, :, 1] != tokens[:, :, 2]).any()


def test_a_row_depends_on_its_own_prompt_and_key_alone(bits, said):
  draw = jax.jit(lambda *args: sample(bits, config('guided'), bits.params, *args).data['image'])
  wide = draw(said[0], vmaps.row_keys(jax.random.key(3), 2, 4))['tokens']
  first = jax.tree.map(lambda x: x[:1], said[0])
  one = draw(first, vmaps.row_keys(jax.random.key(3), 1, 4))['tokens']
  np.testing.assert_array_equal(wide[:1], one)
  assert len(np.unique(np.asarray(wide).reshape(8, -1), axis=0)) == 8


@pytest.fixture(scope='module')
def tiny(small):
  """Three tokens of two bits."""
  scales = ((1, 1), (1, 2))
  return small(
    dataclasses.replace(infinity.SIZES['smoke'], scales=scales, bits=2, depth=1),
    dataclasses.replace(bsq.SIZES['smoke'], scales=scales, channels=2),
  )


def test_the_likelihood_of_all_patterns_of_bits_is_one(tiny):
  patterns = np.array([*itertools.product((0, 1), repeat=6)], np.int32).reshape(1, 64, 3, 2)
  prompt_P = {'text': jax.random.normal(jax.random.key(0), (1, 3, 16)), 'length': jnp.array([3])}
  for c in (config('cond'), config('guided')):
    run = jax.jit(lambda p, t, c=c: score_data(tiny, c, p, prompt_P, {'tokens': t}).logp)
    logp = run(tiny.params, patterns)
    np.testing.assert_allclose(np.exp(logp.sum(-1)).sum(), 1, atol=1e-5)
    assert logp.sum(-1).std() > 0.1


def test_tokens_that_are_shown_decide_what_is_predicted_and_not_the_target(bits, said):
  prompt_P, t_BLe, _ = said
  c, t_PRLe = config('cond'), t_BLe[:, None]
  flips = jnp.zeros_like(t_PRLe).at[:, :, :5].set(1)

  @jax.jit
  def run(tokens, input_tokens):
    data = {'tokens': tokens, 'input_tokens': input_tokens}
    return score_data(bits, c, bits.params, prompt_P, data).logp

  plain, shown = run(t_PRLe, t_PRLe), run(t_PRLe, t_PRLe ^ flips)
  np.testing.assert_array_equal(plain[..., :1], shown[..., :1])  # the first scale is shown nothing
  assert abs(plain[..., 1:] - shown[..., 1:]).max() > 1e-2
  inputs = bits.vae.apply({'params': bits.vq_params}, t_BLe ^ flips[:, 0], method='embed')
  forced = jax.jit(lambda x: bits.model.apply({'params': bits.params}, prompt_P, x))(inputs)
  logp = jax.nn.log_softmax(forced / c.temperature)
  expected = jnp.take_along_axis(logp, t_BLe[..., None], -1)[..., 0].sum(-1)
  np.testing.assert_allclose(shown[:, 0], expected, atol=1e-4)


def test_only_an_unconditional_branch_that_counts_has_a_gradient(bits, said):
  def gradient(logp_of):
    data = {'tokens': said[1][:, None]}
    run = lambda p: score_data(bits, config(logp_of), p, said[0], data).logp.sum()
    return float(abs(jax.jit(jax.grad(run))(bits.params)['uncond']).max())

  assert gradient('cond') == gradient('guided_stopgrad') == 0 and gradient('guided') > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(2, 2, 2)], ids=str)
def test_bits_and_gradients_are_the_same_on_a_mesh(bits, said, sizes):
  prompt_P, c = jax.tree.map(lambda x: x.repeat(2, 0), said[0]), config('guided')

  def f(params, vq_params, prompt_P):
    keys_PR = vmaps.row_keys(jax.random.key(11), 4, 2)
    weights = vmaps.place_for_decoding('gathered', bits.model, params, next_scale.Net.CAST)
    codes = vmaps.place_for_decoding('gathered', bits.vae, vq_params)
    data = generate.generate(
      net(bits, weights, codes), plan(bits, c), prompt_P, keys_PR[:, 0], keys_PR
    ).data

    def loss(p):
      nets = [net(bits, q, vq_params) for q in (p, jax.tree.map(lambda x: 0.9 * x, p))]
      scores = score.score(nets, plan(bits, c), prompt_P, data)[0]
      return (scores.logp - scores.penalty).mean()

    return data, jax.grad(loss)(params)

  expected = jax.device_get(jax.jit(f)(bits.params, bits.vq_params, prompt_P))
  devices = mesh.make(list(zip(mesh.AXES, sizes)))
  with jax.set_mesh(devices):
    rest = jax.device_put((bits.vq_params, prompt_P), NamedSharding(devices, PartitionSpec()))
    params = jax.device_put(bits.params, rules.weight_shardings(bits.boxed, devices))
    data, gradient = jax.device_get(jax.jit(f)(params, *rest))
  jax.tree.map(np.testing.assert_array_equal, data, expected[0])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected[1])


def test_a_prompt_is_read_and_its_first_scale_computed_once_for_all_its_rows(tiny):
  """FLOPs of the compiled program: a group shares its prefill."""
  prompts = lambda P: {'text': jnp.zeros((P, 8, 16)), 'length': jnp.ones(P, jnp.int32)}
  cost = lambda f, *args: jax.jit(f).lower(tiny.params, *args).compile().cost_analysis()['flops']

  def sampling(P, R):
    run = lambda params, *args: sample(tiny, config('guided'), params, *args)
    return cost(run, prompts(P), vmaps.row_keys(jax.random.key(0), P, R))

  def one(params, prompt):
    bound = net(tiny, params)
    return bound.start_image(bound.prefill(prompt), True)

  prefill = cost(jax.vmap(one, (None, 0)), prompts(2))
  np.testing.assert_allclose(sampling(8, 1) - sampling(2, 4), prefill * (4 - 1), rtol=0.05)


def test_guidance_and_temperature_are_one_number_or_one_for_each_scale():
  c = lambda **changes: config(**changes, scales=(1, 2))
  assert c(guidance=3.0).strengths() == [2.0, 2.0]
  assert c(guidance=(1.0, 4.0)).strengths() == [0.0, 3.0]
  assert c(temperature=0.5).temperatures() == [0.5, 0.5]
  assert not c(guidance=1.0).guided
  assert c(guidance=(1.0, 2.0)).guided and c(guidance=0.0).guided
  with pytest.raises(ValueError, match='guidance.* 3 numbers, expected one or 2'):
    c(guidance=(1.0, 2.0, 3.0))


@pytest.mark.parametrize(
  'change',
  [dict(logp_of='all'), dict(temperature=0.0), dict(guidance=(1.0, -1.0)), dict(top_p=1.5)],
)
def test_a_sampler_that_means_nothing_is_refused(change):
  with pytest.raises(ValueError, match=list(change)[0]):
    config(**change)


def test_two_classes_keep_both_values_unless_the_less_likely_has_at_most_the_share_that_is_cut():
  logit = lambda p: jnp.log(jnp.array([[1 - p, p]]))
  kept = lambda p: np.isfinite(sampling.truncate(logit(p), top_k=0, top_p=0.97)).sum()
  assert [kept(p) for p in (0.0301, 0.0299, 0.5, 0.9699, 0.9701)] == [2, 1, 2, 2, 1]
