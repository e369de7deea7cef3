"""tpu/run.sh, tpu/stop.sh and tpu/logs.sh: a run on all workers or on none."""

import json
import os
import re
import signal
import subprocess

from pods import WHERE, executable, git, start_run, wait
import pytest


def test_arguments_reach_every_worker_as_they_were_given(ready):
  argv = [
    'train',
    '--config',
    'experiments/X.py:d30',
    "--config.mesh=(('data',1), ('fsdp', -1))",
    '--a="b  c"',
    "it's",
    '$HOME `id` \\ * ? ; & | > < # ! ~',
    'two\nlines',
    '',
    'ä',
  ]
  start_run(ready, *argv)
  for home in ready.homes:
    assert json.loads((home / 'vargrl/tree/argv.json').read_text()) == {
      'argv': argv,
      'platforms': 'tpu,cpu',
    }
    log = (home / 'vargrl/log').read_text()
    assert 'python -m vargrl.main train --config' in log and log.endswith('step 1\n')


def test_head_is_what_runs_and_what_it_lacks_is_gone_but_runs_stay(ready):
  kept = [home / 'vargrl/tree/runs/x/metrics.jsonl' for home in ready.homes]
  for path in kept:
    executable(path, 'mine')
  git(ready.repo, 'rm', '-q', 'old.txt')
  (ready.repo / 'new file.txt').write_text('new')
  git(ready.repo, 'add', '.')
  git(ready.repo, 'commit', '-qm', 'two')
  assert (ready.homes[0] / 'vargrl/tree/old.txt').exists()
  start_run(ready, 'train')
  for home, path in zip(ready.homes, kept):
    assert path.read_text() == 'mine' and (home / 'vargrl/tree/new file.txt').read_text() == 'new'
    assert not (home / 'vargrl/tree/old.txt').exists()


@pytest.mark.parametrize('name', ['setup.py', 'experiments/new.py'])
def test_what_is_not_committed_is_refused(ready, name):
  executable(ready.repo / name, 'changed')
  ready.run(
    'run.sh',
    'train',
    code=2,
    says=f'error: changes that are not committed, commit them first: {name}\n',
  )
  assert len(ready.calls('scp')) == 1 and not ready.running()


def test_a_run_beside_a_run_is_refused_on_all_workers(ready):
  start_run(ready, 'train')
  before = len(ready.calls())
  pids = [(home / 'vargrl/pid').read_text() for home in ready.homes]
  out = ready.run('run.sh', 'train', '--other', code=2, says='error: nothing was started:')
  assert all(
    f'w{i}: a run is alive, pid {pid.strip()}: tpu/stop.sh' in out for i, pid in enumerate(pids)
  )
  assert [call[1] for call in ready.calls()[before:]] == ['describe', 'ssh']
  assert [(home / 'vargrl/pid').read_text() for home in ready.homes] == pids
  ready.run('setup.sh', code=1, says='a run is alive, stop it first: tpu/stop.sh')


def test_one_busy_worker_keeps_all_from_starting(ready):
  start_run(ready, 'train')
  os.kill(int((ready.homes[0] / 'vargrl/pid').read_text()), signal.SIGKILL)
  (ready.homes[0] / 'vargrl/tree/argv.json').unlink()
  wait(lambda: 'w0' not in ready.run('run.sh', 'train', code=2, says='w1: a run is alive'))
  assert ready.running() == ['w1']


def test_the_pid_of_another_program_is_not_a_run(ready):
  other = subprocess.Popen(['sleep', '60'])
  for home in ready.homes:
    (home / 'vargrl/pid').write_text(f'{other.pid}\n')
  ready.run('stop.sh', '--kill', says='w0: no run')
  start_run(ready, 'train')
  assert other.poll() is None
  other.kill()
  other.wait()


def test_stop_lets_the_run_save_and_the_same_command_starts_again(ready):
  start_run(ready, 'train')
  out = ready.run('stop.sh')
  assert ready.saved() == ['w0', 'w1'] and re.search(r'w0: pid \d+ has ended', out)
  ready.run('stop.sh', says='w1: no run')
  for home in ready.homes:
    (home / 'vargrl/tree/argv.json').unlink()
  start_run(ready, 'train')
  assert (ready.homes[0] / 'vargrl/log').read_text().count('python -m vargrl.main') == 2


def test_a_run_that_does_not_stop_is_told_and_killed_only_with_kill(ready):
  start_run(ready, 'train', '--stubborn')
  ready.run('stop.sh', '--wait=0', code=2, says='tpu/stop.sh --kill')
  ready.run('run.sh', 'train', code=2, says='a run is alive')
  ready.run('stop.sh', '--kill', says='has ended')
  ready.run('stop.sh', says='no run')
  assert not ready.saved()


def test_logs_follow_the_worker_that_is_asked_for(ready):
  start_run(ready, 'train')
  with open(ready.homes[1] / 'vargrl/log', 'a') as f:
    f.write('only here\n')
  process = ready.start('logs.sh', WORKER='1')
  try:
    lines = iter(process.stdout.readline, '')
    assert 'only here\n' in lines
    with open(ready.homes[1] / 'vargrl/log', 'a') as f:
      f.write('and later\n')
    assert 'and later\n' in lines
  finally:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
  ready.run('logs.sh', code=2, says="WORKER='x' found", WORKER='x')
  ready.run('logs.sh', code=2, says="SLICE='1' found", SLICE='1')


def test_every_slice_is_copied_to_started_and_stopped(pod):
  pod.values(QUEUED='yes', SLICES='2')
  pod.states('ACTIVE')
  pod.run('setup.sh')
  start_run(pod, 'train')
  pod.run('stop.sh')
  remote = pod.calls('ssh') + pod.calls('scp')
  assert len(remote) == 6
  for call in remote:
    assert call[0] == 'queued-resources' and {'--worker=all', '--node=all', *WHERE} < set(call)
