"""What tokenizers of residuals share: the latent is a sum of one term for each scale.

Tokens t_BL of all scales are concatenated coarse to fine; where a token is e bits, they are t_BLe.
`scales` is a list of pairs (h, w), or of the sides of squares, in tokens."""

import jax.numpy as jnp

from vargrl.types import bounds, leading


def teacher_inputs(step, z_BhwC, t_BL, scales, width):
  """The decoder's inputs of tokens 1 .. L - 1, [B, L - 1, width], as a rollout would have them.

  step: (z_BhwC, tokens of scale i, i) -> (z_BhwC with them, the inputs of scale i + 1). z_BhwC: the
  latent before the first scale. t_BL may be the tokens of the first few scales alone; ValueError
  where its length is not that of whole scales."""
  inputs = [jnp.zeros((len(t_BL), 0, width))]
  for i, (a, b) in enumerate(bounds(leading(scales, t_BL.shape[1]))[:-1]):
    z_BhwC, next_BLC = step(z_BhwC, t_BL[:, a:b], i)
    inputs.append(next_BLC)
  return jnp.concatenate(inputs, 1)


def latent(scale_latent, t_BL, scales):
  """z_BhwC of the tokens of all scales. scale_latent: (tokens of scale i, i) -> its term."""
  return sum(scale_latent(t_BL[:, a:b], i) for i, (a, b) in enumerate(bounds(scales)))
