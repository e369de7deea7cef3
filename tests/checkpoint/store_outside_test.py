"""What the outside does to a store: other devices, other processes, SIGKILL, a full disk."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.checkpoint import digest, store

ROOT = pathlib.Path(__file__).parents[2]


def child(*args):
  """Starts store_child.py; its own number of devices replaces ours."""
  env = {key: value for key, value in os.environ.items() if key != 'XLA_FLAGS'}
  return subprocess.Popen(
    [sys.executable, str(ROOT / 'tests/checkpoint/store_child.py'), *map(str, args)],
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    cwd=ROOT,
    env=env | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
  )


def output(process):
  out, err = process.communicate(timeout=120)
  assert process.returncode == 0, err
  return out


def noise(step, size):
  w = np.random.default_rng(step).normal(size=(size,)).astype('float32')
  return {'params': {'w': jnp.asarray(w)}}


@pytest.fixture(scope='module')
def eight(tmp_path_factory):
  """Returns the folder of a state saved on eight devices, and digests on some layouts."""
  folder = tmp_path_factory.mktemp('eight')
  return folder, output(child('save', folder)).splitlines()


def test_saved_on_eight_devices_restores_on_another_layout_and_on_one_device(eight):
  output(child('restore', eight[0]))


def test_digests_are_the_same_on_every_layout_and_number_of_processes(eight, tmp_path):
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  two = [child('two_processes', tmp_path, port, index) for index in (0, 1)]
  lines = eight[1] + [output(process).splitlines()[-1] for process in two]
  assert len(lines) == 5 and len(set(lines)) == 1
  assert sorted(os.listdir(tmp_path)) == ['1', '2', 'corrupt']
  assert os.listdir(tmp_path / 'corrupt') == ['2']


def test_killed_at_any_moment_it_resumes_at_a_complete_step(tmp_path):
  complete, rng = 0, np.random.default_rng(0)
  for _ in range(3):
    process = child('loop', tmp_path)
    resumed = process.stdout.readline().split()
    assert resumed[0] == 'resumed' and resumed[2] == 'True', process.stderr.read()
    assert int(resumed[1]) >= complete  # What was complete once is never lost.
    for _ in range(3):
      line = process.stdout.readline()
    time.sleep(rng.uniform(0, 0.1))
    os.kill(process.pid, signal.SIGKILL)
    rest = [line, *process.stdout.read().splitlines(), *process.stderr.read().splitlines()]
    process.wait()
    found = [int(n) for n in re.findall(r'saving \d+ (\d+)', '\n'.join(rest))]
    complete = max([complete, *found])
  assert complete >= 3
  wanted = {
    'params': {
      'w': jax.ShapeDtypeStruct((4096, 32), jnp.float32),
      'e': jax.ShapeDtypeStruct((16, 4096), jnp.bfloat16),
    },
    'opt': {
      'count': jax.ShapeDtypeStruct((), jnp.int32),
      'used': jax.ShapeDtypeStruct((4096,), jnp.bool_),
    },
  }
  checkpoints = store.Store(tmp_path, every_steps=1, max_to_keep=3)
  step, tree, data, _ = checkpoints.restore(wanted)
  assert step >= complete and data == {'next': step} and int(tree['opt']['count']) == step
  expected = np.random.default_rng(step).normal(size=(4096, 32)).astype('float32')
  assert np.array_equal(np.asarray(tree['params']['w']), expected)
  checkpoints.save(step + 1, tree, None, {})
  checkpoints.close()
  assert all(p.name.isdigit() for p in tmp_path.iterdir())  # Nothing of the killed saves is left.


@pytest.fixture
def small_disk(tmp_path):
  """Returns a folder on a file system of 4 MB."""
  (tmp_path / 'disk').mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'none', str(tmp_path / 'disk')]
  try:
    done = subprocess.run(mount, capture_output=True, text=True)
  except FileNotFoundError:
    pytest.skip('no mount command here')
  if done.returncode:
    pytest.skip(f'mount is not permitted here: {done.stderr.strip()}')
  yield tmp_path / 'disk'
  subprocess.run(['umount', '-l', str(tmp_path / 'disk')], check=True)


@pytest.mark.parametrize('late', ['save', 'wait', 'close'])
def test_a_full_disk_is_told_at_the_next_call_and_the_old_step_stays(small_disk, late):
  small, large = noise(1, 100_000), noise(2, 2_000_000)
  checkpoints = store.Store(small_disk / 'run', every_steps=10, max_to_keep=1)
  checkpoints.save(10, small, {'next': 10}, {})
  checkpoints.wait()
  checkpoints.save(20, large, {'next': 20}, {})

  def again():
    end = time.time() + 20
    while late == 'save' and time.time() < end:
      checkpoints.save(21, small, None, {})  # Not due, but the sooner it is told the better.
    return checkpoints.wait() if late == 'wait' else checkpoints.close()

  told = f'{small_disk}/run: step 20 could not be saved .*No space'
  with pytest.raises(OSError, match=told) as error:
    again()
  assert (
    str(error.value).endswith('the newest complete checkpoint is 10') and checkpoints.latest() == 10
  )
  assert os.listdir(small_disk / 'run') == ['10']  # The rubble is gone, there is space again.
  if late != 'close':
    assert checkpoints.save(20, small, {'next': 20}, {})
    checkpoints.close()
    assert os.listdir(small_disk / 'run') == ['20']
  step, tree, _, _ = store.Store(small_disk / 'run', every_steps=10, max_to_keep=1).restore(
    jax.eval_shape(lambda: small)
  )
  assert step == (10 if late == 'close' else 20)
  assert digest.digests(tree) == digest.digests(small)
