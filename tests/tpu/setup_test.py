"""tpu/setup.sh: Python and vargrl on every worker, and the bucket."""

import re
import shutil

from pods import MAIN, git, start_run, wait
import pytest


def test_setup_twice_is_one_environment_and_two_installs(ready):
  ready.run('setup.sh', says='w1: set up')
  assert ready.worker_calls('python3') == ['python3 -m pip install --quiet --user uv']
  assert len(ready.worker_calls('uv')) == 1
  assert ready.worker_calls('pip') == ['pip install --quiet --upgrade -e ./tree[tpu]'] * 2
  assert not ready.worker_calls('gcsfuse')
  assert [(h / 'vargrl/tree/vargrl/main.py').read_text() for h in ready.homes] == [MAIN] * 2


def test_an_install_that_failed_has_to_be_repeated_before_a_run(ready):
  (ready.homes[1] / 'broken').touch()
  ready.run('setup.sh', code=1)
  out = ready.run(
    'run.sh', 'train', code=2, says='w1: not set up for the setup.py of HEAD: tpu/setup.sh'
  )
  assert 'w0' not in out and not ready.running()


def test_a_setup_py_that_has_changed_asks_for_setup(ready):
  (ready.repo / 'setup.py').write_text('two')
  git(ready.repo, 'commit', '-qam', 'two')
  ready.run('run.sh', 'train', code=2, says='w0: not set up for the setup.py of HEAD: tpu/setup.sh')
  ready.run('setup.sh')
  start_run(ready, 'train')


@pytest.mark.parametrize('script', [('setup.sh',), ('run.sh', 'train')])
def test_outside_of_git_there_is_one_sentence(pod, script):
  shutil.rmtree(pod.repo / '.git')
  out = pod.run(*script, code=2, says='a Git checkout of vargrl with one expected')
  assert len(out.splitlines()) < 3


def test_the_bucket_is_a_folder_of_the_run_and_has_the_log_of_every_worker(pod):
  pod.values(BUCKET='gs://my-bucket')
  pod.run('setup.sh', says='--workdir bucket/DIR')
  start_run(pod, 'train')
  assert re.fullmatch(r'gcsfuse --\S.* my-bucket tree/bucket', *pod.worker_calls('gcsfuse'))
  (pod.homes[0] / 'vargrl/tree/bucket/runs').mkdir()
  assert (pod.bucket / 'runs').is_dir()
  pod.run('stop.sh')
  logs = [pod.bucket / 'logs/pod' / f'{home.name}.log' for home in pod.homes]
  wait(lambda: all(log.exists() and log.read_text().endswith('step 1\nsaved\n') for log in logs))
  for home in pod.homes:
    (home / 'vargrl/tree/argv.json').unlink()
  start_run(pod, 'train')
  assert len(pod.worker_calls('gcsfuse')) == 1, 'mounted twice'


def test_a_bucket_that_cannot_be_mounted_is_told_and_nothing_starts(ready):
  ready.values(BUCKET='gs://my-bucket')
  (ready.homes[1] / 'broken').touch()
  ready.run(
    'run.sh', 'train', code=2, says='w1: gs://my-bucket cannot be mounted: bucket does not exist'
  )
  assert len(ready.calls('scp')) == 1 and not ready.running()
