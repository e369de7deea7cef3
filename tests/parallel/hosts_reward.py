"""A reward that workers import."""

import numpy as np


def brightness(samples):
  """In whole grey levels: pixels on the edge between two levels do not decide what is learned."""
  return np.round(samples.image_Byxc.mean((1, 2, 3)))
