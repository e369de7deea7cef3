"""For notebooks: the commands in the process of the kernel, and the report inline."""

import html
import importlib.metadata
import platform

import jax

from vargrl.commands import command_line, flags
from vargrl.io import paths
from vargrl.io import text as io_text
from vargrl.parallel import multihost

PACKAGES = ('jax', 'jaxlib', 'libtpu', 'flax', 'numpy', 'vargrl')


def start():
  """Prints versions and devices. It comes before anything else: a notebook that asks JAX for its
  devices first hears no preemption notice.

  A kernel is one process. On a TPU jax would look for others, and ask a metadata server that Colab
  may not have."""
  if note := multihost.initialize(heartbeat_seconds=100, detect_cluster=False):
    print(note)
  names = {d.name for d in importlib.metadata.distributions()}
  versions = [f'{name} {importlib.metadata.version(name)}' for name in PACKAGES if name in names]
  print(', '.join([f'Python {platform.python_version()}', *versions]))
  kinds = [d.device_kind for d in jax.devices()]
  print(
    ', '.join(f'{kinds.count(kind)} x {kind}' for kind in dict.fromkeys(kinds)),
    f'({jax.default_backend()})',
  )


def run(command, *arguments):
  """`python -m vargrl.main COMMAND ARGUMENTS` in this process. Raises RuntimeError where a shell
  would see an exit code, so that the cells below do not go on."""
  code = command_line.main(['vargrl', command, *map(str, arguments)])
  if code:
    raise RuntimeError(f'{command} ended with exit code {code}, for the reason said above')


def config(experiment, *arguments):
  """The config of an experiment, 'experiments/NAME.py[:variant]', changed by arguments such as
  '--config.grpo.steps=200': what commands.sample.draw takes."""
  return flags.parse(
    'train', ['--config', str(experiment), '--workdir', '.', *map(str, arguments)]
  ).config


def page(workdir, height=720):
  """WORKDIR/report.html as the output of a cell, in a frame of `height` pixels, which keeps its
  style to itself.
  """
  from IPython.display import HTML

  text = html.escape(io_text.read_text(paths.path(workdir) / 'report.html'))
  return HTML(
    f'<div><iframe srcdoc="{text}" style="width:100%;height:{height}px;border:0"></iframe></div>'
  )
