"""Attention masks that are known while compiling, and those of packed rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.types import sizes


class SegmentMask(NamedTuple):
  """The mask of rows that hold several sequences: mask_LS within each of them, nothing between
  two.
  """

  mask_LS: np.ndarray
  segment_BL: jax.Array  # int32: the sequence that a token is of

  @property
  def mask_BLS(self):
    return jnp.asarray(self.mask_LS)[None] & (
      self.segment_BL[:, :, None] == self.segment_BL[:, None]
    )


def causal_by_scale(scales):
  """mask_LS [L, L] bool: a token sees its own scale and all coarser ones."""
  level_L = scale_index(scales)
  return level_L[:, None] >= level_L[None, :]


def scale_index(scales):
  """The number of the scale that each of the L tokens belongs to, int32 numpy [L]."""
  return np.repeat(np.arange(len(scales), dtype=np.int32), sizes(scales))
