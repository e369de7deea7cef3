"""From logits to tokens and log-probabilities: the one definition of both.

The policy of record is the distribution at the sampling temperature, before truncation. Top-k and
top-p belong to the sampler; their mismatch is measured (`sampler/logp_gap`), never hidden.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.types import Scores


def guide(cond, uncond, strength):
  """Classifier-free guidance: cond + strength (cond - uncond). strength is guidance - 1: the
  setting guidance=1 is off (https://arxiv.org/abs/2207.12598)."""
  return (1 + strength) * cond - strength * uncond


def truncate(logits_LV, *, top_k, top_p):
  """-inf outside the top_k best and then outside the top_p mass; 0 switches either off.

  As FoundationVision/VAR: ties with the k-th stay, the best one always stays, and the mass is that
  of what top_k left."""
  V = logits_LV.shape[-1]
  if not 0 < top_k < V and not 0 < top_p < 1:
    return logits_LV
  if 0 < top_k < V:
    logits_LV = mask_below(logits_LV, threshold(logits_LV, jnp.float32(1), top_k))
  if 0 < top_p < 1:
    logits_LV = mask_below(logits_LV, threshold(logits_LV, jax.nn.softmax(logits_LV, -1), top_p))
  return logits_LV


def mask_below(logits_LV, threshold_L1):
  return jnp.where(logits_LV < threshold_L1, -jnp.inf, logits_LV)


def threshold(x_LV, weight_LV, need):
  """The largest t_L1 with sum(weight[x >= t]) >= need, -inf if there is none; float32.

  Exact, and no sort: the order of floats is that of their bits as integers, so t is found bit by
  bit. A sort takes five times as long on a CPU, and lax.top_k gathers rows that are spread over a
  mesh. Where V is spread, each bit costs a sum of [L, 1] over its devices."""

  def flip_order(i):  # its own inverse
    return i ^ ((i >> 31) & 0x7FFFFFFF)

  weight_LV = weight_LV.astype(jnp.float32)  # counts beyond 256 have no bfloat16
  rank_LV = flip_order(jax.lax.bitcast_convert_type(x_LV.astype(jnp.float32), jnp.int32))

  def bit(i, t_L1):
    # The first bit is the sign: int32 wraps from its lowest to 0.
    higher_L1 = t_L1 + (jnp.int32(1) << (31 - i).astype(jnp.int32))
    enough_L1 = jnp.where(rank_LV >= higher_L1, weight_LV, 0.0).sum(-1, keepdims=True) >= need
    return jnp.where(enough_L1, higher_L1, t_L1)

  lowest = flip_order(np.float32(-np.inf).view(np.int32))
  t_L1 = jax.lax.fori_loop(0, 32, bit, jnp.full_like(rank_LV[..., :1], np.iinfo(np.int32).min))
  return jax.lax.bitcast_convert_type(flip_order(jnp.maximum(t_L1, lowest)), jnp.float32)


def draw(key, logits_LV, *, top_k, top_p):
  """Logits at the sampling temperature -> (t_L int32, log-probability of each as it was drawn)."""
  kept_LV = truncate(logits_LV, top_k=top_k, top_p=top_p)
  t_L = categorical(key, kept_LV)
  return t_L, select(kept_LV, t_L)


def categorical(key, logits_LV):
  """jax.random.categorical, to the bit, of logits without NaN; int32. Its argmax is one reduction
  over pairs, which XLA does not vectorise on a CPU; two plain ones take a third of the time."""
  noisy_LV = logits_LV + jax.random.gumbel(key, logits_LV.shape, logits_LV.dtype)
  noisy_LV = jax.lax.optimization_barrier(
    noisy_LV
  )  # computed twice, it might differ from its own maximum
  V = logits_LV.shape[-1]
  place_LV = jnp.broadcast_to(jnp.arange(V, dtype=jnp.int32), logits_LV.shape)
  return jnp.where(noisy_LV == noisy_LV.max(-1, keepdims=True), place_LV, V - 1).min(-1)


def select(logits_LV, t_L):
  """log softmax(logits)[t], float32."""
  logits_LV = logits_LV.astype(jnp.float32)
  chosen_L = jnp.take_along_axis(logits_LV, t_L[..., None], -1)[..., 0]
  return chosen_L - jax.nn.logsumexp(logits_LV, -1)


def entropy(logits_LV):
  """Of softmax(logits), in nats."""
  logp_LV = jax.nn.log_softmax(logits_LV, -1)
  return -jnp.sum(jnp.exp(logp_LV) * logp_LV, -1)


def divergence(logits_LV, reference_LV):
  """KL(softmax(logits) || softmax(reference)), exact over the vocabulary, in nats.

  As a sum of terms p (log p/q + q/p - 1), none of which is negative, with the gradient of p log
  p/q. Log-probabilities within 1e-5, the rounding of logits that two programs make of the same
  weights, count as equal: a policy against itself has exactly 0."""
  logp_LV, logq_LV = jax.nn.log_softmax(logits_LV, -1), jax.nn.log_softmax(reference_LV, -1)
  p_LV, d_LV = jnp.exp(logp_LV), logp_LV - logq_LV
  plain_L = jnp.sum(p_LV * d_LV, -1)
  d_LV = jnp.where(abs(d_LV) <= 1e-5, 0.0, d_LV)
  value_L = jnp.sum(p_LV * (d_LV + jnp.expm1(-d_LV)), -1)
  return plain_L + jax.lax.stop_gradient(value_L - plain_L)


def scores(logits_LV, t_L, reference_LV=None):
  """Scores of tokens under the policy's logits, and the reference's if there are any."""
  accuracy_L = (jnp.argmax(logits_LV, -1) == t_L).astype(jnp.float32)
  out = Scores(select(logits_LV, t_L), entropy(logits_LV), accuracy_L)
  if reference_LV is None:
    return out
  return out.replace(
    penalty=divergence(logits_LV, reference_LV), ref_logp=select(reference_LV, t_L)
  )
