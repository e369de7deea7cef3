"""Several processes are one run: the same numbers, one set of files, one end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import hosts
import numpy as np
from PIL import Image
import pytest

from vargrl.parallel import multihost

TINY = ['train', '--config', 'tests/parallel/tiny.py']


def rows(workdir):
  path = workdir / 'metrics.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  found = [json.loads(line) for line in lines if line.endswith('}')]
  return [{k: v for k, v in row.items() if not k.startswith(('time/', 'speed/'))} for row in found]


def wait_for(condition, processes, seconds=300):
  began = time.time()
  while (
    not condition() and time.time() - began < seconds and all(p.poll() is None for p in processes)
  ):
    time.sleep(0.01)


def parameters(workdir):
  """{name: array} of the last checkpoint, optimizer included."""
  steps = sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit())
  return steps[-1], hosts.arrays(workdir / 'checkpoints' / str(steps[-1]) / 'state')


@pytest.mark.slow
def test_a_notice_to_one_of_two_hosts_and_a_new_start_on_one_are_the_run_on_one(tmp_path):
  """SIGTERM in the middle of a step, to one: both save the same step and end well. One process of
  eight devices goes on. The tokens, seen by rewards and pictures, are those of one device, and so
  are the parameters to 1e-5."""
  cut, whole = tmp_path / 'cut', tmp_path / 'whole'
  processes = hosts.start(2, 4, tmp_path / 'two', *TINY, f'--workdir={cut}', '--config.steps=1000')
  wait_for(lambda: len(rows(cut)) >= 1, processes)  # step 1 is over, and step 2 under way
  processes[1].send_signal(signal.SIGTERM)
  began = time.time()
  first, second = hosts.finish(processes, tmp_path / 'two')
  assert time.time() - began < 30
  assert 'a preemption notice came; the same command goes on' in first and 'goes on' not in second
  saved = parameters(cut)[0]
  assert 1 <= saved < 1000 and len(rows(cut)) == saved
  steps = max(saved + 2, 5)
  hosts.finish(
    hosts.start(1, 8, tmp_path / 'eight', *TINY, f'--workdir={cut}', f'--config.steps={steps}'),
    tmp_path / 'eight',
  )
  hosts.finish(
    hosts.start(1, 1, tmp_path / 'one', *TINY, f'--workdir={whole}', f'--config.steps={steps}'),
    tmp_path / 'one',
  )
  assert [row['rewards/brightness'] for row in rows(cut)] == [
    row['rewards/brightness'] for row in rows(whole)
  ]
  pictures = sorted(path.relative_to(whole) for path in whole.glob('images/*/*.png'))
  assert (
    len(pictures) == 2 * steps
  )  # best and worst of each step: all sixteen images; another token, another picture
  for path in pictures:
    a, b = (np.asarray(Image.open(folder / path), np.int32) for folder in (cut, whole))
    assert abs(a - b).max() <= 1, path  # of 256 grey levels
  (step, found), (_, expected) = parameters(cut), parameters(whole)
  assert step == steps and found.keys() == expected.keys()
  for name, x in expected.items():
    np.testing.assert_allclose(found[name], x, rtol=0, atol=1e-5 * abs(x).max(), err_msg=str(name))


@pytest.mark.parametrize(
  'wrong, sentence',
  [
    (
      '--config.seed=1',
      'error: config seed: 1 on host 1, 0 on host 0; all hosts must run the same',
    ),
    (
      '--config.init.policy=/nowhere/var_d16.pth',
      'error: host 1: FileNotFoundError: init.policy: /nowhere/var_d16.pth: no such file',
    ),
  ],
)
def test_hosts_that_disagree_are_told_at_start(tmp_path, wrong, sentence):
  processes = hosts.start(
    2, 1, tmp_path / 'log', *TINY, f'--workdir={tmp_path / "w"}', only={1: [wrong]}
  )
  texts = hosts.finish(processes, tmp_path / 'log', code=2)
  assert sentence in texts[0], texts[0]
  assert not (tmp_path / 'w' / 'metrics.jsonl').exists()


@pytest.mark.parametrize(
  'given, sentence',
  [
    ({'JAX_PROCESS_ID': '0'}, 'JAX_COORDINATOR_ADDRESS is missing'),
    (
      {'JAX_COORDINATOR_ADDRESS': 'localhost', 'JAX_PROCESS_ID': '0', 'JAX_NUM_PROCESSES': '2'},
      'HOST:PORT expected',
    ),
    (
      {'JAX_COORDINATOR_ADDRESS': 'localhost:1', 'JAX_PROCESS_ID': '2', 'JAX_NUM_PROCESSES': '2'},
      'JAX_PROCESS_ID=2 found, less than JAX_NUM_PROCESSES=2 expected',
    ),
  ],
)
def test_half_an_address_is_told(given, sentence, monkeypatch):
  for name, value in given.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=sentence):
    multihost.env_options()


def test_what_only_one_process_can_do_is_told(tmp_path):
  processes = hosts.start(2, 1, tmp_path / 'log', 'bench', *TINY[1:])
  texts = hosts.finish(processes, tmp_path / 'log', code=2)
  assert 'error: bench: 2 processes found, one expected' in texts[0]


@pytest.mark.slow
def test_one_process_told_twice_saves_once_and_goes_on_as_if_nothing_had_been(tmp_path):
  argv = [*TINY, '--config.steps=300', '--config.show_every=1000']
  hosts.finish(
    hosts.start(1, 1, tmp_path / 'whole', *argv, f'--workdir={tmp_path / "w"}'), tmp_path / 'whole'
  )
  processes = hosts.start(1, 1, tmp_path / 'cut', *argv, f'--workdir={tmp_path / "c"}')
  wait_for(lambda: len(rows(tmp_path / 'c')) >= 20, processes)
  for _ in range(2):
    processes[0].send_signal(signal.SIGTERM)
    time.sleep(0.2)
  began = time.time()
  assert (
    'a preemption notice came' in hosts.finish(processes, tmp_path / 'cut')[0]
    and time.time() - began < 30
  )
  assert 20 <= parameters(tmp_path / 'c')[0] < 300
  hosts.finish(
    hosts.start(1, 1, tmp_path / 'again', *argv, f'--workdir={tmp_path / "c"}'), tmp_path / 'again'
  )
  compare(tmp_path / 'c', parameters(tmp_path / 'w'), rows(tmp_path / 'w'))


@pytest.mark.slow
def test_a_host_that_hangs_ends_the_others_within_the_heartbeat(tmp_path):
  processes = hosts.start(
    2,
    1,
    tmp_path / 'log',
    *TINY,
    f'--workdir={tmp_path / "w"}',
    '--heartbeat=10',
    '--config.steps=1000',
  )
  wait_for(lambda: len(rows(tmp_path / 'w')) >= 1, processes)
  processes[1].send_signal(signal.SIGSTOP)
  began = time.time()
  assert processes[0].wait(60) != 0
  assert time.time() - began < 30
  processes[1].kill()


@pytest.mark.slow
def test_a_host_that_dies_ends_the_others_and_the_same_command_goes_on(tmp_path):
  argv = [*TINY, f'--workdir={tmp_path / "w"}', '--heartbeat=10', '--config.save_every=1']
  processes = hosts.start(2, 1, tmp_path / 'log', *argv, '--config.steps=1000')
  wait_for(lambda: len(rows(tmp_path / 'w')) >= 2, processes)
  processes[1].kill()
  assert processes[0].wait(60) != 0
  steps = parameters(tmp_path / 'w')[0] + 2
  hosts.finish(
    hosts.start(2, 1, tmp_path / 'again', *argv, f'--config.steps={steps}'), tmp_path / 'again'
  )
  assert parameters(tmp_path / 'w')[0] == steps


@pytest.mark.slow
def test_a_host_that_fails_alone_ends_the_others_within_the_heartbeat(tmp_path):
  """The first one cannot write its rows; the others wait for it in the next step."""
  workdir = tmp_path / 'w'
  processes = hosts.start(
    2, 1, tmp_path / 'log', *TINY, f'--workdir={workdir}', '--heartbeat=10', '--config.steps=1000'
  )
  wait_for(lambda: len(rows(workdir)) >= 1, processes)
  shutil.rmtree(workdir / 'images')
  (workdir / 'images').write_text('no folder')
  began = time.time()
  assert processes[0].wait(60) == 2 and 'error: ' in hosts.log_text(tmp_path / 'log')
  assert processes[1].wait(60) != 0 and time.time() - began < 40


def test_a_notice_between_a_save_and_the_next_check_is_heard(tmp_path):
  """Orbax asks jax for notices too, with the numbers of steps; those must not disturb the count of
  the hosts.
  """
  code = f"""
import os, signal, time
from vargrl.parallel import multihost, preemption
multihost.initialize(heartbeat_seconds=10)
import jax.numpy as jnp
from vargrl.checkpoint import store as stores
store = stores.Store({str(tmp_path / 'c')!r}, every_steps=1, max_to_keep=1)
with preemption.watch(print) as (check, _):
  for _ in range(40): check()
  store.save(7, {{'x': jnp.ones(3)}}, {{}}, {{}}, force=True)
  store.wait()
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(2)
  try:
    for _ in range(5): check()
  except preemption.Stop: print('heard')
"""
  found = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    timeout=100,
    cwd=hosts.ROOT,
    env=os.environ | {'PYTHONPATH': str(hosts.ROOT)},
  )
  assert 'heard' in found.stdout, found.stderr[-2000:]


@pytest.mark.slow
def test_two_hosts_killed_or_told_at_random_moments_are_uninterrupted(tmp_path):
  """Twenty times SIGKILL to one or both, or SIGTERM to one: at the end parameters, optimizer and
  rows are bit-equal.
  """
  rng = np.random.default_rng(0)
  argv = [*TINY, '--config.steps=8', '--config.save_every=2', '--heartbeat=10']
  hosts.finish(
    hosts.start(2, 2, tmp_path / 'whole.log', *argv, f'--workdir={tmp_path / "whole"}'),
    tmp_path / 'whole.log',
  )
  expected, expected_rows = parameters(tmp_path / 'whole'), rows(tmp_path / 'whole')
  began = time.time()
  hosts.finish(
    hosts.start(2, 2, tmp_path / 'timed.log', *argv, f'--workdir={tmp_path / "timed"}'),
    tmp_path / 'timed.log',
  )
  seconds, cuts, folder, n = time.time() - began, 0, tmp_path / 'cut0', 0
  while cuts < 20:
    log = tmp_path / f'log{n}'
    processes = hosts.start(2, 2, log, *argv, f'--workdir={folder}')
    time.sleep(rng.uniform(2, seconds))
    how = signal.SIGTERM if rng.integers(2) else signal.SIGKILL
    chosen = processes if rng.integers(2) else processes[:1] if rng.integers(2) else processes[1:]
    heard = all(
      'Rank' in hosts.log_text(log, i) for i in range(2)
    )  # before they have met, SIGTERM just ends a process
    cuts += any(p.poll() is None for p in processes)
    for process in chosen:
      process.send_signal(how)
    codes = hosts.wait_or_kill(processes, 60)
    if how == signal.SIGTERM and heard:
      assert codes == [0, 0], (codes, hosts.log_text(log), hosts.log_text(log, 1))
    done = (folder / 'checkpoints' / '8').exists()
    if done:
      compare(folder, expected, expected_rows)
      folder = tmp_path / f'cut{n + 1}'
    n += 1
  hosts.finish(
    hosts.start(2, 2, tmp_path / 'last', *argv, f'--workdir={folder}'), tmp_path / 'last'
  )
  compare(folder, expected, expected_rows)


def compare(folder, expected, expected_rows):
  step, found = parameters(folder)
  assert step == expected[0] and found.keys() == expected[1].keys()
  for name, x in expected[1].items():
    np.testing.assert_array_equal(found[name], x, err_msg=str(name))
  assert rows(folder) == expected_rows
