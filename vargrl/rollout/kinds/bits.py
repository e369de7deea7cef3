"""A picture drawn scale by scale whose tokens are bits, each drawn on its own: Infinity
(https://arxiv.org/abs/2412.04431). Built on scales.py.

Data of a row: as of scales, with tokens int32 0 or 1 [L, e]. An action is a token; its
log-probability, entropy and KL are sums over its e bits, its accuracy their mean.
"""

import dataclasses
import functools
from typing import ClassVar

import jax

from vargrl.rollout import sampling
from vargrl.rollout.kinds import scales as by_scale

TEXT, ENDS = False, False
CHUNK = 32  # logits of a token are as much smaller than those of a codebook
FROM_MODEL = ('scales', 'bits')
SHARED = ('scales', 'bits')
NEUTRAL = dict(guidance=1.0, temperature=1.0, top_p=0.0, logp_of='cond')
PACKED_SIZE, PACKED_ONLY = ('images', 'max_images'), ('images',)
length, parts, mask, latents, inputs = (
  by_scale.length,
  by_scale.parts,
  by_scale.mask,
  by_scale.latents,
  by_scale.inputs,
)
features, outputs, actions = by_scale.features, by_scale.outputs, by_scale.actions


@dataclasses.dataclass(frozen=True)
class Config:
  """How bits are sampled, and whose log-probabilities count.

  guidance, temperature, logp_of, scales: see by_scale.Config. top_p: of each bit; the less likely
  value is never drawn if its probability is at most 1 - top_p; 0 is off. images: pictures of a
  packed row. bits: of a token, the policy's.
  """

  guidance: float | tuple[float, ...]
  temperature: float | tuple[float, ...]
  top_p: float
  logp_of: str
  scales: tuple = ()
  bits: int = 1
  images: int = 1
  top_k: ClassVar = 0  # of two values: nothing to choose
  guidance_ramp: ClassVar = False

  def __post_init__(self):
    by_scale.check(self)

  guided = by_scale.Config.guided
  logp_guided = by_scale.Config.logp_guided
  strengths = by_scale.Config.strengths
  temperatures = by_scale.Config.temperatures


# What https://github.com/FoundationVision/Infinity samples with: 'infinity' in scripts/eval.sh,
# 'infinity-demo' in scripts/infer.sh and its notebook.
PRESETS = {
  'infinity': Config(guidance=4.0, temperature=1.0, top_p=0.97, logp_of='cond'),
  'infinity-demo': Config(guidance=3.0, temperature=0.5, top_p=0.97, logp_of='cond'),
}


def reduce_bits(x):
  """What is known of every bit [L, e], summed over the bits of a token."""
  return x.sum(-1)


def choices(c):
  """How many draws an action is made of."""
  return c.bits


sample = functools.partial(by_scale.sample, reduce=reduce_bits)
branches = functools.partial(by_scale.branches, reduce=reduce_bits)


def score(c, logits, tokens, ref_logits=None):
  """Scores of tokens [L, e] under logits [L, e, 2]."""
  out = sampling.scores(logits, tokens, ref_logits)
  return jax.tree.map(reduce_bits, out).replace(accuracy=out.accuracy.mean(-1))
