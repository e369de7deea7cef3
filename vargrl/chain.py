"""An experiment is one run or a chain of runs in one file; each run has its own folder."""
import pathlib
import time

import jax
import numpy as np

from vargrl import metrics, report
from vargrl import train as training
from vargrl.checkpoint import store
from vargrl.eval import run as evaluators
from vargrl.run import Run


def runs(config):
  """[(name, run config)]; the name of a single run is ''."""
  return [(name, config[name]) for name in config.chain] if 'chain' in config else [('', config)]


def chosen(config, name):
  """One run of the chain by its name, the last one if the name is empty."""
  known = dict(runs(config))
  if not name: return runs(config)[-1]
  if name not in known: raise ValueError(f'--run: {name!r}, expected one of {list(known)}')
  return name, known[name]


def train(flags):
  """Trains what is not finished, in order; then the report and the numbers before and after."""
  root, config, began = pathlib.Path(flags.workdir), flags.config, time.time()
  put = together(config, root)
  report_now = lambda: write_report(root, config)
  try:
    for name, run in put.items():
      training.train(run.config, root / name, root=root, run=run, saved=report_now)
  finally:
    for run in put.values(): run.close()
    if any((root / name / 'metrics.jsonl').exists() for name in put): path = report_now()
  for row in before_after(root, config):
    print(f'{row["name"]:20} before {row["before"]:.4g}   after {row["after"]:.4g}')
  print(f'time {time.time() - began:.0f} s\nreport {path.resolve()}')


def together(config, root):
  """{name: Run}: what does not fit in a late run of the chain is told before the first one starts."""
  put = {}
  try:
    for name, run in runs(config):
      policies = {earlier: r.shapes.params['policy'] for earlier, r in put.items()}
      put[name] = Run(run, root, upstream=policies)
  except BaseException:
    for run in put.values(): run.close()
    raise
  return put


def evaluate(flags):
  """The evaluators of a run on its last checkpoint, printed."""
  name, config = chosen(flags.config, flags.run)
  root = pathlib.Path(flags.workdir)
  run, params, frozen, step = restored(config, root / name, root)
  with jax.set_mesh(run.mesh):
    for nickname, evaluator, _ in evaluators.make(config.evals, run.models):
      for key, value in evaluator(params, frozen):
        if np.ndim(value) == 0: print(f'step {step}  {nickname}/{key:16} {value:.6g}')


def restored(config, workdir, root):
  """(Run, params, frozen weights, step) of the last good checkpoint below `workdir`."""
  run = Run(config, root, lean=True)
  with jax.set_mesh(run.mesh):
    step, params = store.load(workdir / 'checkpoints', run.shapes.params, item='params')
    return run, params, run.frozen(), step


def before_after(root, config):
  """Rows of the summary: first and last value of each metric of the last run."""
  workdir = root / runs(config)[-1][0]
  if 'summary' not in config or not (workdir / 'metrics.jsonl').exists(): return []
  rows, out = metrics.load(workdir), []
  for key, better in config.summary:
    values = [row[key] for row in rows if row.get(key) is not None]
    if values: out.append({'name': key, 'before': values[0], 'after': values[-1], 'better': better})
  return out


def write_report(root, config):
  title = config.title if 'title' in config else root.name
  return report.write(root, title=title, runs=[name for name, _ in runs(config)],
                      summary=before_after(root, config))
