"""Commands that bring a file that is not there, for the errors that say so: each is made here."""

import os
import shlex


def from_hub(what: str, folder: str | os.PathLike) -> str:
  """The command for a repository of huggingface.co. what: 'OWNER/NAME', with names of files behind
  it if not all are meant. The program `hf` comes with huggingface_hub, which vargrl requires."""
  return f'`hf download {what} --local-dir {shlex.quote(str(folder))}`'


def from_url(url: str, file: str | os.PathLike = '') -> str:
  """The command for a file of the web; without `file` it keeps its name."""
  options = f'-L -o {shlex.quote(str(file))}' if file else '-LO'
  return f'`curl {options} {url}`'
