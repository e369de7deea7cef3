"""Whether a picture of the world `scenes` shows what its caption says, as its checker reads it."""

import numpy as np

from vargrl.scenes import score
from vargrl.scenes import world as worlds

HOST = True


def check(*, world, strict, partial):
  """ValueError for a world that there is not."""
  worlds.find(world)


def reward(samples, *, world, strict, partial):
  """r_B: 1 for a picture that shows what its caption says, 0 for one that does not.

  What it says is the record's 'meaning', JSON of scenes.captions.Meaning; without one, the record's
  'prompt' is read as a caption, or as that JSON. world: 'small' or 'full'. strict: something more
  than what was asked for is wrong. partial: not 0 or 1 but the share of the caption's requirements
  that are met. Raises ValueError for what is no caption of the world."""
  world = worlds.find(world)
  verdicts = [
    score.judge(x, record.get('meaning') or record.get('prompt'), world, strict=strict)
    for x, record in zip(samples.image_Byxc, samples.record, strict=True)
  ]
  return [float(np.mean(v) if partial else all(v)) for v in verdicts]
