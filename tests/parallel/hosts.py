"""Starts the processes of a run, as a launcher would: each with its number, all with one
coordinator.
"""

import os
import pathlib
import socket
import subprocess
import sys
import time

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).parents[2]


def start(count, devices, log, *argv, only=None, **env):
  """`count` processes of `devices` each with the arguments of vargrl.main; what each says is in
  LOG.0, LOG.1 ...

  only: {number of a process: more arguments for it alone}.
  """
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{s.getsockname()[1]}'
  flags = f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0'
  found = []
  for i in range(count):
    who = {
      'JAX_COORDINATOR_ADDRESS': address,
      'JAX_NUM_PROCESSES': str(count),
      'JAX_PROCESS_ID': str(i),
    }
    with open(f'{log}.{i}', 'w') as out:
      found.append(
        subprocess.Popen(
          [
            sys.executable,
            str(ROOT / 'tests' / 'parallel' / 'hosts_child.py'),
            *argv,
            *(only or {}).get(i, []),
          ],
          cwd=ROOT,
          stdout=out,
          stderr=out,
          start_new_session=True,
          # NPROC: threads of the CPU client. With as few as there are devices, two programs wait
          # for each other.
          env=os.environ
          | {
            'NPROC': '16',
            'JAX_SHARE_BINARY_BETWEEN_HOSTS': '1',
            'XLA_FLAGS': flags,
            'JAX_PLATFORMS': 'cpu',
            'PYTHONUNBUFFERED': '1',
            'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests" / "parallel"}',
          }
          | (who if count > 1 else {})
          | env,
        )
      )
  return found


def arrays(path):
  """{name: numpy array} of the state of a checkpoint, by plain orbax."""
  path = epath.Path(path)
  tree = ocp.PyTreeCheckpointHandler().metadata(path)
  tree = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), getattr(tree, 'tree', tree)
  )
  found = ocp.PyTreeCheckpointer().restore(path, restore_args=tree)
  return {jax.tree_util.keystr(key): x for key, x in jax.tree_util.tree_leaves_with_path(found)}


def wait_or_kill(processes, seconds):
  """Exit codes; who still waits for a dead host after so many seconds is killed, as a launcher
  would.
  """
  until = time.time() + seconds
  for process in processes:
    try:
      process.wait(max(until - time.time(), 0.1))
    except subprocess.TimeoutExpired:
      process.kill()
  return [process.wait() for process in processes]


def log_text(log, i=0):
  return pathlib.Path(f'{log}.{i}').read_text()


def finish(processes, log, code=0, timeout=400):
  """Waits for all; what each of them said."""
  try:
    codes = [process.wait(timeout) for process in processes]
  finally:
    for process in processes:
      process.kill()
  texts = [log_text(log, i) for i in range(len(processes))]
  assert codes == [code] * len(processes), '\n'.join(
    [str(codes), *(text[-3000:] for text in texts)]
  )
  return texts
