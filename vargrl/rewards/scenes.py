"""Whether a picture of the world `scenes` shows what its caption says, as its checker reads it."""

import numpy as np

from vargrl.scenes import score
from vargrl.scenes import world as worlds

HOST = True


def reward(images, prompts, *, world, strict, partial):
  """r_B of uint8 pictures and captions, or the JSON of their meanings: 1 for what is right, 0 for
  what is not.

  world: 'small' or 'full'. strict: something more than what was asked for is wrong. partial: the
  share of the caption's requirements that are met."""
  world = worlds.find(world)
  verdicts = [
    score.judge(x, prompt, world, strict=strict) for x, prompt in zip(images, prompts, strict=True)
  ]
  return [float(np.mean(v) if partial else all(v)) for v in verdicts]
