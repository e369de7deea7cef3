"""Normalisations, in float32 inside."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vargrl.models.layers.einsum import with_axes
from vargrl.parallel.rules import gather


class GroupNorm(nn.Module):
  """Over 32 groups of channels, in float32, eps 1e-6, variance in two passes as torch does."""

  groups: int = 32

  @nn.compact
  def __call__(self, x_Byxc):
    B, *_, c = x_Byxc.shape
    if c % self.groups:
      raise ValueError(f'{self.name}: {c} channels, expected a multiple of {self.groups}')

    # By channel first: the last axis stays whole, where a CPU takes 8 channels at a time and a TPU
    # 128.
    def mean(x_BLc):
      mean_B1g1 = x_BLc.mean(1).reshape(B, 1, self.groups, -1).mean(-1, keepdims=True)
      return jnp.broadcast_to(mean_B1g1, (B, 1, self.groups, c // self.groups)).reshape(B, 1, c)

    x = x_Byxc.astype(jnp.float32).reshape(B, -1, c)
    x -= mean(x)
    scale = self.param('scale', with_axes(nn.initializers.ones, 'D'), (c,))
    bias = self.param('bias', with_axes(nn.initializers.zeros, 'D'), (c,))
    scale, bias = (gather(w, 'd', 'D') for w in (scale, bias))
    x = x * (jax.lax.rsqrt(mean(x**2) + 1e-6) * scale[None, None]) + bias[None, None]
    return x.reshape(x_Byxc.shape).astype(x_Byxc.dtype)


class Norm(nn.Module):
  """Layer norm with scale and bias, float32 inside and out."""

  eps: float

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', with_axes(nn.initializers.ones, 'D'), x.shape[-1:])
    bias = self.param('bias', with_axes(nn.initializers.zeros, 'D'), x.shape[-1:])
    ones = (1,) * (x.ndim - 1)
    return layer_norm(x, self.eps) * scale.reshape(*ones, -1) + bias.reshape(*ones, -1)


class RMSNorm(nn.Module):
  """x / rms(x) with a scale (https://arxiv.org/abs/1910.07467); float32 inside, the dtype of x
  outside.
  """

  eps: float

  @nn.compact
  def __call__(self, x_BLD):
    scale = self.param('scale', with_axes(nn.initializers.ones, 'D'), x_BLD.shape[-1:])
    y_BLD = x_BLD.astype(jnp.float32)
    y_BLD *= jax.lax.rsqrt(jnp.mean(y_BLD**2, -1, keepdims=True) + self.eps)
    return (y_BLD * scale[None, None]).astype(x_BLD.dtype)


def layer_norm(x, eps=1e-6):
  """Without affine parameters: AdaLN brings its own. float32 inside and out."""
  x = x.astype(jnp.float32)
  x -= x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + eps)


def l2_normalize(x):
  """x / |x| over the last axis, float32; torch's F.normalize with its eps."""
  x = x.astype(jnp.float32)
  return x / jnp.maximum(jnp.sqrt(jnp.sum(x**2, -1, keepdims=True)), 1e-12)


def torch_norm(ours, theirs):
  return {
    f'{ours}/scale': (f'{theirs}.weight', 'D -> D'),
    f'{ours}/bias': (f'{theirs}.bias', 'D -> D'),
  }
