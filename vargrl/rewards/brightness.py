"""Mean brightness: the reward of smoke tests, with an optimum that any policy finds; and what is
bright, as a mask.
"""

import jax.numpy as jnp

HOST = False


def reward(frozen, samples):
  """r_B in [0, 1]: black is 0, white is 1."""
  del frozen
  return jnp.mean((samples.image_Byxc.astype(jnp.float32) + 1) / 2, axis=(1, 2, 3))


def mask(image_Byxc, label_B, *, threshold):
  """mask_Byx bool: the pixels whose brightness, in [0, 1], is above the threshold."""
  del label_B
  return jnp.mean((image_Byxc.astype(jnp.float32) + 1) / 2, axis=-1) > threshold
