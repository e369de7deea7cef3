"""Settings of a loss by segment: weight, clip, penalty and how they count for each action of a row.

`objective.loss` has scalars, which hold for all segments, and `segments`, a table of (pattern,
{setting: value}) as optim.scale is one of parameters: the first pattern that matches a segment's
name decides what differs there. Every segment must be covered, and every pattern must decide.
"""

import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vargrl.io import numbers

LEVELS = ('token', 'scale', 'sequence')
ESTIMATORS = ('exact', 'k1', 'k2', 'k3', 'k3_is')


class Terms(NamedTuple):
  """Settings of a row's A actions. spans: of them. weight_A, low_A, high_A, penalty_A: float32
  numpy. level, estimator: one per span."""

  spans: tuple
  weight_A: np.ndarray
  low_A: np.ndarray
  high_A: np.ndarray
  penalty_A: np.ndarray
  level: tuple
  estimator: tuple


def leading_spans(spans, length):
  """The spans of a row's first `length` actions: whole segments, or whole parts of a picture."""
  out = []
  for span in spans:
    if span.start >= length:
      break
    n = min(span.stop, length) - span.start
    out.append(span._replace(stop=span.start + n, part_A=span.part_A[:n]))
  last = out[-1]
  if last.parts and len(last.part_A) < len(spans[len(out) - 1].part_A):
    whole = spans[len(out) - 1].part_A
    if whole[len(last.part_A)] == last.part_A[-1]:
      raise ValueError(f'{last.name}: {length} actions of a row, expected whole scales')
    out[-1] = last._replace(parts=last.parts[: last.part_A[-1] + 1])
  return tuple(out)


def by_segment(spans, table, scalars):
  """[{setting: value}] of each span: scalars, changed by the first pattern of the table that
  matches its name. A ValueError names a segment without a pattern, an idle pattern, an unknown
  setting."""
  out, used = [], set()
  for span in spans:
    hits = [(p, v) for p, v in table if re.search(p, span.name)]
    if not hits:
      raise ValueError(
        f'objective.loss.segments: no pattern covers the segment {span.name!r}, one of '
        f'{[p for p, _ in table]} expected to'
      )
    pattern, found = hits[0][0], dict(hits[0][1])
    used.add(pattern)
    if unknown := sorted(set(found) - set(scalars)):
      raise ValueError(
        f'objective.loss.segments: {pattern!r} has {unknown[0]!r}, expected some of '
        f'{sorted(scalars)}'
      )
    out.append(scalars | found)
  if idle := [p for p, _ in table if p not in used]:
    raise ValueError(
      f'objective.loss.segments: the pattern {idle[0]!r} decides no segment of '
      f'{[s.name for s in spans]}'
    )
  return out


def part_weights(span, *, scale_weight_power, first_scale, last_scale):
  """float64 numpy: the weight of each action of a span before they are made to sum to anything.

  scale_weight_power: each token of a scale with n tokens weighs 1 / n^power (PANW,
  https://arxiv.org/abs/2601.02256); 0 is uniform, 1 gives every scale the same share, 0.5 is
  Infinity's (https://arxiv.org/abs/2412.04431). first_scale, last_scale: inclusive, counted from 0;
  the others weigh 0; -1 is the last one. A text weighs 1 everywhere.
  """
  name = 'objective.loss.scale_weight_power'
  numbers.check_number(name, scale_weight_power, least=0, finite=False)
  if not span.parts:
    return np.ones(len(span.part_A))
  count = len(span.parts)
  last = count - 1 if last_scale == -1 else last_scale
  if not 0 <= first_scale <= last < count:
    raise ValueError(
      f'objective.loss: first_scale={first_scale}, last_scale={last_scale} with {count} scales; '
      f'expected 0 <= first_scale <= last_scale <= {count - 1}, or last_scale=-1'
    )
  sizes = np.bincount(span.part_A, minlength=count)
  pictures = picture_count(span)
  one = [
    float(n // pictures) ** -scale_weight_power if first_scale <= i <= last else 0.0
    for i, n in enumerate(sizes)
  ]
  return np.array(one)[span.part_A]


def picture_count(span):
  """How many pictures the actions of a span are."""
  return int((np.diff(span.part_A) < 0).sum()) + 1


def terms(spans, length, *, segments, **scalars):
  """The Terms of a row's first `length` actions. segments: the table; scalars: weight, clip,
  clip_high, penalty, estimator, level, scale_weight_power, first_scale, last_scale. The weights of
  a segment sum to its `weight`."""
  out, whole = [], by_segment(spans, segments, scalars)
  weights = ('scale_weight_power', 'first_scale', 'last_scale')
  leading = leading_spans(spans, length)
  for span, cut, s in zip(spans, leading, whole):
    numbers.check_number(f'objective.loss ({span.name}).weight', s['weight'], least=0)
    w = part_weights(span, **{name: s[name] for name in weights})[: len(cut.part_A)]
    fill = lambda x, like=w: np.full(like.shape, x, np.float32)
    weight = (w / w.sum()).astype(np.float32) * np.float32(s['weight'])
    out.append((weight, fill(s['clip']), fill(s['clip_high']), fill(s['penalty'])))
  whole = whole[: len(leading)]
  arrays = (np.concatenate(x) for x in zip(*out))
  return Terms(leading, *arrays, *(tuple(s[k] for s in whole) for k in ('level', 'estimator')))


def check(spans, *, segments, reference, **scalars):
  """Refuses settings that cannot learn, before anything is compiled."""
  for span, s in zip(spans, by_segment(spans, segments, scalars)):
    at = f'objective.loss ({span.name})'
    if s['level'] not in LEVELS:
      raise ValueError(f'{at}: level={s["level"]!r}, expected one of {LEVELS}')
    if s['estimator'] not in ESTIMATORS:
      raise ValueError(f'{at}: estimator={s["estimator"]!r}, expected one of {ESTIMATORS}')
    if not 0 <= s['clip'] <= s['clip_high']:
      raise ValueError(
        f'{at}: clip={s["clip"]}, clip_high={s["clip_high"]}; expected 0 <= clip <= clip_high'
      )
    numbers.check_number(f'{at}.penalty', s['penalty'], least=0)
    if s['penalty'] and s['estimator'] == 'k1':
      raise ValueError(
        f'{at}: estimator=k1 has no gradient in expectation, expected exact, k2, k3 or k3_is '
        '(k1 in '
        'the reward is objective.collect.kl_reward)'
      )
    if s['penalty'] and not reference:
      raise ValueError(f'{at}: penalty={s["penalty"]} without a reference in the config')
  out = terms(spans, spans[-1].stop, segments=segments, **scalars)
  if not out.weight_A.any():
    raise ValueError('objective.loss.segments: every weight is 0, expected one that is not')


def masked_weights(terms, mask_PRA):
  """weight_PRA of the actions that a mask leaves, summing to its weight in each segment of a row
  again, or to 0 where it leaves none of it; without a mask (None) weight_A with axes P and R of
  1."""
  weight_11A = jnp.asarray(terms.weight_A)[None, None]
  if mask_PRA is None:
    return weight_11A
  out = []
  for span in terms.spans:
    at = slice(span.start, span.stop)
    weight_PRA = weight_11A[..., at] * mask_PRA[..., at]
    total_PR1 = weight_PRA.sum(-1, keepdims=True)
    share = float(terms.weight_A[at].sum(dtype=np.float64))
    weight_PRA = weight_PRA / jnp.where(total_PR1 > 0, total_PR1, 1.0)
    out.append(weight_PRA if abs(share - 1) < 1e-6 else weight_PRA * share)
  return jnp.concatenate(out, -1)
