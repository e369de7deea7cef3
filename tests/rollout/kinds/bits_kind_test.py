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
from vargrl.parallel import mesh, rules
from vargrl.rollout import bits as rollout
from vargrl.rollout import next_scale
from vargrl.tokenizers import bsq


def config(record='cond', guidance=3.0, temperature=0.7, top_p=0.9):
  return rollout.Config(guidance, temperature, top_p, record)


def both(m, c, prompt_P, keys_PR, reference=None, **given):
  """(Rollout, Scores of its tokens)."""

  def run(params, vq_params, prompt_P, keys_PR, reference):
    out = rollout.generate(m.model, m.vae, c, params, vq_params, prompt_P, keys_PR)
    return out, rollout.logprobs(
      m.model, m.vae, c, params, vq_params, prompt_P, out.tokens, reference=reference
    )

  return jax.jit(run)(m.params, m.vq_params, prompt_P, keys_PR, reference)


@pytest.mark.parametrize(
  'c',
  [
    config('cond', top_p=0.0),
    config('guided', (1.0, 2.0, 4.0), (1.0, 0.8, 0.5)),
    config('guided', guidance=1.0),
  ],
  ids=lambda c: f'{c.record}-{c.guidance}',
)
def test_logp_of_cached_sampling_is_logp_of_teacher_forcing(bits, said, c):
  out, scores = both(bits, c, said[0], rollout.keys(jax.random.key(5), 2, 3), bits.params)
  assert out.tokens.shape == (
    2,
    3,
    13,
    4,
  ) and out.logp.shape == out.sampler.shape == scores.hit.shape == (2, 3, 13)
  assert out.tokens.dtype == jnp.int32 and set(np.unique(out.tokens)) == {0, 1}
  np.testing.assert_allclose(out.logp, scores.logp, atol=1e-4)
  np.testing.assert_allclose(scores.reference, scores.logp, atol=1e-5)
  np.testing.assert_allclose(scores.kl, 0, atol=1e-5)
  if c.record != 'cond':
    assert (out.sampler >= out.logp - 1e-5).all()  # truncation moves mass to what is kept
  assert (scores.entropy >= 0).all() and (scores.entropy <= 4 * np.log(2) + 1e-5).all()
  assert set(np.unique(scores.hit)) <= {0.0, 0.25, 0.5, 0.75, 1.0}  # the share of a token's bits


def test_a_row_depends_on_its_own_prompt_and_key_alone(bits, said):
  draw = jax.jit(
    lambda prompt_P, keys_PR: (
      rollout.generate(
        bits.model, bits.vae, config('guided'), bits.params, bits.vq_params, prompt_P, keys_PR
      ).tokens
    )
  )
  wide = draw(said[0], rollout.keys(jax.random.key(3), 2, 4))
  one = draw(jax.tree.map(lambda x: x[:1], said[0]), rollout.keys(jax.random.key(3), 1, 4))
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
    run = jax.jit(
      lambda p, q, t, c=c: rollout.logprobs(tiny.model, tiny.vae, c, p, q, prompt_P, t).logp
    )
    logp = run(tiny.params, tiny.vq_params, patterns)
    np.testing.assert_allclose(np.exp(logp.sum(-1)).sum(), 1, atol=1e-5)
    assert logp.sum(-1).std() > 0.1


def test_tokens_that_are_shown_decide_what_is_predicted_and_not_the_target(bits, said):
  prompt_P, t_BLe, _ = said
  c, t_PRLe = config('cond'), t_BLe[:, None]
  flips = jnp.zeros_like(t_PRLe).at[:, :, :5].set(1)
  run = jax.jit(
    lambda tokens, shown: (
      rollout.logprobs(
        bits.model, bits.vae, c, bits.params, bits.vq_params, prompt_P, tokens, None, None, shown
      ).logp
    )
  )
  plain, shown = run(t_PRLe, t_PRLe), run(t_PRLe, t_PRLe ^ flips)
  np.testing.assert_array_equal(plain[..., :1], shown[..., :1])  # the first scale is shown nothing
  assert abs(plain[..., 1:] - shown[..., 1:]).max() > 1e-2
  chosen = (
    jax.jit(lambda inputs: bits.model.apply({'params': bits.params}, prompt_P, inputs))(
      bits.vae.apply({'params': bits.vq_params}, t_BLe ^ flips[:, 0], method='embed')
    )
    / c.temperature
  )
  expected = jnp.take_along_axis(jax.nn.log_softmax(chosen), t_BLe[..., None], -1)[..., 0].sum(-1)
  np.testing.assert_allclose(shown[:, 0], expected, atol=1e-4)


def test_only_a_recorded_unconditional_branch_has_a_gradient(bits, said):
  def gradient(record):
    run = lambda p: rollout.logprobs(
      bits.model, bits.vae, config(record), p, bits.vq_params, said[0], said[1][:, None]
    ).logp.sum()
    return float(abs(jax.jit(jax.grad(run))(bits.params)['uncond']).max())

  assert gradient('cond') == gradient('guided_stopgrad') == 0 and gradient('guided') > 1e-4


def test_continuations_of_a_branch_share_their_beginning_and_the_first_is_the_row_itself(
  bits, said
):
  c, keys_PR = config('guided'), rollout.keys(jax.random.key(5), 2, 2)
  run = jax.jit(
    lambda p, q: (
      rollout.generate(bits.model, bits.vae, c, p, q, said[0], keys_PR),
      rollout.branch(bits.model, bits.vae, c, p, q, said[0], keys_PR, 2, 3),
    )
  )
  rows, many = run(bits.params, bits.vq_params)
  assert many.tokens.shape == (2, 2, 3, 13, 4)
  np.testing.assert_array_equal(many.tokens[:, :, 0], rows.tokens)
  np.testing.assert_array_equal(many.tokens[:, :, :, :5], many.tokens[:, :, :1, :5].repeat(3, 2))
  assert (many.tokens[:, :, 1] != many.tokens[:, :, 2]).any()


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(2, 2, 2)], ids=str)
def test_bits_and_gradients_are_the_same_on_a_mesh(bits, said, sizes):
  prompt_P = jax.tree.map(lambda x: x.repeat(2, 0), said[0])
  sampler = dataclasses.replace(config('guided'), weights='gathered')

  def f(params, vq_params, prompt_P):
    tokens = rollout.generate(
      bits.model,
      bits.vae,
      sampler,
      params,
      vq_params,
      prompt_P,
      rollout.keys(jax.random.key(11), 4, 2),
    ).tokens
    loss = lambda p: rollout.logprobs(
      bits.model,
      bits.vae,
      sampler,
      p,
      vq_params,
      prompt_P,
      tokens,
      reference=jax.tree.map(lambda x: 0.9 * x, p),
    )
    return tokens, jax.grad(lambda p: (loss(p).logp - loss(p).kl).mean())(params)

  expected = jax.device_get(jax.jit(f)(bits.params, bits.vq_params, prompt_P))
  devices = mesh.make(list(zip(mesh.AXES, sizes)))
  with jax.set_mesh(devices):
    rest = jax.device_put((bits.vq_params, prompt_P), NamedSharding(devices, PartitionSpec()))
    params = jax.device_put(bits.params, rules.weight_shardings(bits.boxed, devices))
    tokens, gradient = jax.device_get(jax.jit(f)(params, *rest))
  np.testing.assert_array_equal(tokens, expected[0])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected[1])


def test_a_prompt_is_read_and_its_first_scale_computed_once_for_all_its_rows(tiny):
  """FLOPs of the compiled program: a group shares its prefill."""
  prompts = lambda P: {'text': jnp.zeros((P, 8, 16)), 'length': jnp.ones(P, jnp.int32)}
  cost = lambda f, *args: jax.jit(f).lower(tiny.params, *args).compile().cost_analysis()['flops']
  c = config('guided')
  generate = lambda P, R: cost(
    lambda p, x, keys: rollout.generate(tiny.model, tiny.vae, c, p, tiny.vq_params, x, keys),
    prompts(P),
    rollout.keys(jax.random.key(0), P, R),
  )
  one = lambda p, x: tiny.model.apply(
    {'params': p}, next_scale.labels(tiny.model, x, True), method='prefill'
  )
  prefill = cost(jax.vmap(one, (None, 0)), prompts(2))
  np.testing.assert_allclose(generate(8, 1) - generate(2, 4), prefill * (4 - 1), rtol=0.05)


def test_guidance_and_temperature_are_one_number_or_one_for_each_scale():
  assert config(guidance=3.0).strengths(2) == [2.0, 2.0] and config(guidance=(1.0, 4.0)).strengths(
    2
  ) == [0.0, 3.0]
  assert config(temperature=0.5).temperatures(2) == [0.5, 0.5]
  assert (
    not config(guidance=1.0).paired
    and config(guidance=(1.0, 2.0)).paired
    and config(guidance=0.0).paired
  )
  with pytest.raises(ValueError, match='guidance.* 3 numbers found, 2 scales'):
    config(guidance=(1.0, 2.0, 3.0)).strengths(2)


@pytest.mark.parametrize(
  'change', [dict(record='all'), dict(temperature=0.0), dict(guidance=(1.0, -1.0)), dict(top_p=1.5)]
)
def test_a_sampler_that_means_nothing_is_refused(change):
  with pytest.raises(ValueError, match=list(change)[0]):
    config(**change)


def test_two_classes_keep_both_values_unless_the_less_likely_has_at_most_the_share_that_is_cut():
  logit = lambda p: jnp.log(jnp.array([[1 - p, p]]))
  kept = lambda p: np.isfinite(next_scale.sample.truncate(logit(p), top_k=0, top_p=0.97)).sum()
  assert [kept(p) for p in (0.0301, 0.0299, 0.5, 0.9699, 0.9701)] == [2, 1, 2, 2, 1]
