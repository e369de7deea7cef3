"""Small models with random weights (the official init closes the residual gates)."""

import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def random_weights(shapes, seed):
  """By name, without compiling anything: 0.2 N(0, 1) for the decoder, which opens every gate;
  fan-in scale for convolutions, norms around 1 and codes N(0, 1) for the tokenizer."""
  rng = np.random.default_rng(seed)

  def one(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    noise = rng.standard_normal(x.shape)
    if name.endswith('scale'):
      noise = 1 + 0.2 * noise
    elif x.ndim == 4 and x.shape[0] == x.shape[1]:
      noise /= np.sqrt(np.prod(x.shape[:-1]))
    elif name != 'codebook':
      noise *= 0.2
    return jnp.asarray(noise, x.dtype)

  return jax.tree.map_with_path(one, shapes)


def build(c, tokenizer, seed=0):
  policies, tokenizers = sys.modules[type(c).__module__], sys.modules[type(tokenizer).__module__]
  model, vae = policies.Model(c), tokenizers.Model(tokenizer)
  boxed = jax.eval_shape(lambda key: policies.init(model, key), jax.random.key(0))
  vq_shapes = nn.unbox(jax.eval_shape(lambda key: tokenizers.init(vae, key), jax.random.key(0)))
  return types.SimpleNamespace(
    c=c,
    model=model,
    params=random_weights(nn.unbox(boxed), seed),
    boxed=boxed,
    vae=vae,
    vq_params=random_weights(vq_shapes, seed + 1),
  )
