"""Truncation against the official rule written out; log-probabilities that are ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.rollout import sampling

INF = np.inf


def official(logits, top_k, top_p):
  """FoundationVision/VAR, one row: first what is strictly below the k-th best goes, then, from the
  least likely up, what fits into a mass of 1 - top_p; never the best."""
  out = np.array(logits, np.float64)
  if top_k:
    out[out < np.sort(out)[-top_k]] = -INF
  if top_p:
    p = np.exp(out - out.max())
    p, mass = p / p.sum(), 0.0
    for i in np.argsort(out, kind='stable')[:-1]:
      mass += p[i]
      if mass <= 1 - top_p:
        out[i] = -INF
  return out


@pytest.mark.parametrize('top_k', [0, 1, 5, 19, 20, 50])
@pytest.mark.parametrize('top_p', [0.0, 0.03, 0.5, 0.96, 1.0])
def test_truncation_is_the_official_rule(top_k, top_p):
  logits = 3 * np.random.default_rng(top_k).standard_normal((40, 20)).astype(np.float32)
  ours = np.asarray(sampling.truncate(jnp.array(logits), top_k=top_k, top_p=top_p))
  theirs = [official(x, min(top_k, 20), top_p if top_p < 1 else 0) for x in logits]
  np.testing.assert_array_equal(ours, np.array(theirs, np.float32))
  assert (ours.max(-1) == logits.max(-1)).all()  # the best one always stays


def test_ties_with_the_kth_stay():
  logits = jnp.array([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
  kept = sampling.truncate(logits, top_k=2, top_p=0.0)
  assert kept.tolist() == [[-INF, 3.0, 2.0, 2.0, 2.0, -INF]]


def test_the_mass_of_top_p_is_of_what_top_k_left():
  logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
  both = sampling.truncate(logits, top_k=2, top_p=0.55)  # of (.4, .3) / .7 the best has .571
  assert jnp.isfinite(both).tolist() == [[True, False, False, False]]
  alone = sampling.truncate(logits, top_k=0, top_p=0.55)
  assert jnp.isfinite(alone).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize('shift', [-300.0, 0.0, 300.0])
def test_thresholds_are_those_of_a_sort_at_any_sign_and_size(shift):
  rng = np.random.default_rng(0)
  rows = (
    np.round(rng.standard_normal((50, 300)) * np.exp(4 * rng.standard_normal((50, 1))), 2) + shift
  )
  rows = rows.astype(np.float32)
  rows[0, 5:], rows[1], rows[2, :7] = (
    -INF,
    0.0,
    -0.0,
  )  # fewer than k, all alike, zeros of both signs
  for k in (1, 2, 17, 299):
    found = np.asarray(sampling.threshold(jnp.array(rows), jnp.ones(rows.shape), k))
    np.testing.assert_array_equal(found[:, 0], -np.sort(-rows, -1)[:, k - 1])


def test_counts_are_exact_in_bfloat16():
  rows = jnp.arange(-2048, 2048).astype(jnp.bfloat16)[
    None
  ]  # many ties: as many stay as the k-th has
  for k in (257, 900, 901):
    wanted = (rows >= jnp.sort(rows)[:, -k, None]).sum()
    assert jnp.isfinite(sampling.truncate(rows, top_k=k, top_p=0.0)).sum() == wanted >= k


def test_a_draw_is_that_of_jax_to_the_bit():
  rows = (
    jnp.array(np.random.default_rng(1).standard_normal((64, 33)), jnp.float32).at[:, 20:].set(-INF)
  )
  for seed in range(5):
    key = jax.random.key(seed)
    np.testing.assert_array_equal(
      sampling.categorical(key, rows), jax.random.categorical(key, rows)
    )


def test_draws_follow_the_truncated_distribution_and_say_its_log_probability():
  logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
  rows = jnp.broadcast_to(logits[None], (20000, 4))
  t_L, logp_L = sampling.draw(jax.random.key(0), rows, top_k=3, top_p=0.0)
  assert t_L.dtype == jnp.int32
  p = np.array([0.5, 0.3, 0.15]) / 0.95
  np.testing.assert_allclose(np.bincount(t_L, minlength=4)[:3] / 20000, p, atol=0.015)
  assert (t_L < 3).all()
  np.testing.assert_allclose(logp_L, np.log(p)[np.asarray(t_L)], rtol=1e-5)


def test_select_normalises_entropy_and_divergence_are_their_sums():
  rng = np.random.default_rng(0)
  x, y = (jnp.array(4 * rng.standard_normal((6, 9)), jnp.float32) for _ in range(2))
  all_tokens = lambda z: np.stack([sampling.select(z, jnp.full(6, v)) for v in range(9)], 1)
  logp, logq = all_tokens(x), all_tokens(y)
  np.testing.assert_allclose(np.exp(logp).sum(-1), 1, rtol=1e-5)
  np.testing.assert_allclose(sampling.entropy(x), -(np.exp(logp) * logp).sum(-1), rtol=1e-4)
  kl = (np.exp(logp) * (logp - logq)).sum(-1)
  np.testing.assert_allclose(sampling.divergence(x, y), kl, rtol=1e-4)
  np.testing.assert_array_equal(sampling.divergence(x, x + 7), 0)  # exactly, not by rounding
  assert sampling.select(x.astype(jnp.bfloat16), jnp.zeros(6, jnp.int32)).dtype == jnp.float32


def test_guidance_moves_away_from_the_unconditional_branch():
  cond, uncond = jnp.array([1.0, 2.0]), jnp.array([0.0, 4.0])
  assert sampling.guide(cond, uncond, 0.0).tolist() == [1.0, 2.0]
  assert sampling.guide(cond, uncond, 1.5).tolist() == [2.5, -1.0]


def test_the_gradient_of_the_divergence_is_that_of_its_plain_sum():
  """Where the two are near too, of which the value calls differences of rounding 0."""
  rng = np.random.default_rng(1)
  x = jnp.array(rng.standard_normal((6, 9)), jnp.float32)
  far, near = (
    x + scale * jnp.array(rng.standard_normal((6, 9)), jnp.float32) for scale in (1.0, 1e-6)
  )

  def plain(x, y):
    logp, logq = jax.nn.log_softmax(x, -1), jax.nn.log_softmax(y, -1)
    return (jnp.exp(logp) * (logp - logq)).sum(-1)

  for y in (far, near, x):
    ours, theirs = (jax.grad(lambda x, f=f: f(x, y).sum())(x) for f in (sampling.divergence, plain))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-8)
    assert (sampling.divergence(x, y) >= 0).all()
  assert not sampling.divergence(x, near).any()
