"""Preemption notices and Ctrl-C: all hosts of a run stop at the same point of the program.

A machine that is about to be taken away sends SIGTERM. jax receives it
(multihost_utils.reached_preemption_sync_point) and agrees with the other hosts on where to stop. A
Python handler of SIGTERM that is set after jax.distributed was initialized would replace jax's.
"""

import contextlib
import itertools
import os
import signal
import threading
import time

import jax
from jax.experimental import multihost_utils

# The number of a poll. It is never reset within a process, because hosts compare these numbers.
POLL_NUMBERS = itertools.count(1)


class Stop(Exception):
  """The run must stop. `check` raises it at the same call on all hosts."""


@contextlib.contextmanager
def watch(log):
  """Context manager that watches for notices; yields (check, begin_save).

  check() raises Stop after a host has received SIGTERM, or this process a first Ctrl-C. A second
  Ctrl-C raises KeyboardInterrupt at once. begin_save() is called when the last save begins: from
  then on one more Ctrl-C is ignored. A first Ctrl-C that comes after the last check raises Stop at
  the end of the context. log: function of a text for the user.
  """
  interrupts, after_save = [], []

  def handle(number, frame):
    if after_save:
      after_save.append(number)
      if len(after_save) > 2:
        raise KeyboardInterrupt
      return log('saving; once more to leave the checkpoint unfinished')
    interrupts.append(number)
    if len(interrupts) > 1:
      raise KeyboardInterrupt
    log('interrupted: stops and saves when this phase is over; once more to stop at once')
    if jax.process_count() > 1:
      os.kill(os.getpid(), signal.SIGTERM)  # jax tells the other hosts

  def check():
    if multihost_utils.reached_preemption_sync_point(next(POLL_NUMBERS)):
      raise Stop('a preemption notice came')
    if interrupts and jax.process_count() == 1:
      raise Stop('interrupted')

  def begin_save():
    after_save.append('saving')

  main = threading.current_thread() is threading.main_thread()
  before = signal.signal(signal.SIGINT, handle) if main else None
  try:
    yield check, begin_save
    if interrupts and jax.process_count() == 1:
      raise Stop('interrupted')
  finally:
    if main:
      signal.signal(signal.SIGINT, before)


def final_sync():
  """Every host of several calls this when its work is done.

  A notice that came too late for a check must not keep a host from ending: to agree on a stop takes
  all hosts, and jax waits a quarter of an hour for one that has left.
  """
  if jax.process_count() == 1:
    return
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  for _ in range(4):  # jax looks for a signal once a second
    time.sleep(0.5)
    multihost_utils.reached_preemption_sync_point(next(POLL_NUMBERS))
