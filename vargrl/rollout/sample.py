"""From logits to tokens and log-probabilities: the one definition of both.

The policy of record is the distribution at the sampling temperature, before truncation. Top-k and
top-p belong to the sampler; their mismatch is measured (`sampler/logp_gap`), never hidden.
"""
import jax
import jax.numpy as jnp


def guide(cond, uncond, strength):
  """VAR's classifier-free guidance: (1 + t) cond - t uncond; t = 0 is no guidance."""
  return (1 + strength) * cond - strength * uncond


def truncate(logits_LV, *, top_k, top_p):
  """-inf outside the top_k best and then outside the top_p mass; 0 switches either off.

  As FoundationVision/VAR: ties with the k-th stay, the best one always stays, and the mass is that of
  what top_k left.
  """
  V = logits_LV.shape[-1]
  if not 0 < top_k < V and not 0 < top_p < 1: return logits_LV
  sorted_LV = -jnp.sort(-logits_LV, -1)
  least_L1 = jnp.full_like(logits_LV[..., :1], -jnp.inf)
  if 0 < top_k < V:
    least_L1 = sorted_LV[..., top_k - 1:top_k]
    sorted_LV = jnp.where(sorted_LV < least_L1, -jnp.inf, sorted_LV)
  if 0 < top_p < 1:
    p_LV = jax.nn.softmax(sorted_LV, -1)
    before_LV = jnp.cumsum(p_LV, -1) - p_LV  # mass of what is likelier
    last = jnp.sum(before_LV < top_p, -1, keepdims=True) - 1
    least_L1 = jnp.maximum(least_L1, jnp.take_along_axis(sorted_LV, jnp.maximum(last, 0), -1))
  return jnp.where(logits_LV < least_L1, -jnp.inf, logits_LV)


def draw(key, logits_LV, *, top_k, top_p):
  """Logits at the sampling temperature -> (t_L int32, log-probability of each as it was drawn)."""
  kept_LV = truncate(logits_LV, top_k=top_k, top_p=top_p)
  t_L = jax.random.categorical(key, kept_LV).astype(jnp.int32)
  return t_L, select(kept_LV, t_L)


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
  """KL(softmax(logits) || softmax(reference)), exact over the vocabulary, in nats."""
  logp_LV, logq_LV = jax.nn.log_softmax(logits_LV, -1), jax.nn.log_softmax(reference_LV, -1)
  return jnp.sum(jnp.exp(logp_LV) * (logp_LV - logq_LV), -1)
