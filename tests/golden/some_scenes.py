"""Records of both worlds, drawn once for a process."""

import functools

import pytest

from vargrl.scenes import records
from vargrl.scenes import world as worlds


@functools.cache
def drawn(name, split, number):
  return tuple(records.record(worlds.find(name), 0, split, i) for i in range(number))


@pytest.fixture(scope='session')
def some():
  """(world's name, split, number) -> that many Records of seed 0."""
  return drawn
