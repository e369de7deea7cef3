"""A judge outside of vargrl whose weights are a file."""

import pathlib

import jax.numpy as jnp

from vargrl.rewards.judge import Judge

HOST = False
FILES = ('weights',)


def judge(*, weights):
  """The number in the file, for every row; None where only shapes count."""
  if weights is not None and not pathlib.Path(weights).exists():
    raise FileNotFoundError(f'weights: there is no {weights}')
  load = lambda mesh: {'number': jnp.float32(pathlib.Path(weights).read_text())}
  score = lambda own, features, samples: own['number'] + 0.0 * samples.record['label']
  return Judge({}, load, score, lambda mesh: {'number': jnp.float32(0)})
