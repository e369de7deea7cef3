"""The sampler of policies whose tokens are bits (vargrl/models/infinity.py): rollout/next_scale.py
with other settings."""

import dataclasses
from typing import ClassVar

from vargrl.rollout import next_scale

SAME = ('scales', 'bits')  # what policy and tokenizer must have in common
generate, branch, logprobs = next_scale.generate, next_scale.branch, next_scale.logprobs
decode, keys = next_scale.decode, next_scale.keys


@dataclasses.dataclass(frozen=True)
class Config:
  """The sampler, and the policy whose log-probabilities count. guidance, temperature: a number, or
  one for each scale.

  guidance g: logits are g conditional + (1 - g) unconditional, so that 1 is none
  (https://arxiv.org/abs/2207.12598). top_p: of each bit; the less likely value is never drawn if
  its probability is at most 1 - top_p; 0 switches it off. record, weights: see next_scale.Config.
  """

  guidance: float | tuple[float, ...]
  temperature: float | tuple[float, ...]
  top_p: float
  record: str
  weights: str = 'sharded'
  top_k: ClassVar = 0  # of two values: nothing to choose
  wide: ClassVar = 32  # logits of a token are as much smaller than those of a codebook

  def __post_init__(self):
    next_scale.check(self)
    for name, least in (('guidance', 0), ('temperature', 1e-6)):
      if min(numbers(getattr(self, name))) < least:
        raise ValueError(f'rollout: {name}={getattr(self, name)}, expected at least {least}')
    if not 0 <= self.top_p <= 1:
      raise ValueError(f'rollout: top_p={self.top_p}, expected 0 <= top_p <= 1')

  @property
  def paired(self):
    return set(numbers(self.guidance)) != {1}

  @property
  def records_pair(self):
    return self.paired and self.record != 'cond'

  def strengths(self, count):
    """How far each scale's logits go beyond the conditional ones."""
    return [g - 1 for g in each('guidance', self.guidance, count)]

  def temperatures(self, count):
    return each('temperature', self.temperature, count)


def numbers(x):
  return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def each(name, x, count):
  """One number for each scale."""
  found = numbers(x) if len(numbers(x)) > 1 else numbers(x) * count
  if len(found) != count:
    raise ValueError(f'rollout: {name}={x}, {len(found)} numbers found, {count} scales expected')
  return list(found)


# What https://github.com/FoundationVision/Infinity samples with: 'infinity' in scripts/eval.sh,
# 'infinity-demo' in scripts/infer.sh and its notebook.
PRESETS = {
  'infinity': Config(guidance=4.0, temperature=1.0, top_p=0.97, record='cond'),
  'infinity-demo': Config(guidance=3.0, temperature=0.5, top_p=0.97, record='cond'),
}
