"""A machine that is about to be taken away says so by a signal; every host then stops at the same
point.

SIGTERM is heard by jax (multihost_utils.reached_preemption_sync_point), which also agrees with the
other hosts on where to stop. A Python handler for it, set after jax.distributed has begun, would
keep it from hearing."""

import contextlib
import itertools
import os
import signal
import threading
import time

import jax
from jax.experimental import multihost_utils

POLLS = itertools.count(1)  # never starts again in a process: hosts compare their counts


class Stop(Exception):
  """Raised by `check` at the same call on all hosts."""


@contextlib.contextmanager
def listening(say):
  """Yields (check, saving). check() raises Stop once a host has had a SIGTERM, or this process a
  first Ctrl-C; a second one is a KeyboardInterrupt at once. saving(): from here on it takes one
  more. A first Ctrl-C after the last check is a Stop at the end."""
  heard, late = [], []

  def interrupt(number, frame):
    if late:
      late.append(number)
      if len(late) > 2:
        raise KeyboardInterrupt
      return say('saving; once more to leave the checkpoint unfinished')
    heard.append(number)
    if len(heard) > 1:
      raise KeyboardInterrupt
    say('interrupted: stops and saves when this phase is over; once more to stop at once')
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)  # jax tells the others

  def check():
    if multihost_utils.reached_preemption_sync_point(next(POLLS)):
      raise Stop('a preemption notice came')
    if heard and jax.process_count() == 1:
      raise Stop('interrupted')

  def saving():
    late.append('saving')

  main = threading.current_thread() is threading.main_thread()
  before = signal.signal(signal.SIGINT, interrupt) if main else None
  try:
    yield check, saving
    if heard and jax.process_count() == 1:
      raise Stop('interrupted')
  finally:
    if main:
      signal.signal(signal.SIGINT, before)


def over():
  """Of several hosts, each calls this when its work is done: a notice that came too late for a
  check must not keep them. To agree on it takes all of them, and jax waits a quarter of an hour for
  one that has left."""
  if jax.process_count() == 1:
    return
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  for _ in range(4):  # jax looks once a second whether a signal came
    time.sleep(0.5)
    multihost_utils.reached_preemption_sync_point(next(POLLS))
