"""The parts of a unified model (models/unified.py) at work on one prompt, and what its decoder
remembers of a row.
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from vargrl.models import infinity, qwen2
from vargrl.parallel.rules import shard
from vargrl.rollout import next_token
from vargrl.types import Prompt


class Parts(NamedTuple):
  """A unified model with its weights: what its parts do, each (method, *arguments) -> result."""

  c: Any
  lm: Any
  params: Any
  words: Callable  # of the language model
  bits: Callable  # of the decoder
  both: Callable  # of all


def parted(model, params):
  """The Parts of it."""

  def of(part, params):
    return lambda method, *args: part.apply({'params': params}, *args, method=method)

  lm = qwen2.Model(model.c.lm)
  return Parts(
    model.c,
    lm,
    params,
    of(lm, params['lm']),
    of(infinity.Model(model.c.draw), params['drawer']),
    of(model, params),
  )


def read(parts, prompt):
  """(known, see next_token.begin, x_1SD of a prompt's words after all layers, which of them are
  there).
  """
  given = Prompt(*(prompt.get(name) for name in ('tokens', 'length', 'position', 'place')))
  x_1SD = parts.both('see', jax.tree.map(lambda x: x[None], prompt))
  known, h_1SD = next_token.read(parts.lm, parts.params['lm'], given, shard(x_1SD, 'BLD'))
  return known, h_1SD, (jnp.arange(h_1SD.shape[1]) < prompt['length'])[None]


def last(seen_1S):
  """Where the last one is that is there."""
  return seen_1S & (jnp.cumsum(seen_1S, 1) == seen_1S.sum(1, keepdims=True))


def remembered(parts, memory):
  """(parts, masks) of the decoder's memory: all but the token that begins its picture. memory:
  (h_BSD, which of them are there, which one it is or None)."""
  masks = tuple(seen if begins is None else seen & ~begins for _, seen, begins in memory)
  return tuple(parts.both('outward', h) for h, _, _ in memory), masks
