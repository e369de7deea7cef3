"""A layer of Infinity's decoder (vargrl/models/infinity.py): attention by scales with RoPE in two
dimensions, and cross-attention to a memory."""

import functools
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vargrl.models import decoder, schedules
from vargrl.models.layers import attention, norms
from vargrl.models.layers.einsum import Einsum, normal, with_axes
from vargrl.parallel.rules import gather


@functools.lru_cache(8)
def rope_grid_angles(c):
  """float32 [L, H]: the angle by which a token's place rotates each channel of a head, in radians.

  The first half of the channels is rotated by its row on the grid, the other half by its column;
  two neighbouring channels have the same angle."""
  quarter = c.head_dim // 4
  theta = 10000.0 ** (-np.arange(quarter) / quarter)
  angles_L2Q = schedules.token_positions(c.scales, c.rope_grid)[:, :, None] * theta[None, None]
  return angles_L2Q.reshape(len(angles_L2Q), -1).repeat(2, 1).astype(np.float32)


def apply_rope_2d(x_BNLH, angles_LH):
  """x_BNLH with each pair of neighbouring channels rotated: (a, b) -> (a cos - b sin, a sin + b
  cos), by angles in radians."""
  even = (np.arange(x_BNLH.shape[-1]) % 2 == 0)[None, None, None]
  other_BNLH = jnp.where(even, -jnp.roll(x_BNLH, -1, -1), jnp.roll(x_BNLH, 1, -1))
  return x_BNLH * np.cos(angles_LH)[None, None] + other_BNLH * np.sin(angles_LH)[None, None]


class Cross(nn.Module):
  """Cross-attention: x_BLD plus what it reads from a memory, which has no gate.

  A memory has parts, so that what a group of rollouts shares stays one copy."""

  c: object  # infinity.Config

  def setup(self):
    c, std = self.c, 1 / math.sqrt(3 * self.c.width)
    shape = c.width, c.heads, c.head_dim
    einsum = lambda eqn, shape, std, bias='': Einsum(
      eqn, shape, bias=bias, init=normal(std), **c.lora
    )
    self.scale = self.param('scale', with_axes(nn.initializers.ones, 'D'), (c.width,))
    self.bias = self.param('bias', with_axes(nn.initializers.zeros, 'D'), (c.width,))
    self.q = einsum('BLD,DNH->BNLH', shape, std, 'NH')
    self.k, self.v = einsum('BSD,DNH->BNSH', shape, std), einsum('BSD,DNH->BNSH', shape, std, 'NH')
    self.o = einsum('BNLH,NHD->BLD', (*shape[1:], c.width), std / math.sqrt(2 * c.depth), 'D')

  def keys(self, memory_BSD):
    """(k_BNSH, v_BNSH) of a memory."""
    return self.k(memory_BSD), self.v(memory_BSD)

  def __call__(self, x_BLD, keys, masks):
    """keys, masks: of the parts of a memory."""
    scale, bias = (gather(w, 'd', 'D')[None, None] for w in (self.scale, self.bias))
    y_BLD = (norms.layer_norm(x_BLD) * scale + bias).astype(x_BLD.dtype)
    parts = [(*pair, mask_BS[:, None]) for pair, mask_BS in zip(keys, masks, strict=True)]
    return x_BLD + self.o(attention.attend(self.q(y_BLD), parts, scale=self.c.head_dim**-0.5))


class Block(nn.Module):
  """A layer: self-attention by scales, cross-attention, MLP; the first and the last with AdaLN.

  `core` has the weights of decoder.Block, `cross` those of the cross-attention."""

  c: object  # infinity.Config

  def setup(self):
    self.core, self.cross = decoder.Block(self.c), Cross(self.c)

  def __call__(self, x, cond, prefix, drop_path, causal, return_kv):
    return decoder.apply_streams(self.layer, x, cond, prefix, drop_path, causal, return_kv)

  def layer(self, x_BLD, cond, prefix, drop_path_B2, causal, return_kv):
    """cond: {'ada' [B, 6, D], 'memory' ([B, S, D], ...), 'mask' ([B, S], ...)}. With a cache,
    prefix has the modulation and the memory's keys and values, and cond the masks alone."""
    cached, prefix_kv = prefix is not None, () if prefix is None else prefix['segments']
    ada_B6D = prefix['ada'] if cached else self.core.modulation(cond['ada'])
    memory = prefix['memory'] if cached else tuple(self.cross.keys(part) for part in cond['memory'])
    start, parts = sum(k.shape[2] for k, _ in prefix_kv), jnp.split(ada_B6D, 6, 1)
    angles_LH = rope_grid_angles(self.c)[start : start + x_BLD.shape[1]]
    apply_rope = functools.partial(apply_rope_2d, angles_LH=angles_LH)
    x_BLD, (k, v) = self.core.attention(
      x_BLD, parts[::2], prefix_kv, drop_path_B2, causal, apply_rope
    )
    x_BLD = self.core.mlp(self.cross(x_BLD, memory, cond['mask']), parts[1::2], drop_path_B2)
    new_kv = {'k': k, 'v': v} if return_kv else None
    if return_kv and not cached:
      new_kv |= {'ada': ada_B6D, 'memory': memory}
    return x_BLD, new_kv
