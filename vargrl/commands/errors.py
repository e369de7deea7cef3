"""Errors as sentences: what a user has to read, and what may be a bug and needs its traceback."""

import os
import pathlib
import sys
import traceback

PACKAGE = str(pathlib.Path(__file__).parents[1])
EXPECTED = (ValueError, KeyError, AttributeError, OSError, FloatingPointError, RuntimeError)


def report(error: Exception) -> bool:
  """Prints the sentence of an error that is meant for the user, and returns True; False for any
  other, which the caller raises again.

  Where other hosts do not know of the error, and wait for this one, the process ends here."""
  full = memory_advice(error)
  meant = isinstance(error, EXPECTED) and (full or is_for_user(error))
  alone = is_multihost() and not getattr(error, 'shared', False)
  if os.environ.get('VARGRL_TRACEBACK') or not meant:
    if alone:
      end_process(traceback.format_exc(), 1)
    return False
  text = f'error: {full or sentence(error)}'
  if alone:
    end_process(text, 2)
  print(text, file=sys.stderr)
  return True


def is_multihost() -> bool:
  """True where other hosts are connected, without loading jax to find out."""
  if 'vargrl.parallel.multihost' not in sys.modules:
    return False
  from vargrl.parallel import multihost

  return multihost.is_multihost()


def end_process(text: str, code: int):
  """Ends this process at once, and so the others within the heartbeat: jax's own end would wait for
  them.
  """
  print(text, file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(code)


def is_for_user(error: Exception) -> bool:
  """True if the error was raised to be read: by this library, by the config, or by the file system.
  Anything else may be a bug, whose traceback is needed."""
  if isinstance(error, (OSError, FloatingPointError)):
    return True
  inner = traceback.extract_tb(error.__traceback__)[-1].filename
  if isinstance(error, (KeyError, AttributeError)):
    return f'{os.sep}ml_collections{os.sep}' in inner
  if isinstance(error, RuntimeError):
    return inner.startswith(PACKAGE)
  return all(f'{os.sep}{name}{os.sep}' not in inner for name in ('jax', 'flax'))


def memory_advice(error: Exception) -> str:
  """What to do where the memory of a device was too small; '' for any other error."""
  kinds = ('JaxRuntimeError', 'XlaRuntimeError')
  if type(error).__name__ not in kinds or 'RESOURCE_EXHAUSTED' not in str(error):
    return ''
  found = str(error).partition('RESOURCE_EXHAUSTED: ')[2].split('\n')[0].strip()
  return (
    f'a device has too little memory ({found}): fewer data.prompts or objective.collect.rollouts, '
    "more parts by accum, policy.remat='blocks', or more devices on fsdp in mesh; python -m "
    'vargrl.main compile says beforehand what fits'
  )


def sentence(error: Exception) -> str:
  """The words of an error, in one line but for lists."""
  text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
  return ' '.join(text.split('\n')) if '\n  ' not in text else text
