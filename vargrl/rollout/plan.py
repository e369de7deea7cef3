"""A row is a plan of segments, each of a kind: VAR is one segment of scales, VARGPT text, bits,
text.

A kind is a file in vargrl/rollout/kinds, written for one row of one prompt; contracts.py lists what
it offers. generate.py and score.py own the vmaps over prompts and rows, the prompt's shared prefix,
chunks of logits, masks and ends.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from vargrl.types import Span


class Segment(NamedTuple):
  """name: its key in a rollout's data, and what patterns of settings match. kind: a module, or any
  object with its functions. c: its Config. given: its data is the prompt's, under its name; else it
  is sampled."""

  name: str
  kind: Any
  c: Any
  given: bool = False


def spans(plan):
  """Where each segment's actions lie among those of a row: a tuple of types.Span."""
  out, start = [], 0
  for name, kind, c, given in plan:
    names, part_A = kind.parts(c)
    stop = start + kind.length(c)
    out.append(Span(name, start, stop, names, part_A, kind.choices(c), given, not kind.TEXT))
    start = stop
  return tuple(out)


def rows_end(plan):
  """Whether rows may end, or hold what is not sampled: else no mask is needed."""
  return len(plan) > 1 or any(kind.ENDS or given for _, kind, _, given in plan)


def row_mask(plan, data):
  """float32 [A]: 1 for the actions that the row took, from the data alone: rollouts and supervised
  rows have the same. Given segments have mask 0 and end nothing."""
  alive, out = jnp.array(True), []
  for name, kind, c, given in plan:
    mask_A, goes_on = kind.mask(c, data[name])
    out.append(mask_A & alive & (not given))
    alive &= goes_on | given
  return jnp.concatenate(out).astype(jnp.float32)
