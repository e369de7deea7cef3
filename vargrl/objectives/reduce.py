"""The arithmetic of the objectives, once: weights of tokens, ratios, KL estimators, advantages."""
import jax
import jax.numpy as jnp
import numpy as np

from vargrl.types import bounds

KL = ('exact', 'k1', 'k2', 'k3', 'k3_is')
LEVELS = ('token', 'scale', 'sequence')
STDS = ('group', 'batch', 'none')


def token_weights(scales, *, alpha, first, last):
  """weight_L, numpy float32, summing to 1 over the scales first .. last (counted from 0, inclusive).

  alpha: each token of a scale with s*s tokens weighs 1 / (s*s)^alpha (PANW,
  https://arxiv.org/abs/2601.02256); 0 is uniform, 1 gives every scale the same share.
  """
  if not 0 <= first <= last < len(scales):
    raise ValueError(f'scales: first={first}, last={last} with {len(scales)} scales; '
                     f'expected 0 <= first <= last <= {len(scales) - 1}')
  if alpha < 0: raise ValueError(f'objective.loss.alpha: {alpha}, expected at least 0')
  parts = [np.full(s * s, float(s * s) ** -alpha if first <= i <= last else 0.)
           for i, s in enumerate(scales)]
  weight_L = np.concatenate(parts)
  return (weight_L / weight_L.sum()).astype(np.float32)


def log_ratio(d_PRL, active_11L, scales, *, level):
  """log pi - log pi_old -> what the ratio is the exponential of, still [P, R, L].

  'scale' and 'sequence' are geometric means (the product over 256 tokens would be noise alone);
  the mean over a sequence counts active tokens only.
  """
  if level == 'token': return d_PRL
  if level == 'sequence':
    mean_PR1 = (d_PRL * active_11L).sum(-1, keepdims=True) / active_11L.sum()
    return jnp.broadcast_to(mean_PR1, d_PRL.shape)
  if level != 'scale': raise ValueError(f'level: {level!r}, expected one of {LEVELS}')
  parts = [d_PRL[..., a:b] for a, b in bounds(scales)]
  return jnp.concatenate([jnp.broadcast_to(p.mean(-1, keepdims=True), p.shape) for p in parts], -1)


def kl(scores, ratio, *, estimator):
  """KL(policy || reference) per token, as a loss.

  'exact' sums over the vocabulary. With d = logp - ref: k2 = d^2 / 2 has the exact KL's gradient;
  k3 = exp(-d) + d - 1 has that of KL(reference || policy); k3_is = ratio k3 the exact one's again;
  k1 = d has none in expectation, so it may be measured or put into the reward, not into the loss.
  """
  if estimator == 'exact': return scores.kl
  d = jnp.clip(scores.logp - scores.reference, -20, 20)
  if estimator == 'k1': return d
  if estimator == 'k2': return d ** 2 / 2
  k3 = jnp.exp(-d) + d - 1
  if estimator == 'k3': return k3
  if estimator == 'k3_is': return ratio * k3
  raise ValueError(f'kl: {estimator!r}, expected one of {KL}')


def advantages(r_PR, *, std, eps):
  """(advantage_PR, weight_PR, facts). NaN rewards: advantage 0, weight 0, outside the statistics.

  std: 'group' divides by the group's standard deviation (ddof 1, https://arxiv.org/abs/2402.03300),
  'batch' by that of all centred rewards, 'none' by nothing (https://arxiv.org/abs/2503.20783). A group
  whose valid rewards are all equal, or are fewer than two, has advantage exactly 0.
  """
  valid = jnp.isfinite(r_PR)
  r = jnp.where(valid, r_PR, 0.)
  n_P1 = valid.sum(1, keepdims=True)
  centred = jnp.where(valid, r - r.sum(1, keepdims=True) / jnp.maximum(n_P1, 1), 0.)
  std_P1 = jnp.sqrt((centred ** 2).sum(1, keepdims=True) / jnp.maximum(n_P1 - 1, 1))
  # max == min, not std == 0: rounding of the mean leaves a spread that a division would blow up.
  high = jnp.where(valid, r_PR, -jnp.inf).max(1, keepdims=True)
  low = jnp.where(valid, r_PR, jnp.inf).min(1, keepdims=True)
  flat_P1 = ~(high > low)
  if std == 'group': scaled = centred / (std_P1 + eps)
  elif std == 'batch':
    count = jnp.maximum(valid.sum() - 1, 1)
    scaled = centred / (jnp.sqrt((centred ** 2).sum() / count) + eps)
  elif std == 'none': scaled = centred
  else: raise ValueError(f'std: {std!r}, expected one of {STDS}')
  return (jnp.where(flat_P1, 0., scaled), valid.astype(jnp.float32),
          {'std_P': std_P1[:, 0], 'flat_P': flat_P1[:, 0].astype(jnp.float32)})


def clipped(ratio, advantage, *, low, high):
  """(surrogate to maximise, clipped below, clipped above) of PPO with separate bounds."""
  if low < 0 or high < low:
    raise ValueError(f'clip: low={low}, high={high}; expected 0 <= low <= high')
  gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - low, 1 + high) * advantage)
  return gain, (ratio < 1 - low) & (advantage < 0), (ratio > 1 + high) & (advantage > 0)


def stop(x):
  return jax.lax.stop_gradient(x)
