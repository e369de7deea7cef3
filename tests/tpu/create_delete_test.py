"""tpu/create.sh and tpu/delete.sh: a TPU is made, waited for, preempted and removed."""

import shlex

from pods import ABSENT, WHERE
import pytest


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
