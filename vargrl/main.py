"""The command line: `python -m vargrl.main COMMAND ...`, installed also as `vargrl COMMAND ...`."""

import sys

from vargrl.commands import command_line

main = command_line.main

if __name__ == '__main__':
  sys.exit(main())
