"""What an objective's `collect` does its work through: really, as here, or without any device, as
commands/compile.py lowers the same programs."""

import dataclasses
from typing import Callable


@dataclasses.dataclass(frozen=True)
class Stage:
  """One step of a run. number: of the step. on_phase: (name, x) blocks on x, records the phase's
  time, and checks for preemption. abstract: False; what compiles alone has True."""

  number: int
  on_phase: Callable = lambda name, x=None: None
  abstract = False

  def call(self, name, function, *args):
    """function(*args), a jitted program that is called `name` in what is told of a run; programs
    without a name are not reported."""
    return function(*args)

  def lower(self, name, function, *args):
    """Nothing: the host calls this program as a part of something else."""

  def host(self, function, *like):
    """function(), which the host computes. like: (shape, dtype) of each array that it returns."""
    return function()

  def phase(self, name, x=None):
    """Ends a phase of the step, when x is there."""
    self.on_phase(name, x)
