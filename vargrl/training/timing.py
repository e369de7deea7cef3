"""Where a step's time goes, how much is done in it, and a profile of chosen steps.

Metrics of a step: `time/PHASE`, its seconds by phase (`rollout`, `reward`, `save`, ..), and
`time/save_whole` until a checkpoint was seen on disk; `speed/images`, `speed/tokens`, what is
learned from in a second; `speed/goodput`, the share of the run's time that was spent in steps after
the first, which compiles; `speed/tflops_per_device` of the policy's analytic FLOPs (block-causal
attention counted; recomputation, decoding and reward networks not), and `speed/mfu`, their share of
the device's peak, where that is known."""

import contextlib
from functools import partial
import time
from typing import Callable, NamedTuple

import jax

from vargrl.training import flops


class Timer(NamedTuple):
  """The clock of a run; what objectives and evaluators get of it is `phase`.

  phase(name, x=None): ends a part of the step. It waits for the arrays x, adds the time since the
  last phase to the name, and raises preemption.Stop where the run shall end. rates(experience,
  kind) -> {metric: number}: ends the step, which was of this kind of the Collect. trace(step,
  x=None): begins or ends the profile; x is what the step before has made."""

  phase: Callable
  rates: Callable
  trace: Callable


@contextlib.contextmanager
def timer(run, workdir, check, began):
  """Context manager of the Timer of a run that has begun at `began`, by time.perf_counter.

  check: called after every phase. On leaving it a profile under way is ended."""
  clock, seconds_of = {'last': time.perf_counter(), 'useful': 0.0, 'steps': 0}, {}
  kinds = flops.step_passes(run) or {'': {}}
  flops_of = {kind: flops.step_flops(run, kind) for kind in kinds}
  peak = flops.peak(jax.devices()[0].device_kind)
  learned = jax.jit(partial(flops.learning_counts, spans=run.built.learner.spans))
  profile, state = run.config.profile, {'on': False}

  def add_time(name):
    now = time.perf_counter()
    seconds_of[name] = seconds_of.get(name, 0.0) + now - clock['last']
    clock['last'] = now

  def phase(name, x=None):
    jax.block_until_ready(x)
    add_time(name)
    check()

  def rates(experience, kind):
    add_time('dispatch')
    total = sum(seconds_of.values())
    metrics = {f'time/{name}': seconds for name, seconds in seconds_of.items()}
    metrics['time/step'] = total
    seconds = total - seconds_of.get('eval', 0.0) - seconds_of.get('save', 0.0)
    seconds_of.clear()
    if clock['steps']:
      clock['useful'] += seconds  # the first step compiles
    clock['steps'] += 1
    tokens, pictures = learned(experience)
    metrics['speed/images'] = pictures / seconds
    metrics['speed/goodput'] = clock['useful'] / (clock['last'] - began)
    metrics['speed/tflops_per_device'] = flops_of[kind] / seconds / run.mesh.size / 1e12
    if experience.data is not None:
      metrics['speed/tokens'] = tokens / seconds
    if peak:
      metrics['speed/mfu'] = flops_of[kind] / seconds / run.mesh.size / peak
    return metrics

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
    yield Timer(phase, rates, trace)
  finally:
    if state['on']:
      jax.profiler.stop_trace()


def check(profile):
  """ValueError unless profile is () or (first step, last step)."""
  ok = len(profile) in (0, 2) and all(type(step) is int for step in profile)
  if not ok or (profile and not 0 <= profile[0] <= profile[1]):
    raise ValueError(f'profile: {tuple(profile)}, expected () or (first step, last step)')
