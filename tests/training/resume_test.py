"""Killed and started again = never interrupted, bit for bit, whatever was going on when it was
killed.
"""

import glob
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from vargrl import main
from vargrl.commands import sample

ROOT = pathlib.Path(__file__).parents[2]
RUNS = ('tokenizer', 'classifier', 'pretrain', 'grpo')
STEPS, EVERY = 6, 2


def start(workdir, log, *more):
  one = os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=1')
  env = dict(os.environ, XLA_FLAGS=one, JAX_PLATFORMS='cpu', PYTHONUNBUFFERED='1')
  env.setdefault('JAX_COMPILATION_CACHE_DIR', str(workdir.parent / 'cache'))
  argv = [f'--config.{run}.steps={STEPS}' for run in RUNS]
  argv += [f'--config.{run}.save_every={EVERY}' for run in RUNS]
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'vargrl.main',
      'train',
      '--config',
      'experiments/quickstart.py:smoke',
      '--workdir',
      str(workdir),
      *argv,
      *more,
    ],
    cwd=ROOT,
    env=env,
    stdout=log,
    stderr=log,
    start_new_session=True,
  )


def finish(workdir, *more, code=0):
  """Runs the command to its end and returns what it printed."""
  with open(workdir.parent / f'{workdir.name}.log', 'w+') as log:
    found = start(workdir, log, *more).wait(timeout=400)
    log.seek(0)
    text = log.read()
  assert found == code, text[-3000:]
  return text


def kill_when(workdir, pattern='', seconds=0.0):
  """SIGKILL to the whole process group when a file appears (and `seconds` later)."""
  with open(workdir.parent / 'killed.log', 'w') as log:
    process, began = start(workdir, log), time.time()
    while process.poll() is None and time.time() - began < 200:
      if not pattern or glob.glob(str(workdir / pattern)):
        break
      time.sleep(0.002)
    time.sleep(seconds)
    alive = process.poll() is None
    if alive:
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()
  return alive


def parameters(workdir):
  """{run: {name: array}} of the last checkpoint of every run, optimizer included."""
  out = {}
  for run in RUNS:
    path = (workdir / run / 'checkpoints' / str(STEPS) / 'state').resolve()
    tree = ocp.PyTreeCheckpointer().restore(path)
    import jax

    out[run] = {
      jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(tree)
    }
  return out


def rows(workdir, run):
  """metrics.jsonl without the clock."""
  lines = (workdir / run / 'metrics.jsonl').read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith(('time/', 'speed/'))}
    for line in lines
  ]


def same(a, b):
  for run in RUNS:
    x, y = parameters(a)[run], parameters(b)[run]
    assert x.keys() == y.keys()
    for name in x:
      assert x[name].tobytes() == y[name].tobytes(), (run, name)
    assert rows(a, run) == rows(b, run)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The uninterrupted run."""
  workdir = tmp_path_factory.mktemp('chain') / 'whole'
  text = finish(workdir)
  assert 'judge/wrong' in text and (workdir / 'report.html').exists()
  return workdir


def flip(workdir, run):
  """One bit of the largest file of the run's newest checkpoint."""
  newest = max(
    (int(p.name), p) for p in (workdir / run / 'checkpoints').iterdir() if p.name.isdigit()
  )[1]
  path = max(
    (p for p in (newest / 'state').rglob('*') if p.is_file()), key=lambda p: p.stat().st_size
  )
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)
  return int(newest.name)


def test_killed_in_every_phase_is_uninterrupted(whole):
  workdir = whole.parent / 'killed'
  assert kill_when(workdir, 'tokenizer/metrics.jsonl')
  assert kill_when(workdir, 'pretrain/checkpoints/*')
  assert kill_when(workdir, f'grpo/checkpoints/{2 * EVERY}', 0.01)
  # And a bit of the newest checkpoint flips while nothing runs.
  step = flip(workdir, 'grpo')
  text = finish(workdir)
  assert f'checkpoints/{step} is corrupt' in text, text[-3000:]
  assert (workdir / 'grpo' / 'checkpoints' / 'corrupt' / str(step)).is_dir()
  same(whole, workdir)


def test_a_finished_chain_is_not_run_again(whole):
  before = parameters(whole)
  text = finish(whole)
  assert all(f'{run}: finished' in text for run in RUNS)
  after = parameters(whole)
  assert all(before[r][k].tobytes() == after[r][k].tobytes() for r in RUNS for k in before[r])
  # Finished is what has a good last checkpoint, whoever has used it since.
  step = flip(whole, 'tokenizer')
  text = finish(whole)
  assert f'checkpoints/{step} is corrupt' in text and f'steps {STEPS - EVERY} to {STEPS}' in text
  assert all(f'{run}: finished' in text for run in RUNS[1:])
  after = parameters(whole)
  assert all(before[r][k].tobytes() == after[r][k].tobytes() for r in RUNS for k in before[r])


@pytest.mark.slow
def test_another_tokenizer_under_finished_runs_is_refused(whole, capsys):
  workdir = whole.parent / 'changed'
  shutil.copytree(whole, workdir)
  # The later runs have 2 steps in this config: refused before the tokenizer is trained.
  assert (
    main.main(
      [
        'vargrl',
        'train',
        '--config',
        'experiments/quickstart.py:smoke',
        '--workdir',
        str(workdir),
        '--config.tokenizer.steps=7',
      ]
    )
    == 2
  )
  assert 'error: steps: 2, expected at least 6' in capsys.readouterr().err
  assert not (workdir / 'tokenizer' / 'checkpoints' / '7').exists()
  text = finish(workdir, '--config.tokenizer.steps=7', code=2)
  assert (
    'steps 6 to 7' in text
    and 'error: init.tokenizer: weights' in text
    and 'pretrain was started' in text
  )
  shutil.rmtree(workdir / 'classifier')  # sampling needs the policy and the tokenizer alone
  with pytest.raises(ValueError, match='init.tokenizer: weights'):
    sample.draw('experiments/quickstart.py:smoke', workdir, per_class=1)


@pytest.mark.slow
def test_killed_at_random_moments_is_uninterrupted(whole):
  workdir, draw = whole.parent / 'random', random.Random(0)
  kills = sum(kill_when(workdir, seconds=draw.uniform(1, 25)) for _ in range(20))
  finish(workdir)
  assert kills >= 5
  same(whole, workdir)
