"""Rotary position embeddings (https://arxiv.org/abs/2104.09864)."""

import jax.numpy as jnp
import numpy as np


def rope_frequencies(pairs, theta):
  """Of RoPE (https://arxiv.org/abs/2104.09864), by pair of channels: theta ** (-i / pairs), float32
  numpy [h].
  """
  return 1 / np.float32(theta) ** (np.arange(pairs, dtype=np.float32) / np.float32(pairs))


def rope_angles(position_aBL, axis_h, frequency_h):
  """(cos, sin), each float32 [B, 1, L, h], of the angles by which `apply_rope` rotates h pairs of
  channels: pair number i by position_aBL[axis_h[i]] * frequency_h[i]."""
  angle_hBL = position_aBL.astype(jnp.float32)[np.asarray(axis_h)] * frequency_h[:, None, None]
  angle_B1Lh = jnp.moveaxis(angle_hBL, 0, -1)[:, None]
  return jnp.cos(angle_B1Lh), jnp.sin(angle_B1Lh)


def apply_rope(x_BNLH, angles):
  """x_BNLH with each pair of channels (i, i + h) of a head rotated by `angles`, the (cos, sin) of
  rope_angles; float32 inside."""
  cos, sin = angles
  a, b = jnp.split(x_BNLH.astype(jnp.float32), 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BNLH.dtype)
