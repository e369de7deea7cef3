"""Cached sampling is teacher forcing, whosever log-probabilities count; rows are a function of
their own keys; a group shares what its prompt decides.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.models import var
from vargrl.models.nets import next_scale
from vargrl.rollout import generate, score, vmaps
from vargrl.rollout.kinds import scales
from vargrl.rollout.plan import Segment
from vargrl.tokenizers import vq

LABELS = jnp.array([1, 7])


def config(logp_of='cond', guidance=3.0, temperature=0.8, top_k=12, top_p=0.9, ramp=True):
  return scales.Config(guidance, ramp, temperature, top_k, top_p, logp_of)


def plan(m, c):
  return (Segment('image', scales, dataclasses.replace(c, scales=m.c.scales)),)


def net(m, params, vq_params=None):
  return next_scale.Net(m.model, m.vae, params, m.vq_params if vq_params is None else vq_params)


def sample(m, c, params, label_P, keys_PR):
  return generate.generate(net(m, params), plan(m, c), label_P, keys_PR[:, 0], keys_PR)


def score_tokens(m, c, params, label_P, t_PRL, reference=None):
  nets = [net(m, p) for p in (params, reference) if p is not None]
  return score.score(nets, plan(m, c), label_P, {'image': {'tokens': t_PRL}})[0]


@pytest.fixture(scope='module')
def run(smoke):
  """config -> (Rollout of LABELS x 3 keys, Scores of its tokens; the reference is the policy)."""
  done = {}

  def both(c, params, vq_params, keys_PR, reference):
    nets = [net(smoke, params, vq_params), net(smoke, reference, vq_params)]
    out = generate.generate(nets[0], plan(smoke, c), LABELS, keys_PR[:, 0], keys_PR)
    return out, score.score(nets, plan(smoke, c), LABELS, out.data)[0]

  def call(c):
    if c not in done:
      keys_PR = vmaps.row_keys(jax.random.key(5), 2, 3)
      program = jax.jit(both, static_argnums=0)
      done[c] = program(c, smoke.params, smoke.vq_params, keys_PR, smoke.params)
    return done[c]

  return call


@pytest.mark.parametrize(
  'c',
  [
    config('cond'),
    config('guided'),
    config('guided_stopgrad', top_k=0, top_p=0.0, temperature=1.7),
    config('cond', guidance=1.0, top_p=0.0),
    config('guided', guidance=(1.0, 2.0, 4.0), temperature=(1.0, 0.8, 0.5), ramp=False),
  ],
  ids=lambda c: f'{c.logp_of}-{c.guidance}',
)
def test_logp_of_cached_sampling_is_logp_of_teacher_forcing(run, smoke, c):
  out, scores = run(c)
  tokens = out.data['image']['tokens']
  assert tokens.shape == out.logp.shape == out.sampler_logp.shape == (2, 3, smoke.c.length)
  assert tokens.dtype == jnp.int32 and out.logp.dtype == out.sampler_logp.dtype == jnp.float32
  assert out.mask is None  # a picture has no end of its own
  np.testing.assert_allclose(out.logp, scores.logp, atol=1e-4)
  # The reference is the policy itself.
  np.testing.assert_allclose(scores.ref_logp, scores.logp, atol=1e-5)
  np.testing.assert_array_equal(scores.penalty, 0)
  # Truncation moves mass to what is kept, so the sampler is never less sure of what it drew;
  # 'cond' records another distribution than the guided one it samples from.
  if c.logp_of != 'cond' or not c.guided:
    assert (out.sampler_logp >= out.logp - 1e-5).all()
  else:
    assert abs(out.sampler_logp - out.logp).mean() > 0.1
  if not c.top_k and not c.top_p:  # without truncation the sampler is the policy of record
    np.testing.assert_allclose(out.sampler_logp, out.logp, atol=1e-5)
  assert (scores.entropy >= 0).all() and (scores.entropy <= np.log(smoke.c.vocab) + 1e-5).all()
  assert set(np.unique(scores.accuracy)) <= {0.0, 1.0}
  assert len(np.unique(tokens)) > 5


def test_a_row_depends_on_its_own_prompt_and_key_alone(run, smoke):
  small = run(config('guided'))[0].data['image']['tokens']
  keys_PR = vmaps.row_keys(jax.random.key(5), 5, 2)
  program = jax.jit(lambda *args: sample(smoke, config('guided'), *args))
  other = program(smoke.params, jnp.array([1, 7, 0, 2, 9]), keys_PR).data['image']['tokens']
  np.testing.assert_array_equal(other[:2], small[:, :2])
  assert len(np.unique(np.asarray(other).reshape(10, -1), axis=0)) == 10  # no two share a key


@pytest.mark.parametrize(
  'logp_of, L',
  [
    *((logp_of, 21) for logp_of in scales.LOGP_OF),
    ('guided', 5),
    pytest.param('cond', 5, marks=pytest.mark.slow),
    pytest.param('guided_stopgrad', 5, marks=pytest.mark.slow),
  ],
)
def test_chunks_change_no_score_and_no_gradient(smoke, monkeypatch, logp_of, L):
  t_PRL = jax.random.randint(jax.random.key(1), (2, 2, L), 0, smoke.c.vocab)

  def loss(params, reference):
    scores = score_tokens(smoke, config(logp_of), params, LABELS, t_PRL, reference)
    return ((scores.penalty - scores.logp) * jnp.sin(1.0 + jnp.arange(L))[None, None]).sum(), scores

  other = jax.tree.map(lambda x: 1.1 * x, smoke.params)

  def run(chunk):
    monkeypatch.setattr(vmaps, 'CHUNK', chunk)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(smoke.params, other)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    run(128),
    run(4 if L == 5 else 8),
  )


def test_the_unconditional_branch_has_its_own_label_and_a_gradient_unless_stopped(smoke, inputs):
  """d logp / d class embedding: of the label, and of the unconditional class where it counts."""

  def classes_gradient(logp_of, guidance=3.0):
    c = config(logp_of, guidance, top_k=0, top_p=0.0)

    def loss(classes):
      params = {**smoke.params, 'classes': classes}
      return score_tokens(smoke, c, params, inputs[0], inputs[1][:, None]).logp.sum()

    g = abs(jax.jit(jax.grad(loss))(smoke.params['classes'])).max(-1)
    return set(np.flatnonzero(np.asarray(g)).tolist())

  own, uncond = set(inputs[0].tolist()), smoke.c.classes
  assert classes_gradient('cond') == own
  assert classes_gradient('guided_stopgrad') == own
  assert classes_gradient('guided') == own | {uncond}
  assert classes_gradient('guided', guidance=1.0) == own


def test_guided_and_stopgrad_differ_in_gradient_alone(smoke, inputs):
  def both(logp_of):
    value = lambda p: score_tokens(smoke, config(logp_of), p, inputs[0], inputs[1][:, None])
    return jax.jit(lambda p: (value(p), jax.grad(lambda p: value(p).logp.sum())(p)))(smoke.params)

  (guided, gradient), (stopped, other) = both('guided'), both('guided_stopgrad')
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), guided, stopped)
  assert float(abs(gradient['head']['w'] - other['head']['w']).max()) > 1e-2


def test_the_reference_drops_nothing(smoke, inputs):
  """Dropped layers are the policy's alone; the reference's numbers are those without."""
  drop_path = jnp.zeros((2, 1, 2, 2)).at[:, :, 0].set(1.0)  # the second layer is dropped

  def run(params, more):
    nets = [net(smoke, params)] * 2
    data = {'image': {'tokens': inputs[1][:, None]} | more}
    return score.score(nets, plan(smoke, config()), inputs[0], data)[0]

  plain, dropped = (jax.jit(run)(smoke.params, more) for more in ({}, {'drop_path': drop_path}))
  np.testing.assert_allclose(dropped.ref_logp, plain.logp, atol=1e-5)
  assert abs(dropped.logp - plain.logp).max() > 1e-2


def test_the_guidance_pair_is_the_prompt_and_the_unconditional_one(smoke):
  one = net(smoke, smoke.params)
  context = one.prefill(jnp.int32(4))
  assert one.prompts(context, False).tolist() == [4]
  assert one.prompts(context, True).tolist() == [4, smoke.c.classes]


def test_guidance_rises_from_off_to_its_value():
  four = lambda **changes: dataclasses.replace(config(), scales=(1, 2, 3, 4), **changes)
  assert four(guidance=4.0).strengths() == [0.0, 1.0, 2.0, 3.0]
  assert four(guidance=4.0, guidance_ramp=False).strengths() == [3.0] * 4
  assert dataclasses.replace(config(), scales=(1,)).strengths() == [0.0]
  assert four(temperature=0.5).temperatures() == [0.5] * 4
  with pytest.raises(ValueError, match='guidance=.* with guidance_ramp, expected one number'):
    four(guidance=(1.0, 2.0, 3.0, 4.0))


@pytest.mark.parametrize(
  'change',
  [
    dict(logp_of='all'),
    dict(temperature=0.0),
    dict(guidance=-1.0),
    dict(top_k=-1),
    dict(top_p=1.5),
  ],
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
  labels = lambda P: jnp.zeros(P, jnp.int32)

  def prefill(P):
    def one(params, label):
      bound = net(m, params)
      return bound.start_image(bound.prefill(label), True)

    return cost(jax.vmap(one, (None, 0)), labels(P))

  def sampling(P, R):
    keys_PR = vmaps.row_keys(jax.random.key(0), P, R)
    return cost(lambda *args: sample(m, c, *args), labels(P), keys_PR)

  def condition(P):
    """The class embedding's share of a pass: the modulations of the blocks and of the head."""
    return P * 2 * 2 * (6 + 2) * m.c.width**2  # 2 for the guidance pair, 2 for multiply and add

  def scoring(P, R):
    t_PRL = jnp.zeros((P, R, m.c.length), jnp.int32)
    return cost(lambda *args: score_tokens(m, c, *args), labels(P), t_PRL)

  return prefill, sampling, condition, scoring


def test_generation_prefills_once_for_each_prompt(flops):
  prefill, sampling, _, _ = flops
  shared, repeated = sampling(4, 8), sampling(32, 1)
  np.testing.assert_allclose(repeated - shared, prefill(4) * (8 - 1), rtol=0.05)
  intercept = 2 * sampling(4, 4) - shared  # F(P, R) = a P + b P R
  np.testing.assert_allclose(intercept, prefill(4), rtol=0.05)


def test_scoring_conditions_once_for_each_prompt(flops):
  _, _, condition, scoring = flops
  shared, repeated = scoring(4, 8), scoring(32, 1)
  # Biases and the like are left out of `condition`; scored by row, the difference would be 0.
  np.testing.assert_allclose(repeated - shared, condition(4) * (8 - 1), rtol=0.1)
