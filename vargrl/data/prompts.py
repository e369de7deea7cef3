"""Prompts for reinforcement learning of class-conditional models: labels."""

import functools
from typing import Sequence

import grain
import numpy as np

from vargrl.data import stream as streams

PACKED = False  # whether rows hold several dialogues


def make(*, classes: int, prompts: int, seed: int, rows: Sequence[int]) -> streams.Stream:
  """The Stream of {'label': int32 [B]}: each epoch has every one of `classes`, in a new order.

  prompts: how many a global step has, of which this host has the `rows`; range(prompts) is all."""
  streams.check_rows(prompts, rows)
  if not classes >= 1:
    raise ValueError(f'classes: {classes} found, at least 1 expected')
  labels, rows = functools.partial(_labels, n=prompts, classes=classes, seed=seed), np.array(rows)
  records = grain.MapDataset.range(streams.ENDLESS).map(
    lambda step: {'rows': {'label': labels(step * prompts)[rows]}, 'bad': -1}
  )
  return streams.Stream(
    records,
    rows=len(rows),
    block=len(rows),
    features=('label',),
    classes=classes,
    class_names=(),
    max_unreadable=0.0,
    threads=0,
    workers=0,
    name=f'labels of {classes} classes, {prompts} a step, seed {seed}',
  )


def _labels(first: int, *, n: int, classes: int, seed: int) -> np.ndarray:
  """int32 [n], from position `first` of the endless order."""
  # Not grain's shuffle: its cost grows as the range shrinks, 6 ms a label for 10 classes. And
  # RandomState, whose stream is frozen across numpy versions, so that a resumed run has the same.
  epochs = range(first // classes, (first + n - 1) // classes + 1)
  order = [np.random.RandomState([seed, epoch]).permutation(classes) for epoch in epochs]
  start = first - epochs[0] * classes
  return np.concatenate(order)[start : start + n].astype(np.int32)
