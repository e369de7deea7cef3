"""What the rewards say of the samples of a step: the pictures and texts of its rows."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.metrics import average
from vargrl.objectives import reduce
from vargrl.parallel import multihost
from vargrl.types import Samples


class Verdicts(NamedTuple):
  """What the rewards say of a step's samples: r_B, each reward's by name, and metrics, on the host;
  value_PR on the device."""

  r_B: np.ndarray
  each: dict
  metrics: dict
  value_PR: jax.Array


def judge(policy, scorer, frozen, image_Byxc, rollout, label_P, shape):
  """(r_B with NaN for rows without a verdict, {name: r_B}, {metric}) of a Rollout whose P R rows
  have K pictures each, shape (P, R, K); of rows without pictures K is 1. A row's texts go with each
  of its pictures."""
  P, R, K = shape
  label_B = np.repeat(label_P, R * K)
  texts = {k: multihost.to_numpy(v) for k, v in texts_of(policy, rollout, K).items()}
  samples = Samples(image_Byxc, texts, {'label': label_B})
  r_B, each, counts = scorer.score(frozen, samples, group_size=R * K)
  missing_B = without_images(policy, rollout, K)
  if missing_B is None or image_Byxc is None:
    return r_B, each, counts
  hide = lambda x_B: np.where(missing_B, np.nan, x_B)
  each = {name: hide(x_B) for name, x_B in each.items()}
  return hide(r_B), each, counts | {'images': average((~missing_B).astype(np.float32))}


def lower(policy, scorer, stage, frozen, image_Byxc, rollout, label_B, K):
  """Lowers the program of the device rewards of rows with K pictures each, where a stage does."""
  if not (stage.abstract and scorer.device):
    return
  texts = stage.call('', jax.jit(partial(texts_of, policy, K=K)), rollout)
  stage.lower('rewards', scorer.device, frozen, Samples(image_Byxc, texts, {'label': label_B}))


def texts_of(policy, rollout, K):
  """{segment: token ids int32 [B, L], -1 after their end} of the texts that rows said, B = P R K.
  What was given is part of the prompt's record."""
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  out = {}
  for span in policy.spans:
    if span.name in policy.texts and not span.given:
      tokens = flat(rollout.data[span.name]['tokens'])
      mask = flat(rollout.mask)[:, span.start : span.stop]
      out[span.name] = jnp.repeat(jnp.where(mask > 0, tokens, -1), K, 0)
  return out


def merge_metrics(first, second, r_B):
  """{metric} of rewards that were asked twice: calls and rows that failed add up, `reward/masked`
  is of the rows r_B that were kept; averages are of both draws."""
  out = dict(first)
  for name, x in second.items():
    out[name] = x.merge(out[name]) if hasattr(x, 'merge') else x + out[name]
  return out | {'reward/masked': int(np.isnan(r_B).sum())}


def without_images(policy, rollout, K):
  """bool [B]: pictures that were not drawn, as their row ended before; the K of a row adjacent."""
  pictures = [span for span in policy.spans if span.picture and not span.given]
  if rollout.mask is None or not pictures:
    return None
  mask_PRA = multihost.to_numpy(rollout.mask)
  drawn = [mask_PRA[..., span.start : span.stop].any(-1) for span in pictures]
  missing = ~np.stack(drawn, -1)
  return missing.reshape(-1) if K == len(pictures) else missing.all(-1).reshape(-1)


def mix_rewards(r_B, each, shape, reward_mix, rewards, eps):
  """r_PRK: the weighted sum of the rewards as they are, or of each made comparable within its
  prompt."""
  P, R, K = shape
  if reward_mix == 'sum':
    return jnp.asarray(r_B).reshape(shape)
  groups = {name: jnp.asarray(x_B).reshape(P, R * K) for name, x_B in each.items()}
  weights = {name: rewards[name]['weight'] for name in each}
  return reduce.normalized_sum(groups, weights, eps=eps).reshape(shape)


def best_and_worst(image_Byxc, label_B, r_B, captions):
  """{'best', 'worst': (images, captions)}: rows of a step, with prompt and reward."""
  order = np.argsort(np.where(np.isfinite(r_B), r_B, -np.inf))[::-1]
  order = order[np.isfinite(r_B[order])]
  caption = lambda i: f'{captions(label_B[i : i + 1])[0]}\n{r_B[i]:.3g}'
  n = min(8, len(order))
  return {
    name: (multihost.to_numpy(image_Byxc[rows]), [caption(i) for i in rows])
    for name, rows in {'best': order[:n], 'worst': order[len(order) - n :]}.items()
    if n
  }
