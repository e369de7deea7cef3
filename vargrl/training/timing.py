"""Where a step's time goes, how much is done in it, and a profile of chosen steps."""

import contextlib
import time
from typing import Callable, NamedTuple

import jax

from vargrl.training import flops as work


class Watch(NamedTuple):
  """phase(name, x) waits for x, takes the time since the last phase, and hears what ends a run
  early. rates(batch) ends a step: {metric: number}. trace(step, x) begins or ends the profile; x is
  what the step before has made."""

  phase: Callable
  rates: Callable
  trace: Callable


@contextlib.contextmanager
def watching(run, workdir, check, began):
  """The Watch of a run that has begun at `began`, by time.perf_counter. check: called after every
  phase.
  """
  clock, marks = {'last': time.perf_counter(), 'useful': 0.0, 'steps': 0}, {}
  flops, peak = work.step(run), work.peak(jax.devices()[0].device_kind)
  profile, state = run.config.profile, {'on': False}

  def mark(name):
    now = time.perf_counter()
    marks[name] = marks.get(name, 0.0) + now - clock['last']
    clock['last'] = now

  def phase(name, x=None):
    jax.block_until_ready(x)
    mark(name)
    check()

  def rates(batch):
    mark('dispatch')
    found = {f'time/{name}': seconds for name, seconds in marks.items()} | {
      'time/step': sum(marks.values())
    }
    seconds = sum(marks.values()) - marks.get('eval', 0.0) - marks.get('save', 0.0)
    marks.clear()
    if clock['steps']:
      clock['useful'] += seconds  # the first step compiles
    clock['steps'] += 1
    tokens = jax.tree.leaves(batch.tokens)
    rows = (tokens or [batch.image[:, None]])[0]
    images = rows.shape[0] * rows.shape[1]
    found |= {
      'speed/images': images / seconds,
      'speed/goodput': clock['useful'] / (clock['last'] - began),
    }
    if tokens:
      found['speed/tokens'] = images * sum(x.shape[2] for x in tokens) / seconds
    if flops:
      found['speed/tflops_per_device'] = flops / seconds / run.mesh.size / 1e12
      if peak:
        found['speed/mfu'] = flops / seconds / run.mesh.size / peak
    return found

  def trace(step, x=None):
    if not profile:
      return
    if not state['on'] and x is None and profile[0] <= step <= profile[1]:
      jax.profiler.start_trace(str(workdir / 'profile'))
      state['on'] = True
    elif state['on'] and step > profile[1]:
      jax.block_until_ready(x)
      jax.profiler.stop_trace()
      state['on'] = False

  try:
    yield Watch(phase, rates, trace)
  finally:
    if state['on']:
      jax.profiler.stop_trace()


def check(profile):
  """profile: () or (first step, last step)."""
  ok = len(profile) in (0, 2) and all(type(step) is int for step in profile)
  if not ok or (profile and not 0 <= profile[0] <= profile[1]):
    raise ValueError(f'profile: {tuple(profile)}, expected () or (first step, last step)')
