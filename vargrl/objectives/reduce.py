"""The arithmetic of the objectives, once: weights and masks of tokens, ratios, KL estimators, sums
of rewards, values, advantages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.types import bounds, leading, sides, sizes

KL = ('exact', 'k1', 'k2', 'k3', 'k3_is')
LEVELS = ('token', 'scale', 'sequence')
STDS = ('group', 'batch', 'none')
COMBINE = ('sum', 'normalize')


def token_weights(scales, *, alpha, first, last):
  """weight_L, numpy float32, summing to 1 over the scales first .. last (counted from 0,
  inclusive).

  alpha: each token of a scale with n tokens weighs 1 / n^alpha (PANW,
  https://arxiv.org/abs/2601.02256); 0 is uniform, 1 gives every scale the same share, 0.5 is
  Infinity's (https://arxiv.org/abs/2412.04431)."""
  if not 0 <= first <= last < len(scales):
    raise ValueError(
      f'scales: first={first}, last={last} with {len(scales)} scales; '
      f'expected 0 <= first <= last <= {len(scales) - 1}'
    )
  if alpha < 0:
    raise ValueError(f'objective.loss.alpha: {alpha}, expected at least 0')
  parts = [
    np.full(n, float(n) ** -alpha if first <= i <= last else 0.0)
    for i, n in enumerate(sizes(scales))
  ]
  weight_L = np.concatenate(parts)
  return (weight_L / weight_L.sum()).astype(np.float32)


def spans(models, length):
  """[(name, start, stop)] of what `length` tokens of a row are: whole scales, from the first one,
  or all of models.plan."""
  scales = lambda at, name='': [
    (f'{name}scale_{i}', at + a, at + b) for i, (a, b) in enumerate(bounds(models.scales))
  ]
  if not models.plan:
    return scales(0)[: len(leading(models.scales, length))]
  out, at, seen = [], 0, {'words': 0, 'bits': 0}
  for kind, count in models.plan:
    number = seen[kind]
    seen[kind] += 1
    if kind == 'words':
      out.append((f'words_{number}' if number else 'words', at, at + count))
    else:
      out += scales(at, f'picture_{number}/' if number else '')
    at += count
  return out


def weights(models, length, *, alpha, first, last):
  """token_weights of a row; where words and pictures take turns, a word weighs as the token of a
  scale that has but one."""
  if not models.plan:
    scales = leading(models.scales, length)
    return token_weights(scales, alpha=alpha, first=first, last=min(last, len(scales) - 1))
  one = token_weights(models.scales, alpha=alpha, first=first, last=last)
  one *= float(sizes(models.scales)[first]) ** -alpha / one[bounds(models.scales)[first][0]]
  weight_L = np.concatenate(
    [np.ones(count) if kind == 'words' else one for kind, count in models.plan]
  )
  return (weight_L / weight_L.sum()).astype(np.float32)


def masked(weight_11L, mask_PRL):
  """weight_PRL of the tokens that a mask leaves, summing to 1 over each row again, or to 0 where it
  leaves none; without a mask (None) weight_11L itself."""
  if mask_PRL is None:
    return weight_11L
  weight_PRL = weight_11L * mask_PRL
  total_PR1 = weight_PRL.sum(-1, keepdims=True)
  return weight_PRL / jnp.where(total_PR1 > 0, total_PR1, 1.0)


def propagate(mask_Byx, scales):
  """A mask of pixels -> mask_BL of tokens, float32 0 or 1, L over all scales.

  A token of the finest grid is in it if any pixel of its cell is, one of a coarser grid if its area
  meets any such token's: cell i of m over n covers floor(i n / m) .. ceil((i + 1) n / m), as in
  adaptive pooling (https://arxiv.org/abs/2601.02256). An image without any pixel in the mask has
  all tokens in it: a reward that is about no place is about the whole."""
  fine = sides(scales[-1])
  mask_Byx = mask_Byx.astype(jnp.float32)
  cells = lambda mask, to: pool(mask, *(covers(n, m) for n, m in zip(mask.shape[1:], to)))
  fine_Bhw = cells(mask_Byx, fine)
  parts = [cells(fine_Bhw, sides(s)).reshape(len(mask_Byx), -1) for s in scales]
  mask_BL = jnp.concatenate(parts, -1)
  return jnp.where(mask_BL.max(-1, keepdims=True) > 0, mask_BL, 1.0)


def covers(n, m):
  """[m, n] numpy float32: which of n pixels each of m cells covers, in part or whole."""
  i, j = np.arange(m)[:, None], np.arange(n)[None]
  return ((j >= i * n // m) & (j < -(-(i + 1) * n // m))).astype(np.float32)


def pool(mask_Byx, rows, columns):
  """1 where a cell covers any 1."""
  return (jnp.einsum('Byx,hy,wx->Bhw', mask_Byx, rows, columns) > 0).astype(jnp.float32)


def log_ratio(d_PRL, active, spans, *, level):
  """log pi - log pi_old -> what the ratio is the exponential of, still [P, R, L].

  'scale' and 'sequence' are geometric means (the product over 256 tokens would be noise alone) over
  the active tokens, `active` being 1 or 0 for each, [1, 1, L] or [P, R, L]. A scale without any has
  the mean of all its tokens: nothing is learned from it, it is only looked at. spans: of `spans`;
  words are a scale too."""
  if level == 'token':
    return d_PRL
  if level not in LEVELS:
    raise ValueError(f'level: {level!r}, expected one of {LEVELS}')

  def mean(d, active):
    active = jnp.where(active.sum(-1, keepdims=True) > 0, active, 1.0)
    return jnp.broadcast_to(
      (d * active).sum(-1, keepdims=True) / active.sum(-1, keepdims=True), d.shape
    )

  if level == 'sequence':
    return mean(d_PRL, active)
  return jnp.concatenate([mean(d_PRL[..., a:b], active[..., a:b]) for _, a, b in spans], -1)


def kl(scores, ratio, *, estimator):
  """KL(policy || reference) per token, as a loss.

  'exact' sums over the vocabulary. With d = logp - ref: k2 = d^2 / 2 has the exact KL's gradient;
  k3 = exp(-d) + d - 1 has that of KL(reference || policy); k3_is = ratio k3 the exact one's again;
  k1 = d has none in expectation, so it may be measured or put into the reward, not into the loss.
  """
  if estimator == 'exact':
    return scores.kl
  d = jnp.clip(scores.logp - scores.reference, -20, 20)
  if estimator == 'k1':
    return d
  if estimator == 'k2':
    return d**2 / 2
  k3 = jnp.exp(-d) + d - 1
  if estimator == 'k3':
    return k3
  if estimator == 'k3_is':
    return ratio * k3
  raise ValueError(f'kl: {estimator!r}, expected one of {KL}')


def advantages(r_PR, *, std, eps):
  """(advantage_PR, weight_PR, facts). NaN rewards: advantage 0, weight 0, outside the statistics.

  std: 'group' divides by the group's standard deviation (ddof 1, https://arxiv.org/abs/2402.03300),
  'batch' by that of all centred rewards, 'none' by nothing (https://arxiv.org/abs/2503.20783). A
  group whose valid rewards are all equal, or are fewer than two, has advantage exactly 0."""
  valid = jnp.isfinite(r_PR)
  r = jnp.where(valid, r_PR, 0.0)
  n_P1 = valid.sum(1, keepdims=True)
  centred = jnp.where(valid, r - r.sum(1, keepdims=True) / jnp.maximum(n_P1, 1), 0.0)
  std_P1 = jnp.sqrt((centred**2).sum(1, keepdims=True) / jnp.maximum(n_P1 - 1, 1))
  # max == min, not std == 0: rounding of the mean leaves a spread that a division would blow up.
  high = jnp.where(valid, r_PR, -jnp.inf).max(1, keepdims=True)
  low = jnp.where(valid, r_PR, jnp.inf).min(1, keepdims=True)
  flat_P1 = ~(high > low)
  if std == 'group':
    scaled = centred / (std_P1 + eps)
  elif std == 'batch':
    count = jnp.maximum(valid.sum() - 1, 1)
    scaled = centred / (jnp.sqrt((centred**2).sum() / count) + eps)
  elif std == 'none':
    scaled = centred
  else:
    raise ValueError(f'std: {std!r}, expected one of {STDS}')
  return (
    jnp.where(flat_P1, 0.0, scaled),
    valid.astype(jnp.float32),
    {'std_P': std_P1[:, 0], 'flat_P': flat_P1[:, 0].astype(jnp.float32)},
  )


def normalized_sum(each, weights, *, eps):
  """r_PR: rewards {name: [P, R]} centred, divided by their group's deviation (+ eps), times their
  weight, summed: then no reward rules by its unit alone (https://arxiv.org/abs/2601.05242). A row
  without a verdict of every one of them is NaN, and outside of all means."""
  valid = functools.reduce(jnp.logical_and, [jnp.isfinite(r_PR) for r_PR in each.values()])
  parts = [
    weights[name] * advantages(jnp.where(valid, r_PR, jnp.nan), std='group', eps=eps)[0]
    for name, r_PR in each.items()
  ]
  return jnp.where(valid, sum(parts), jnp.nan)


def soft_value(r_PRK, *, eta):
  """value_PR = eta log mean_K exp(r / eta) of the verdicts there are, NaN without any.

  https://arxiv.org/abs/2601.02256: between their mean (eta large) and the best of them (eta small).
  """
  valid_PRK = jnp.isfinite(r_PRK)
  count_PR = valid_PRK.sum(-1)
  r_PRK = r_PRK.astype(jnp.float32)
  top_PR = jnp.where(count_PR > 0, jnp.where(valid_PRK, r_PRK, -jnp.inf).max(-1), 0.0)
  sum_PR = jnp.where(valid_PRK, jnp.exp((r_PRK - top_PR[..., None]) / eta), 0.0).sum(-1)
  return jnp.where(count_PR > 0, top_PR + eta * jnp.log(sum_PR / jnp.maximum(count_PR, 1)), jnp.nan)


def clipped(ratio, advantage, *, low, high):
  """(surrogate to maximise, clipped below, clipped above) of PPO with separate bounds."""
  if low < 0 or high < low:
    raise ValueError(f'clip: low={low}, high={high}; expected 0 <= low <= high')
  gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - low, 1 + high) * advantage)
  return gain, (ratio < 1 - low) & (advantage < 0), (ratio > 1 + high) & (advantage > 0)


def stop(x):
  return jax.lax.stop_gradient(x)
