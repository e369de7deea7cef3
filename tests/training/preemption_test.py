"""Told to stop, a run saves its last complete step, and the same call goes on as if nothing had
been.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from experiments import quickstart
from vargrl.checkpoint import store as stores
from vargrl.eval.run import Evaluator
from vargrl.parallel import mesh as meshes
from vargrl.parallel import preemption
from vargrl.training import loop
from vargrl.training.run import Run


@pytest.fixture(autouse=True)
def shown_by_python():
  """pytest's own handler of Ctrl-C in place, whatever a test leaves."""
  before = signal.getsignal(signal.SIGINT)
  yield
  assert signal.getsignal(signal.SIGINT) == before


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """A run is made for all devices of the machine; one will do."""
  before = meshes.make
  monkeypatch.setattr(
    meshes, 'make', lambda axes, devices=None: before(axes, devices or jax.devices()[:1])
  )


def config(steps):
  c = quickstart.get_config('smoke').classifier.copy_and_resolve_references()
  c.steps, c.save_every, c.evals = steps, 1000, {}
  return c


def rows(workdir):
  path = workdir / 'metrics.jsonl'
  found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  return [{k: v for k, v in row.items() if not k.startswith(('time/', 'speed/'))} for row in found]


def interrupt_at(workdir, row):
  """Ctrl-C when a run has written so many rows."""

  def wait():
    while len(rows(workdir)) < row:
      time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=wait, daemon=True).start()


def latest(workdir):
  return stores.Store(workdir / 'checkpoints', every_steps=1, max_to_keep=9).latest()


def test_interrupted_twice_and_continued_is_uninterrupted(tmp_path):
  steps, said = 80, []
  whole = loop.train(config(steps), tmp_path / 'whole')
  for row in (5, 30):
    interrupt_at(tmp_path / 'cut', row)
    with pytest.raises(preemption.Stop, match='interrupted'):
      loop.train(config(steps), tmp_path / 'cut', log=said.append)
    assert row <= latest(tmp_path / 'cut') == len(rows(tmp_path / 'cut')) < steps
  assert sum('once more to stop at once' in text for text in said) == 2
  cut = loop.train(config(steps), tmp_path / 'cut')
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(cut), strict=True):
    np.testing.assert_array_equal(a, b)
  assert rows(tmp_path / 'cut') == rows(tmp_path / 'whole')


def test_a_second_ctrl_c_ends_at_once_and_breaks_nothing(tmp_path):
  def look(params, frozen, poll):
    for _ in range(2):
      os.kill(os.getpid(), signal.SIGINT)
    yield 'never', 1.0

  run = Run(config(5), tmp_path)
  run.evals.append(Evaluator('look', look, every_steps=0))
  with pytest.raises(KeyboardInterrupt):
    loop.train(run.config, tmp_path, run=run)
  loop.train(config(5), tmp_path)
  assert latest(tmp_path) == 5 and len(rows(tmp_path)) == 5


def test_while_a_checkpoint_is_saved_one_more_is_ignored():
  said = []
  with pytest.raises(preemption.Stop), preemption.watch(said.append) as (check, begin_save):
    check()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(preemption.Stop):
      check()
    begin_save()
    os.kill(os.getpid(), signal.SIGINT)
    assert 'unfinished' in said[-1]
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)


def test_a_ctrl_c_after_the_last_check_is_not_forgotten():
  with pytest.raises(preemption.Stop), preemption.watch(print) as (check, _):
    check()
    os.kill(os.getpid(), signal.SIGINT)


def test_time_is_told_by_phase_and_chosen_steps_are_profiled(tmp_path):
  c = config(4)
  c.profile = (1, 2)
  loop.train(c, tmp_path)
  found = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  for i, row in enumerate(found):
    parts = {
      k: v
      for k, v in row.items()
      if k.startswith('time/') and k not in ('time/step', 'time/save_whole')
    }
    np.testing.assert_allclose(row['time/step'], sum(parts.values()), rtol=1e-6)
    learning = row['time/step'] - parts['time/save'] - parts.get('time/eval', 0.0)
    np.testing.assert_allclose(row['speed/images'], c.data.batch / learning, rtol=1e-6)
    assert (row['speed/goodput'] > 0) == (i > 0) and row['speed/goodput'] < 1
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))


def test_evaluators_that_were_cut_after_the_last_step_are_run_by_the_next_call(tmp_path):
  calls = []

  def look(params, frozen, poll):
    calls.append(len(calls))
    if calls == [0, 1]:
      os.kill(os.getpid(), signal.SIGINT)
    yield 'calls', 1.0

  for expected in (
    [0, 1],
    [0, 1, 2],
    [0, 1, 2],
  ):  # before the first step and after the last; again; finished
    run = Run(config(3), tmp_path)
    run.evals.append(Evaluator('look', look, every_steps=0))
    try:
      loop.train(run.config, tmp_path, run=run)
      assert expected != [0, 1]
    except preemption.Stop:
      assert expected == [0, 1]
    assert calls == expected and latest(tmp_path) == 3
  assert [row['step'] for row in rows(tmp_path) if 'look/calls' in row] == [0, 3]


def test_an_evaluator_is_cut_between_two_of_its_calls(tmp_path):
  calls = []

  def cut(poll):
    calls.append(len(calls))
    if len(calls) == 2:
      os.kill(os.getpid(), signal.SIGINT)
    poll()

  for total in (2, 2 + 2 * 6):  # of 360 images in 64s, before the first step and after the last
    c = config(3)
    c.evals = quickstart.get_config('smoke').classifier.copy_and_resolve_references().evals
    run = Run(c, tmp_path)
    (evaluator,) = run.evals
    run.evals[:] = [
      dataclasses.replace(
        evaluator,
        evaluate=lambda params, frozen, poll, e=evaluator.evaluate: e(
          params, frozen, lambda: cut(poll)
        ),
      )
    ]
    try:
      loop.train(run.config, tmp_path, run=run)
      assert len(calls) > 2
    except preemption.Stop:
      assert latest(tmp_path) == 0
    assert len(calls) == total


@pytest.mark.parametrize('mode, ends', [('sample', True), ('train', False)])
def test_only_who_listens_for_a_notice_keeps_sigterm_from_ending_the_process(mode, ends):
  code = (
    'import time, types\nfrom vargrl.commands import process\n'
    f'process.initialize({mode!r}, types.SimpleNamespace(heartbeat=100))\nprint("begun", '
    'flush=True)\ntime.sleep(100)'
  )
  with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) as process:
    try:
      assert process.stdout.readline() == 'begun\n'
      process.send_signal(signal.SIGTERM)
      if ends:
        assert process.wait(30) == -signal.SIGTERM
      else:
        with pytest.raises(subprocess.TimeoutExpired):
          process.wait(2)
    finally:
      process.kill()
