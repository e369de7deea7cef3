"""From the arguments of a command to its exit code.

1. `flags` names the command, checks its arguments, and loads the experiment's config.
2. `process` sets the cache of compiled programs and connects the hosts.
3. The command runs: commands/NAME.py has `main(flags)`.
4. `errors` prints what a user has to read as one sentence; anything else keeps its traceback.
"""

import importlib
import os
import sys

from vargrl.commands import errors, help
from vargrl.commands import flags as command_flags

MODULES = {'eval': 'evaluate'}  # of commands whose file has another name


def main(argv=None) -> int:
  """Runs a command; argv[0] is the program. Returns the exit code: 0 done; 1 `compile` found a
  program that does not fit; 2 a wrong input, for which one sentence was printed. Raises what may be
  a bug."""
  _, *argv = sys.argv if argv is None else argv
  command, arguments = (argv[0], argv[1:]) if argv else ('', [])
  if command not in command_flags.COMMANDS:
    asked = command in ('-h', '--help')
    print(help.overview(), file=sys.stdout if asked else sys.stderr)
    if command and not command.startswith('-'):
      print(f'\nerror: {help.unknown_command(command)}', file=sys.stderr)
    return 0 if asked else 2
  if {'-h', '--help'} & {*arguments}:
    print(help.help_of(command))
    return 0
  try:
    return run(command, arguments)
  except Exception as error:
    if errors.report(error):
      return 2
    raise


def run(command: str, arguments) -> int:
  """The exit code of a command; its errors are raised."""
  if not {'', os.getcwd()} & {*sys.path}:
    sys.path.append(os.getcwd())  # as `python -m` has it: the user's own modules
  flags = command_flags.parse(command, arguments)
  from vargrl.commands import process  # late: a mistyped flag needs no jax

  process.initialize(command, flags)
  name = MODULES[command] if command in MODULES else command
  return importlib.import_module(f'vargrl.commands.{name}').main(flags) or 0
