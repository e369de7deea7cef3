"""Loading a reference checkpoint holds one copy of the parameters in host memory."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

CHILD = pathlib.Path(__file__).parent / 'memory_child.py'


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='RssAnon is of Linux')
def test_a_mesh_is_loaded_with_one_copy_in_memory(tmp_path):
  """d16 (1.24 GB) onto eight devices. Measured: 1.05 times its bytes more; d30, 8.0 GB: 1.005."""
  path = str(tmp_path / 'd16.safetensors')
  env = os.environ | {
    'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
    'JAX_PLATFORMS': 'cpu',
  }
  for mode in ('write', 'load'):
    out = subprocess.run(
      [sys.executable, CHILD, mode, 'd16', path], capture_output=True, text=True, env=env
    )
    assert out.returncode == 0, out.stderr
  found = json.loads(out.stdout.splitlines()[-1])
  assert found['bytes'] == 4 * 310_283_520
  assert found['peak'] - found['before'] < 1.15 * found['bytes'], found
