"""The arithmetic of the objectives, once: ratios, KL estimators, masks of pixels, sums of rewards,
values, advantages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.types import sides

STDS = ('group', 'batch', 'none')
REWARD_MIXES = ('sum', 'normalize')


def metric_groups(spans):
  """[(label, index)] of what metrics tell apart in a row: texts by name, pictures by scale. index:
  a slice, or a numpy array where there are several pictures."""
  out = []
  for span in spans:
    if not span.parts:
      out.append((span.name, slice(span.start, span.stop)))
    for i, part in enumerate(span.parts):
      at = span.start + np.flatnonzero(span.part_A == i)
      whole = at[-1] - at[0] + 1 == len(at)
      label = part if span.name == 'image' else f'{span.name}/{part}'
      out.append((label, slice(at[0], at[-1] + 1) if whole else at))
  return out


def pixel_mask_to_tokens(mask_Byx, scales):
  """A mask of pixels -> mask_BL of tokens, float32 0 or 1, L over all scales.

  A token of the finest grid is in it if any pixel of its cell is, one of a coarser grid if its area
  meets any such token's: cell i of m over n covers floor(i n / m) .. ceil((i + 1) n / m), as in
  adaptive pooling (https://arxiv.org/abs/2601.02256). An image without any pixel in the mask has
  all tokens in it: a reward that is about no place is about the whole."""
  fine = sides(scales[-1])
  mask_Byx = mask_Byx.astype(jnp.float32)
  cells = lambda mask, to: pool(mask, *(pooling_matrix(n, m) for n, m in zip(mask.shape[1:], to)))
  fine_Bhw = cells(mask_Byx, fine)
  parts = [cells(fine_Bhw, sides(s)).reshape(len(mask_Byx), -1) for s in scales]
  mask_BL = jnp.concatenate(parts, -1)
  return jnp.where(mask_BL.max(-1, keepdims=True) > 0, mask_BL, 1.0)


def pooling_matrix(n, m):
  """[m, n] numpy float32: which of n pixels each of m cells covers, in part or whole."""
  i, j = np.arange(m)[:, None], np.arange(n)[None]
  return ((j >= i * n // m) & (j < -(-(i + 1) * n // m))).astype(np.float32)


def pool(mask_Byx, rows, columns):
  """1 where a cell covers any 1."""
  return (jnp.einsum('Byx,hy,wx->Bhw', mask_Byx, rows, columns) > 0).astype(jnp.float32)


def log_ratio(d_PRA, active, terms):
  """log pi - log pi_old -> what the ratio is the exponential of, still [P, R, A].

  By each segment's level: 'token' as it is; 'scale' and 'sequence' are geometric means (the product
  over 256 tokens would be noise alone) over the active actions of a scale or of the segment, active
  being 1 or 0 for each, [1, 1, A] or [P, R, A]. A scale without any has the mean of all its
  actions: nothing is learned from it, it is only looked at."""
  if set(terms.level) == {'token'}:
    return d_PRA

  def mean(d, active):
    active = jnp.where(active.sum(-1, keepdims=True) > 0, active, 1.0)
    total = (d * active).sum(-1, keepdims=True) / active.sum(-1, keepdims=True)
    return jnp.broadcast_to(total, d.shape)

  out = []
  for span, level in zip(terms.spans, terms.level):
    if level == 'token':
      out.append(d_PRA[..., span.start : span.stop])
    elif level == 'sequence' or not span.parts:
      at = slice(span.start, span.stop)
      out.append(mean(d_PRA[..., at], active[..., at]))
    else:
      out += [mean(d_PRA[..., at], active[..., at]) for at in runs(span)]
  return jnp.concatenate(out, -1)


def runs(span):
  """Slices of a row: the consecutive actions of a picture that are of one scale."""
  cuts = np.flatnonzero(np.diff(span.part_A)) + 1
  at = [0, *cuts, len(span.part_A)]
  return [slice(span.start + a, span.start + b) for a, b in zip(at, at[1:])]


def penalty(scores, d_PRA, terms):
  """The KL(policy || reference) of each action, or what its kind has in its place, by each
  segment's estimator, as a loss. d_PRA: log pi - log pi_old.

  'exact' is over the whole distribution. With d = logp - ref_logp: k2 = d^2 / 2 has the exact KL's
  gradient; k3 = exp(-d) + d - 1 has that of KL(reference || policy); k3_is = ratio k3 the exact
  one's again; k1 = d has none in expectation, so it may be measured or put into the reward, not
  into the loss (http://joschu.net/blog/kl-approx.html)."""
  if len(set(terms.estimator)) == 1:
    return estimate(scores, jnp.exp(d_PRA), terms.estimator[0])
  out = [
    estimate(scores, jnp.exp(d_PRA), estimator)[..., span.start : span.stop]
    for span, estimator in zip(terms.spans, terms.estimator)
  ]
  return jnp.concatenate(out, -1)


def estimate(scores, ratio, estimator):
  """The penalty of all actions by one estimator."""
  if estimator == 'exact':
    return scores.penalty
  d = jnp.clip(scores.logp - scores.ref_logp, -20, 20)
  if estimator == 'k1':
    return d
  if estimator == 'k2':
    return d**2 / 2
  k3 = jnp.exp(-d) + d - 1
  if estimator == 'k3':
    return k3
  if estimator == 'k3_is':
    return ratio * k3
  raise ValueError(f'estimator: {estimator!r}, expected one of exact, k1, k2, k3, k3_is')


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


def clip_surrogate(log_ratio, advantage, *, low, high):
  """(surrogate to maximise, clip_surrogate below, clip_surrogate above) of PPO with separate
  bounds, numbers or one for each action; ratio times advantage minus advantage, which has the same
  gradient.

  It works on ratio - 1, as a clip of 1e-6 is eight float32 steps beside 1."""
  if not (np.all(np.asarray(low) >= 0) and np.all(np.asarray(high) >= low)):
    raise ValueError(f'clip: low={low}, high={high}; expected 0 <= low <= high')
  ratio, hold = jnp.exp(log_ratio), jax.lax.stop_gradient
  change = hold(jnp.expm1(log_ratio)) + (ratio - hold(ratio))  # the gradient is exp's, to the bit
  gain = jnp.minimum(change * advantage, jnp.clip(change, -low, high) * advantage)
  return gain, (change < -low) & (advantage < 0), (change > high) & (advantage > 0)
