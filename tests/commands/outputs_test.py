"""Paths of flags: one place each, and tried before anything is drawn, trained or compiled."""

import pytest
from refusals import QUICK, refused

from vargrl.commands import flags, sample
from vargrl.io import text

VAR = 'experiments/grpo_var_d16_jpeg.py:smoke'


@pytest.mark.parametrize('command', [*flags.COMMANDS])
def test_every_path_of_a_command_is_expanded_once(command, tmp_path, monkeypatch):
  (tmp_path / 'mine.py').write_text(
    'get_config = lambda arg="": __import__("ml_collections").ConfigDict(dict(a=1))'
  )
  monkeypatch.setenv('HOME', str(tmp_path))
  named = [name for name, flag in flags.flags_of(command).items() if flag.kind == 'path']
  argv = [f'--{name}=~/{name}' for name in named]
  for config in (['--config=~/mine.py:x'], ['--config', '~/mine.py']):
    found = flags.parse(command, [*config, *argv])
    assert {name: found[name].value for name in named} == {x: f'{tmp_path}/{x}' for x in named}


def test_what_is_no_path_is_kept():
  found = flags.parse('sample', ['--config', QUICK, '--workdir=w/', '--begin=~/x', '--out='])
  assert (found.workdir, found.begin, found.out, found.folder) == ('w/', '~/x', '', '')


@pytest.mark.parametrize(
  'argv, words',
  [
    (['--workdir=~nobody_has_this/x'], "--workdir: path: '~nobody_has_this/x' found, which is"),
    (['--workdir=gs://x/y'], '--workdir: gs://x/y found, a local path expected'),
    (['--workdir=w', '--out=a\0b'], 'without a NUL'),
  ],
)
def test_what_no_path_can_be_is_told(argv, words):
  with pytest.raises(ValueError, match=words):
    flags.parse('sample', ['--config', QUICK, *argv])


@pytest.mark.parametrize(
  'argv, words',
  [
    (['train', QUICK, '--workdir=/proc/x'], '--workdir: cannot write to /proc/x'),
    (['sample', VAR, '--workdir={}', '--out=/proc/x/y'], '--out: cannot write to /proc/x'),
    (['sample', VAR, '--workdir={}', '--out={}/file/y'], '--out: cannot write to {}/file'),
    (
      ['sample', VAR, '--workdir={}', '--out={}/folder'],
      '/folder.png is a folder, a file expected',
    ),
    (['sample', VAR, '--workdir={}', '--folder=/proc/x'], '--folder: cannot write to /proc/x'),
    (['sample', VAR, '--workdir={}', '--folder={}/new', '--npz=/proc/x/y.npz'], '--npz: cannot'),
    (['export', VAR, '--workdir={}', '--out=/proc/x/y.safetensors'], '--out: cannot write to'),
    (['export', 'experiments/scenes.py:smoke', '--workdir={}', '--out=/proc/x'], '--out: cannot'),
    (['pairs', VAR, '--out=/proc/x'], '--out: cannot write to /proc/x'),
  ],
)
def test_what_cannot_be_written_is_tried_before_all_work(capsys, compiles, tmp_path, argv, words):
  (tmp_path / 'file').touch()
  (tmp_path / 'folder.png').mkdir()
  command, config, *more = (x.replace('{}', str(tmp_path)) for x in argv)
  error = refused(capsys, compiles, command, '--config', config, *more)
  assert words.replace('{}', str(tmp_path)) in error
  assert {path.name for path in tmp_path.iterdir()} == {'file', 'folder.png'}


def test_trying_leaves_what_was_there(tmp_path):
  (tmp_path / 'a').mkdir()
  text.check_writable(tmp_path / 'a' / 'b' / 'c', '--x', keep=False)
  assert not [*(tmp_path / 'a').iterdir()]
  text.check_writable(tmp_path / 'a', '--x', keep=False)
  assert text.check_writable(tmp_path / 'a' / 'b', '--x').is_dir()


def test_no_more_than_the_outputs_of_the_call_are_tried(tmp_path):
  found = flags.parse('sample', ['--config', QUICK, f'--workdir={tmp_path}', '--npz=/proc/x'])
  sample.check_outputs(found, f'{tmp_path}/samples')
