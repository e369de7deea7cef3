"""A fake gcloud that writes down its calls and runs `ssh --command` here, in the home of a worker,
with real processes and signals; `copy_pod` makes a pod of it for one test."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time
import types

TPU = pathlib.Path(__file__).parents[2] / 'tpu'
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
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, 'what was waited for did not happen'
    time.sleep(0.02)


def copy_pod(template, tmp_path):
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

  def worker_calls(name):
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
    worker_calls=worker_calls,
    running=running,
    states=lambda *states: (top / 'states').write_text(' '.join(states)),
    saved=lambda: [h.name for h in homes if (h / 'vargrl/tree/saved').exists()],
  )


def kill_runs(pod):
  for home in pod.homes:
    try:
      os.killpg(int((home / 'vargrl' / 'pid').read_text()), signal.SIGKILL)
    except (OSError, ValueError):
      pass


def start_run(pod, *argv):
  pod.run('run.sh', *argv)
  wait(lambda: len(pod.running()) == 2)
