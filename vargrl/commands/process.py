"""What a process needs before its first array: the cache of compiled programs, and other hosts."""

import logging
import os
import signal
import sys

import jax

from vargrl.commands import flags as command_flags
from vargrl.io import paths
from vargrl.parallel import multihost

SEVERAL_HOSTS = ('train', 'eval')  # the commands that several hosts run together


def initialize(command: str, flags):
  """Keeps compiled programs between processes, so that a resumed run starts quickly, and connects
  the hosts. Raises ValueError where several hosts were started for a command of one."""
  logging.getLogger('absl').setLevel(logging.WARNING)
  cache_programs()
  if command == 'compile':
    return  # for devices that are not there
  several = command in SEVERAL_HOSTS
  heartbeat = flags.heartbeat if several else command_flags.HEARTBEAT_SECONDS
  before = jax.distributed.is_initialized()
  note = multihost.initialize(heartbeat_seconds=heartbeat)
  # A command that does not ask whether a notice has come must not keep SIGTERM from ending the
  # process, as jax now would.
  if command != 'train' and not before:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
  if note and command == 'train':
    print(note, file=sys.stderr)
  if jax.process_count() > 1 and not several:
    raise multihost.mark_shared(
      ValueError(
        f'{command}: {jax.process_count()} processes found, one expected; only '
        f'{", ".join(SEVERAL_HOSTS)} can be shared by several'
      )
    )


def cache_programs():
  """Sets the folder of compiled programs, unless the environment says one."""
  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    cache = paths.path(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
    jax.config.update('jax_compilation_cache_dir', str(cache / 'vargrl' / 'jax'))
  if not os.environ.get('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'):
    # The small programs too: there are hundreds, and to read one takes half as long as to compile
    # it.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
