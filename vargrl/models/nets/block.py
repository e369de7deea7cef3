"""What a kind of segment (vargrl/rollout/kinds) and a model say to each other: blocks of a row in,
hidden states out.

A net is a model bound to its weights. Every net offers

  prefill(prompt, group_key) -> Context what rows of one prompt have in common; computed once
  forward(context, blocks) -> [hidden]  one teacher-forced pass over a row, a hidden state per block
  CAST, gather_head                     how its weights are prepared, see vargrl/training/policy.py
  model, tokenizer, params, vq_params   what it was made of; one_segment, if rows are one picture

and, for the kinds that its policies may be made of, what those call while they sample: see the head
of each file in vargrl/rollout/kinds. Nothing here knows a mesh, a batch's keys or a loss.
"""

from typing import Any

import flax
import numpy as np


def static(default=None):
  """A field that is no leaf: a Python value."""
  return flax.struct.field(pytree_node=False, default=default)


@flax.struct.dataclass
class Block:
  """Consecutive places of a row, which one part of a model computes in one pass.

  x: what that part reads: tokens t_L, a tokenizer's inputs, hidden states [B, L, D] (B copies of a
  block, such as canvases or noise levels, do not see each other). position_L: int32, in the row.
  valid_L: bool, False for what comes after the end of a row. level_L: numpy; within the block a
  place sees those of its own level and lower ones: 0, 1, 2 .. is causal, all 0 is full, the number
  of a scale is causal by scale. expert: the part. kept: whether later blocks see it. options:
  whatever else the part takes, {name: array}.
  """

  x: Any
  position_L: Any
  valid_L: Any
  options: dict = flax.struct.field(default_factory=dict)
  level_L: np.ndarray = static()
  expert: str = static()
  kept: bool = static(True)
