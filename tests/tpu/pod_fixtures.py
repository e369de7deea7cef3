"""Pods for the tests of tpu/: nothing set up, or both workers set up."""

import shutil
import sys

from pods import GCLOUD, MAIN, TPU, WORKER, copy_pod, executable, git, kill_runs
import pytest


@pytest.fixture(scope='module')
def new(tmp_path_factory):
  """A repository with tpu/ and a stand-in for vargrl, a fake gcloud, and two workers, to be
  copy_pod.
  """
  top = tmp_path_factory.mktemp('pod') / 'new'
  repo = top / 'repo'
  shutil.copytree(TPU, repo / 'tpu')
  (repo / 'vargrl').mkdir()
  (repo / 'vargrl' / 'main.py').write_text(MAIN)
  (repo / 'setup.py').write_text('one')
  (repo / 'old.txt').write_text('a file that a later commit may lack')
  git(repo, 'init', '-q', '--template=')
  git(repo, 'add', '.')
  git(repo, 'commit', '-qm', 'one')
  executable(top / 'bin' / 'gcloud', f'#!{sys.executable} -IS\n{GCLOUD}')
  (top / 'bucket').mkdir()
  for worker in ('w0', 'w1'):
    for name, text in WORKER.items():
      text = text.format(name=worker, python=sys.executable)
      executable(top / 'workers' / worker / 'bin' / name, f'#!/bin/bash\n{text}\n')
  (top / 'states').write_text('READY')
  return top


@pytest.fixture
def pod(new, tmp_path):
  """Nothing is set up."""
  pod = copy_pod(new, tmp_path)
  yield pod
  kill_runs(pod)


@pytest.fixture(scope='module')
def once(new, tmp_path_factory):
  pod = copy_pod(new, tmp_path_factory.mktemp('ready'))
  pod.run('setup.sh')
  return pod.top


@pytest.fixture
def ready(once, tmp_path):
  """Both workers are set up."""
  pod = copy_pod(once, tmp_path)
  yield pod
  kill_runs(pod)
