"""An experiment is one run or a chain of runs in one file; each run has its own folder."""

import contextlib
import hashlib
import json
import pathlib
import platform
import time
import uuid

import jax
import numpy as np

from vargrl.checkpoint import store
from vargrl.eval import run as evaluators
from vargrl.parallel import multihost, preemption
from vargrl.reporting import images, report
from vargrl.reporting import writer as writing
from vargrl.training import loop as training
from vargrl.training.run import Run

USED = (
  'tokenizer',
  'classifier',
)  # frozen weights that evaluators need; a policy alone needs the first
REPORT_SECONDS = 120  # a run that is under way has a report that is not much older


def runs(config):
  """[(name, run config)]; the name of a single run is ''."""
  return [(name, config[name]) for name in config.chain] if 'chain' in config else [('', config)]


def chosen(config, name):
  """One run of the chain by its name, the last one if the name is empty."""
  known = dict(runs(config))
  if not name:
    return runs(config)[-1]
  if [*known] == ['']:
    raise ValueError(f'--run: {name!r}, but the experiment has one run: leave it out')
  if name not in known:
    raise ValueError(f'--run: {name!r}, expected one of {list(known)}')
  return name, known[name]


def train(flags):
  """Trains what is not finished, in order; then the report and the numbers before and after."""
  root, config, began = pathlib.Path(flags.workdir), flags.config, time.time()
  put, told = multihost.on_all_hosts(lambda: together(config, root)), [began]

  def saved():  # a page takes a second or two to draw
    if time.time() - told[-1] < REPORT_SECONDS:
      return
    write_report(root, config)
    told.append(time.time())

  try:
    multihost.check_equal(facts(put, root))
    for name, run in put.items():
      training.train(run.config, root / name, root=root, run=run, saved=saved)
    preemption.final_sync()
  except BaseException as e:
    if any((root / name / 'metrics.jsonl').exists() for name in put):
      write_report(root, config)
    if not isinstance(e, preemption.Stop):
      raise
    if multihost.is_first_host():
      print(f'{e}; the same command goes on')
    return
  finally:
    for run in put.values():
      run.close()
  path = write_report(root, config)
  if not multihost.is_first_host():
    return
  for row in before_after(root, config):
    print(f'{row["name"]:20} before {row["before"]:.4g}   after {row["after"]:.4g}')
  print(f'time {time.time() - began:.0f} s\nreport {path.resolve()}')


def together(config, root):
  """{name: Run}: what does not fit in a late run of the chain is told before the first one
  starts.
  """
  put = {}
  try:
    for name, run in runs(config):
      put[name] = Run(run, root, upstream={earlier: r.shapes.params for earlier, r in put.items()})
      training.check_resume(put[name], root / name)
  except BaseException:
    for run in put.values():
      run.close()
    raise
  return put


def facts(put, root):
  """{what: what all hosts must have alike} of the runs {name: Run} in the workdir `root`."""
  word = root / '.hosts'
  if multihost.is_multihost() and multihost.is_first_host():
    images.save_bytes(word, uuid.uuid4().hex.encode())
  multihost.allgather_text('')  # written
  files = sorted(pathlib.Path(__file__).parents[1].rglob('*.py'))
  code = hashlib.sha256(b''.join(path.read_bytes() for path in files)).hexdigest()[:16]
  return {
    'config': {
      f'{name}.{key}'.strip('.'): value
      for name, run in put.items()
      for key, value in json.loads(run.config.to_json_best_effort()).items()
    },
    'code of vargrl': code,
    'data': {
      name or 'stream': run.data.get_state()['stream'] for name, run in put.items() if run.data
    },
    'workdir, one folder for all hosts': word.read_text()
    if multihost.is_multihost() and word.exists()
    else '',
    'checkpoints': {name or 'run': max(found(root / name), default=None) for name in put},
    'versions': {
      'python': platform.python_version(),
      'jax': jax.__version__,
      'numpy': np.__version__,
    },
  }


def found(workdir):
  """The steps of the checkpoints of a run."""
  return [int(path.name) for path in (workdir / 'checkpoints').glob('*') if path.name.isdigit()]


def evaluate(flags):
  """The evaluators of a run on its last checkpoint: numbers are printed, pictures go to eval/ of
  its folder.
  """
  name, config = chosen(flags.config, flags.run)
  root = pathlib.Path(flags.workdir)
  run = multihost.on_all_hosts(lambda: lean(config, root, USED))
  multihost.check_equal(facts({name: run}, root))
  with jax.set_mesh(run.mesh), contextlib.ExitStack() as stack:
    evals = multihost.on_all_hosts(lambda: evaluators.make(config.evals, run.models))
    stack.callback(evaluators.close, evals)
    params, frozen, step = restored(run, root / name, USED)
    for nickname, evaluator, _ in evals:
      for key, value in evaluator(params, frozen):
        if not multihost.is_first_host():
          continue
        path = root / name / 'eval' / f'{nickname}_{key}_{step:08d}.png'
        if np.ndim(value) == 3:
          images.save_png(path, value)
        print(f'step {step}  {nickname}/{key:16} {f"{value:.6g}" if np.ndim(value) == 0 else path}')


def lean(config, root, used=('tokenizer',)):
  """The Run of a policy that only draws or is only looked at; used: the frozen weights that it
  needs.
  """
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.init = {k: v for k, v in config.init.items() if k in used}
  return Run(config, root, lean=True)


def restored(run, workdir, used=('tokenizer',)):
  """(params, frozen weights, step) of the last good checkpoint in `workdir`, under the mesh of
  `run`.
  """
  if workdir != pathlib.Path(run.root) and not (workdir / 'checkpoints').is_dir():
    others = sorted({path.parent.name for path in workdir.parent.glob('*/checkpoints')})
    raise FileNotFoundError(
      f'--run: no checkpoint of {workdir.name!r} in {workdir.parent}'
      + (f', but of {", ".join(others)}' if others else '')
    )
  step, params, meta = store.load(workdir / 'checkpoints', run.shapes.params, item='params')
  frozen = run.frozen(print if multihost.is_first_host() else lambda _: None, only=used)
  training.check_frozen(meta, run.fingerprints(frozen), workdir)
  return params, frozen, step


def before_after(root, config):
  """Rows of the summary: first and last value of each metric of the last run."""
  workdir = root / runs(config)[-1][0]
  if 'summary' not in config or not (workdir / 'metrics.jsonl').exists():
    return []
  rows, out = writing.load(workdir), []
  for key, better in config.summary:
    values = [row[key] for row in rows if row.get(key) is not None]
    if values:
      out.append({'name': key, 'before': values[0], 'after': values[-1], 'better': better})
  return out


def write_report(root, config):
  """The path of the report, which the first host writes."""
  if not multihost.is_first_host():
    return None
  title = config.title if 'title' in config else root.name
  return report.write(
    root, title=title, runs=[name for name, _ in runs(config)], summary=before_after(root, config)
  )
