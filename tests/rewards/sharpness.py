"""A device reward outside of vargrl, and one option that it takes."""

import jax.numpy as jnp

HOST = False


def reward(frozen, samples, *, power):
  sharp_Byxc = jnp.abs(samples.image_Byxc)
  return jnp.where(samples.record['label'] == 7, jnp.nan, sharp_Byxc.mean((1, 2, 3)) ** power)
