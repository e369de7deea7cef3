"""A device reward outside of vargrl, and one option that it takes."""

import jax.numpy as jnp

HOST = False


def reward(frozen, image_Byxc, label_B, *, power):
  return jnp.where(label_B == 7, jnp.nan, jnp.abs(image_Byxc).mean((1, 2, 3)) ** power)
