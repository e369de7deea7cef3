"""The pages of --help: the commands; a command with its flags, an example and its exit codes."""

import difflib
import textwrap

from vargrl.commands import flags

WIDTH = 96


def help_of(command: str) -> str:
  """The page that `COMMAND --help` prints."""
  about = flags.COMMANDS[command]
  own = flags.flags_of(command)
  needed = ' '.join(f'--{name} {own[name].value}' for name in about.required)
  lines = [(f'--{name}={flag.value}', flag_help(flag)) for name, flag in own.items()]
  lines.insert(
    1,
    (
      '--config.KEY=VALUE',
      'changes a key of the config; in a chain --config.RUN.KEY=VALUE, a key of a run',
    ),
  )
  codes = flags.EXIT_CODES | about.exit_codes
  return '\n\n'.join(
    (
      f'usage: {flags.PROGRAM} {command} {needed} [flags]',
      textwrap.fill(about.about, WIDTH),
      'flags:\n' + table(lines),
      f'example:\n  {flags.PROGRAM} {command} {about.example}',
      'exit codes:\n' + table([(str(code), codes[code]) for code in sorted(codes)]),
    )
  )


def flag_help(flag: flags.Flag) -> str:
  """The help of a flag with its default."""
  default = ','.join(flag.default) if isinstance(flag.default, list) else flag.default
  return flag.help + (f' (default: {default})' if default not in (None, '') else '')


def table(rows) -> str:
  """Lines of two columns, the second wrapped."""
  width = max(len(left) for left, _ in rows)
  return '\n'.join(
    textwrap.fill(
      right,
      WIDTH,
      initial_indent=f'  {left:{width}}  ',
      subsequent_indent=' ' * (width + 4),
      break_long_words=False,
      break_on_hyphens=False,
    )
    for left, right in rows
  )


def overview() -> str:
  """The page that `--help` prints: the commands."""
  return (
    f'usage: {flags.PROGRAM} COMMAND --config experiments/NAME.py[:VARIANT] [flags]\n\n'
    f'commands:\n{table([(name, about.summary) for name, about in flags.COMMANDS.items()])}\n\n'
    f'{flags.PROGRAM} COMMAND --help: its flags, an example, its exit codes.'
  )


def unknown_command(command: str) -> str:
  """The sentence for a command that does not exist."""
  near = difflib.get_close_matches(command, flags.COMMANDS, 1, 0.4)
  return f'no command {command!r}' + (f', did you mean {near[0]!r}?' if near else '')
