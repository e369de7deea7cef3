"""An experiment is one run or a chain of runs in one file; each run has its own folder."""

import hashlib
import pathlib
import platform
import time
import uuid

import jax
import numpy as np

from vargrl.io import paths
from vargrl.io import text as io_text
from vargrl.parallel import multihost, preemption
from vargrl.reporting import report, writer
from vargrl.training import loop
from vargrl.training.run import Run

BETTER = ('higher', 'lower', '')  # what a metric of the summary shall become
REPORT_SECONDS = 120  # the report of a run that is under way is not much older than this


def runs(config):
  """[(name, run config)]; the name of a single run is ''."""
  return [(name, config[name]) for name in config.chain] if 'chain' in config else [('', config)]


def select_run(config, name):
  """(name, run config) of a run of the chain, the last one if the name is empty. Raises ValueError
  for a name that the chain does not have."""
  by_name = dict(runs(config))
  if not name:
    return runs(config)[-1]
  if [*by_name] == ['']:
    raise ValueError(f'--run: {name!r}, but the experiment has one run: leave it out')
  if name not in by_name:
    raise ValueError(f'--run: {name!r}, expected one of {list(by_name)}')
  return name, by_name[name]


def train(config, root, *, wandb=''):
  """Trains the runs of an experiment that are not finished, in order; returns the path of the
  report, None but on the first host.

  root: the workdir of the chain. wandb: a project of Weights & Biases, '' for none. What a run
  cannot start from is raised for all runs before the first one starts, and preemption.Stop when
  the machine is taken away or a person has interrupted; the same call continues then."""
  root = paths.path(root)
  multihost.on_all_hosts(lambda: check_root(root))
  built = multihost.on_all_hosts(lambda: build_all(config, root))
  reported = [time.time()]

  def report_now_and_then():  # a page takes a second or two to draw
    if time.time() - reported[-1] >= REPORT_SECONDS:
      write_report(root, config)
      reported.append(time.time())

  try:
    multihost.check_equal(host_invariants(built, root))
    for name, run in built.items():
      loop.train(
        run.config, root / name, root=root, run=run, on_save=report_now_and_then, wandb=wandb
      )
    preemption.final_sync()
  except BaseException:
    if any((root / name / 'metrics.jsonl').exists() for name in built):
      write_report(root, config)
    raise
  finally:
    for run in built.values():
      run.close()
  return write_report(root, config)


def check_root(root):
  """ValueError on the first host unless it can write to the workdir."""
  if multihost.is_first_host():
    io_text.check_writable(root, '--workdir', keep=False)


def build_all(config, root):
  """{name: Run} of all runs. Raises what is wrong with any of them, so that a mistake in a late run
  of the chain is found before the first one starts."""
  built = {}
  check_summary(config)
  try:
    for name, run in runs(config):
      shapes = {earlier: r.shapes.params for earlier, r in built.items()}
      built[name] = Run(run, root, upstream=shapes)
      loop.check_resume(built[name], root / name)
  except BaseException:
    for run in built.values():
      run.close()
    raise
  return built


def host_invariants(built, root):
  """{what: what must be equal on all hosts} of the runs {name: Run} in the workdir `root`."""
  mark = root / '.hosts'
  if multihost.is_multihost() and multihost.is_first_host():
    io_text.write_text(mark, uuid.uuid4().hex)
  multihost.allgather_text('')  # now it is written
  files = sorted(pathlib.Path(__file__).parents[1].rglob('*.py'))
  code = hashlib.sha256(b''.join(path.read_bytes() for path in files)).hexdigest()[:16]
  return {
    'config': {
      f'{name}.{key}'.strip('.'): value
      for name, run in built.items()
      for key, value in loop.to_json(run.config).items()
    },
    'code of vargrl': code,
    'data': {
      name or 'stream': run.data.get_state()['stream'] for name, run in built.items() if run.data
    },
    'workdir, one folder for all hosts': mark.read_bytes().decode(errors='replace')
    if multihost.is_multihost() and mark.exists()
    else '',
    'checkpoints': {name or 'run': max(saved_steps(root / name), default=None) for name in built},
    'versions': {
      'python': platform.python_version(),
      'jax': jax.__version__,
      'numpy': np.__version__,
    },
  }


def saved_steps(workdir):
  """The steps of the checkpoints of a run."""
  return [int(path.name) for path in (workdir / 'checkpoints').glob('*') if path.name.isdigit()]


def summary(root, config):
  """Rows {'name', 'before', 'after', 'better'}: first and last value of each metric of the last run
  that the config's `summary` names."""
  workdir = root / runs(config)[-1][0]
  if 'summary' not in config or not (workdir / 'metrics.jsonl').exists():
    return []
  rows, out = writer.load(workdir), []
  for key, better in config.summary:
    values = [row[key] for row in rows if row.get(key) is not None]
    if values:
      out.append({'name': key, 'before': values[0], 'after': values[-1], 'better': better})
  return out


def check_summary(config):
  """ValueError for a `summary` that the report at the end could not show."""
  for row in config.summary if 'summary' in config else ():
    pair = isinstance(row, (tuple, list)) and len(row) == 2
    if not pair or not isinstance(row[0], str) or row[1] not in BETTER:
      raise ValueError(f'summary: {row!r} found, (name of a metric, one of {BETTER}) expected')


def write_report(root, config):
  """The path of the report, which the first host writes; None on the others."""
  if not multihost.is_first_host():
    return None
  title = config.title if 'title' in config else root.name
  return report.write(
    root, title=title, runs=[name for name, _ in runs(config)], summary=summary(root, config)
  )
