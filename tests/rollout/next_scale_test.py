"""Cached sampling is teacher forcing, for every record; rows are a function of their own keys."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.models import var
from vargrl.rollout import groups, next_scale
from vargrl.tokenizers import vq

LABELS = jnp.array([1, 7])


def config(record='cond', guidance=2.0, temperature=0.8, top_k=12, top_p=0.9):
  return next_scale.Config(guidance, temperature, top_k, top_p, record)


@pytest.fixture(scope='module')
def run(smoke):
  """(config, keys_PR, labels, weights of the reference) -> (Rollout, Scores of its tokens)."""

  def call(c, keys_PR, label_P=LABELS, reference=None):
    def both(params, vq_params, label_P, keys_PR, reference):
      out = next_scale.generate(smoke.model, smoke.vae, c, params, vq_params, label_P, keys_PR)
      return out, next_scale.logprobs(
        smoke.model, smoke.vae, c, params, vq_params, label_P, out.tokens, reference=reference
      )

    return jax.jit(both)(smoke.params, smoke.vq_params, label_P, keys_PR, reference)

  return call


@pytest.fixture(scope='module')
def drawn(smoke):
  """(config, keys_PR, labels) -> Rollout."""

  def call(c, keys_PR, label_P=LABELS):
    generate = lambda *args: next_scale.generate(smoke.model, smoke.vae, c, *args)
    return jax.jit(generate)(smoke.params, smoke.vq_params, label_P, keys_PR)

  return call


@pytest.mark.parametrize(
  'c',
  [
    config('cond'),
    config('guided'),
    config('guided_stopgrad', top_k=0, temperature=1.7),
    config('cond', guidance=0.0, top_p=0.0),
  ],
  ids=lambda c: f'{c.record}-{c.guidance:g}',
)
def test_logp_of_cached_sampling_is_logp_of_teacher_forcing(run, smoke, c):
  out, scores = run(c, next_scale.keys(jax.random.key(5), 2, 3), reference=smoke.params)
  assert out.tokens.shape == out.logp.shape == out.sampler.shape == (2, 3, smoke.c.length)
  assert out.tokens.dtype == jnp.int32 and out.logp.dtype == out.sampler.dtype == jnp.float32
  np.testing.assert_allclose(out.logp, scores.logp, atol=1e-4)
  # The reference is the policy itself.
  np.testing.assert_allclose(scores.reference, scores.logp, atol=1e-5)
  np.testing.assert_allclose(scores.kl, 0, atol=1e-5)
  # Truncation moves mass to what is kept, so the sampler is never less sure of what it drew;
  # 'cond' records another distribution than the guided one it samples from.
  if c.record != 'cond' or not c.paired:
    assert (out.sampler >= out.logp - 1e-5).all()
  else:
    assert abs(out.sampler - out.logp).mean() > 0.1
  assert (scores.entropy >= 0).all() and (scores.entropy <= np.log(smoke.c.vocab) + 1e-5).all()
  assert set(np.unique(scores.hit)) <= {0.0, 1.0}
  assert len(np.unique(out.tokens)) > 5


@pytest.mark.parametrize(
  'record, L',
  [
    *((record, 21) for record in next_scale.RECORDS),
    ('guided', 5),
    *(
      pytest.param(record, 5, marks=pytest.mark.slow)
      for record in next_scale.RECORDS
      if record != 'guided'
    ),
  ],
)
def test_chunks_change_no_score_and_no_gradient(smoke, monkeypatch, record, L):
  c, t_PRL = config(record), jax.random.randint(jax.random.key(1), (2, 2, L), 0, smoke.c.vocab)

  def loss(params, reference):
    scores = next_scale.logprobs(
      smoke.model, smoke.vae, c, params, smoke.vq_params, LABELS, t_PRL, reference=reference
    )
    return ((scores.kl - scores.logp) * jnp.sin(1.0 + jnp.arange(L))[None, None]).sum(), scores

  other = jax.tree.map(lambda x: 1.1 * x, smoke.params)

  def run(chunk):
    monkeypatch.setattr(groups, 'CHUNK', chunk)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(smoke.params, other)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    run(128),
    run(4 if L == 5 else 8),
  )


def test_without_truncation_the_sampler_is_the_policy_of_record(drawn):
  out = drawn(config('guided', top_k=0, top_p=0.0), next_scale.keys(jax.random.key(5), 2, 3))
  np.testing.assert_allclose(out.sampler, out.logp, atol=1e-5)


def test_a_row_depends_on_its_own_prompt_and_key_alone(drawn):
  c, rng = config('guided'), jax.random.key(3)
  small = drawn(c, next_scale.keys(rng, 2, 2))
  wide = drawn(c, next_scale.keys(rng, 2, 5))
  np.testing.assert_array_equal(wide.tokens[:, :2], small.tokens)
  tall = drawn(c, next_scale.keys(rng, 5, 2), jnp.array([1, 7, 0, 2, 9]))
  np.testing.assert_array_equal(tall.tokens[:2], small.tokens)
  rows = np.asarray(wide.tokens).reshape(10, -1)
  assert len(np.unique(rows, axis=0)) == 10  # and no two rows share a key


def test_keys_are_a_function_of_seed_prompt_and_row():
  data = lambda *args, **kw: np.asarray(jax.random.key_data(next_scale.keys(*args, **kw)))
  rng = jax.random.key(0)
  whole = data(rng, 4, 6)
  assert whole.shape[:2] == (4, 6) and len(np.unique(whole.reshape(24, -1), axis=0)) == 24
  np.testing.assert_array_equal(data(rng, 3, 2), whole[:3, :2])
  np.testing.assert_array_equal(data(rng, 4, 2, first=3), whole[:, 3:5])
  assert (data(jax.random.key(1), 4, 6) != whole).any((-1)).all()


def test_the_uncond_branch_has_its_own_label_and_a_gradient_unless_stopped(smoke, inputs):
  """d logp / d class embedding: of the label, and of the unconditional class where recorded."""
  t_PRL = inputs[1][:, None]

  def classes_gradient(record, guidance=2.0):
    c = config(record, guidance, top_k=0, top_p=0.0)

    def loss(classes):
      params = {**smoke.params, 'classes': classes}
      return next_scale.logprobs(
        smoke.model, smoke.vae, c, params, smoke.vq_params, inputs[0], t_PRL
      ).logp.sum()

    g = abs(jax.jit(jax.grad(loss))(smoke.params['classes'])).max(-1)
    return set(np.flatnonzero(np.asarray(g)).tolist())

  own, uncond = set(inputs[0].tolist()), smoke.c.classes
  assert classes_gradient('cond') == own
  assert classes_gradient('guided_stopgrad') == own
  assert classes_gradient('guided') == own | {uncond}
  assert classes_gradient('guided', guidance=0.0) == own


def test_guided_and_stopgrad_differ_in_gradient_alone(smoke, inputs):
  logprobs = partial(next_scale.logprobs, smoke.model, smoke.vae)

  def both(record):
    value = lambda params: logprobs(
      config(record), params, smoke.vq_params, inputs[0], inputs[1][:, None]
    )
    return jax.jit(lambda p: (value(p), jax.grad(lambda p: value(p).logp.sum())(p)))(smoke.params)

  (guided, gradient), (stopped, other) = both('guided'), both('guided_stopgrad')
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), guided, stopped)
  assert float(abs(gradient['head']['w'] - other['head']['w']).max()) > 1e-2


def test_labels_are_the_pair_of_class_and_unconditional(smoke):
  label = jnp.int32(4)
  assert next_scale.labels(smoke.model, label, False).tolist() == [4]
  assert next_scale.labels(smoke.model, label, True).tolist() == [4, smoke.c.classes]


def test_guidance_rises_from_zero_to_its_value():
  assert config(guidance=3.0).strengths(4) == [0.0, 1.0, 2.0, 3.0]
  assert config(guidance=3.0).strengths(1) == [0.0]


@pytest.mark.parametrize(
  'change',
  [dict(record='all'), dict(temperature=0.0), dict(guidance=-1.0), dict(top_k=-1), dict(top_p=1.5)],
)
def test_a_sampler_that_means_nothing_is_refused(change):
  with pytest.raises(ValueError, match=list(change)[0]):
    config(**change)


# What a group shares is computed once. FLOPs of the compiled program; depth 1, since the cost of a
# scan's body is counted once.


@pytest.fixture(scope='module')
def flops(small):
  m = small(
    var.Config(1, 64, 2, scales=(1, 2), vocab=32, channels=4, classes=10),
    dataclasses.replace(vq.SIZES['smoke'], scales=(1, 2)),
  )
  c = config('guided')
  cost = lambda f, *args: jax.jit(f).lower(m.params, *args).compile().cost_analysis()['flops']

  def prefill(P):
    one = lambda p, x: m.model.apply(
      {'params': p}, next_scale.labels(m.model, x, True), method='prefill'
    )
    return cost(jax.vmap(one, (None, 0)), jnp.zeros(P, jnp.int32))

  def generate(P, R):
    f = lambda p, label, keys: next_scale.generate(m.model, m.vae, c, p, m.vq_params, label, keys)
    return cost(f, jnp.zeros(P, jnp.int32), next_scale.keys(jax.random.key(0), P, R))

  def condition(P):
    """The class embedding's share of a pass: the modulations of the blocks and of the head."""
    return P * 2 * 2 * (6 + 2) * m.c.width**2  # 2 for the guidance pair, 2 for multiply and add

  def logprobs(P, R):
    f = lambda p, label, t: next_scale.logprobs(m.model, m.vae, c, p, m.vq_params, label, t)
    return cost(f, jnp.zeros(P, jnp.int32), jnp.zeros((P, R, m.c.length), jnp.int32))

  return prefill, generate, condition, logprobs


def test_generation_prefills_once_for_each_prompt(flops):
  prefill, generate, _, _ = flops
  shared, repeated = generate(4, 8), generate(32, 1)
  np.testing.assert_allclose(repeated - shared, prefill(4) * (8 - 1), rtol=0.05)
  intercept = 2 * generate(4, 4) - shared  # F(P, R) = a P + b P R
  np.testing.assert_allclose(intercept, prefill(4), rtol=0.05)


def test_scoring_conditions_once_for_each_prompt(flops):
  _, _, condition, logprobs = flops
  shared, repeated = logprobs(4, 8), logprobs(32, 1)
  # Biases and the like are left out of `condition`; scored by row, the difference would be 0.
  np.testing.assert_allclose(repeated - shared, condition(4) * (8 - 1), rtol=0.1)
