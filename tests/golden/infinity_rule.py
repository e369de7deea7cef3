"""Inputs of the stored numbers of Infinity, rebuilt by the rule in fill.py, and their bits."""

import fill
import jax.numpy as jnp
import numpy as np
import official


def unpacked(name, key):
  """Bits stored with np.packbits, int32."""
  return np.unpackbits(official.stored(name)[1][key], axis=-1).astype(np.int32)


def latents(name):
  """The stored encoder output f_BhwC."""
  return jnp.asarray(official.stored(name)[1]['f'].transpose(0, 2, 3, 1))


def prompt():
  """The two prompts of infinity_d2, padded to the longer."""
  parts = fill.text_features(2, [5, 9], 256)
  text = np.stack([np.pad(x, ((0, 9 - len(x)), (0, 0))) for x in parts])
  return {'text': jnp.asarray(text), 'length': jnp.array([5, 9])}


def flips():
  """Bits turned by self-correction, int32 [B, L, e]."""
  scales = official.stored('infinity_d2')[0]['config']['scales']
  parts = fill.flip_masks(7, 2, scales, 16, [30, 10, 20, 0, 25, 5, 15])
  return np.concatenate([x.reshape(2, -1, 16) for x in parts], 1).astype(np.int32)
