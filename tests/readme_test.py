"""The README: its examples run, its commands are such, what it names is there."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from vargrl import contracts
from vargrl.commands import experiment, flags
from vargrl.data import source
from vargrl.data.dialogue import files
from vargrl.reporting import writer
from vargrl.training.run import Run

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.M | re.S)
FILE = re.compile(r'^# (\S+\.py)\b.*\n', re.M)  # begins an example's file, within its code block
# Three rewards of pictures are tried on the last run of the quickstart alone, at its smallest.
SHORT = """
import my_experiment
def get_config(arg=''):
  c = my_experiment.get_config('smoke').grpo
  c.init, c.evals = {}, {}
  return c
"""


def blocks(language):
  """The code blocks of a language, in their order."""
  return [code for name, code in FENCE.findall(README) if name == language]


def example_files():
  """{path: text} of the files that code blocks are made of."""
  found = {}
  for code in blocks('python'):
    starts = [*FILE.finditer(code)]
    for match, after in zip(starts, [*starts[1:], None]):
      found[match[1]] = code[match.start() : after.start() if after else None]
  return found


@pytest.fixture
def folder(tmp_path):
  """A folder as of somebody who has copied the examples."""
  (tmp_path / 'experiments').symlink_to(ROOT / 'experiments')
  for path, text in example_files().items():
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(text)
  return tmp_path


def run(folder, *arguments):
  """Runs Python in the folder, as a person does; its output where it fails."""
  path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]).rstrip(os.pathsep)
  env = os.environ | {'PYTHONPATH': path}
  done = subprocess.run(
    [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


def train(folder, config, *options):
  """Rows of metrics.jsonl after `train`. options: of Python."""
  run(folder, *options, '-m', 'vargrl.main', 'train', '--config', config, '--workdir', 'runs/mine')
  return [row for row in writer.load(folder / 'runs' / 'mine') if 'reward' in row]


def test_rewards_of_ones_own_are_trained_on(folder):
  (folder / 'short.py').write_text(SHORT)
  np.savez(folder / 'network.npz', w=np.full((8, 8, 3), 0.5, np.float32))
  rows = train(folder, 'short.py')
  assert len(rows) == 2
  for row in rows:
    dark, rank, bright, network = (
      row[f'rewards/{name}'] for name in ('dark', 'rank', 'bright', 'network')
    )
    assert 0 < dark < 1 and abs(bright) < 1 and -0.5 < network < 0.5
    assert 0.3 < rank < 0.5  # of a group of four without ties: 3/8
    assert row['reward'] == pytest.approx(dark + 0.1 * rank + 0.5 * network, abs=1e-4)
    assert row['reward/masked'] == 0


def test_a_model_of_ones_own_learns_from_a_reward_on_text(folder):
  line = blocks('json')[0].splitlines()[0]
  assert json.loads(line)['letters'] == 'aeiou'
  (folder / 'prompts.jsonl').write_text(f'{line}\n' * 8)
  rows = train(folder, 'my_text.py', '-P')  # the folder is not on sys.path, as of `vargrl train`
  assert len(rows) == 40
  assert all(row['sampler/trainer_gap'] < 1e-5 for row in rows)
  assert rows[0]['reward'] < 0.3 and rows[-1]['reward'] > 0.8
  assert (folder / 'runs' / 'mine' / 'report.html').is_file()


def test_images_of_ones_own_are_a_data_set(folder):
  for i in range(8):
    path = folder / 'pictures' / ('cat', 'dog')[i % 2] / f'{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 24, 3), 30 * i, np.uint8)).save(path)
  run(folder, 'make_images.py')
  stream = source.make(
    dataset='my_images',
    split='train',
    batch=8,
    size=16,
    crop='center',
    flip=False,
    shuffle=True,
    max_unreadable=0.0,
    dir=str(folder / 'data'),
    threads=0,
    workers=0,
    seed=0,
    rows=range(8),
  )
  batch = next(stream)
  assert stream.class_names == ('cat', 'dog') and batch['image'].shape == (8, 16, 16, 3)
  grey = np.round((batch['image'][:, 0, 0, 0] + 1) * 127.5 / 30).astype(int)
  np.testing.assert_array_equal(batch['label'], grey % 2)


def test_records_of_dialogues_are_read(folder):
  text = blocks('json')[0]
  (folder / 'all.jsonl').write_text(text.replace('\n  ', ' '))
  for name in ('before.png', 'after.png'):
    Image.new('RGB', (8, 8)).save(folder / name)
  read, count = files.open_source(str(folder / 'all.jsonl'), '', '', role='prompt')
  assert count == 2 and read(0).metadata == {'letters': 'aeiou'} and len(read(1).images) == 2


def test_settings_by_segment_are_those_of_a_run(tmp_path):
  (code,) = [code for code in blocks('python') if 'c.objective.loss.segments' in code]
  c = experiment.load('experiments/scenes.py:smoke-grpo').grpo
  exec(code, {'c': c})
  c.init = {}
  run = Run(c, tmp_path, inference_only=True)
  assert [span.name for span in run.policy.spans] == ['text', 'image']
  assert run.shapes.ema is not None and run.optimizer.clip_groups is not None


def commands():
  """[(command, its arguments)] of code blocks and of the table of commands."""
  text = '\n'.join(blocks('sh')).replace('\\\n', ' ')
  lines = re.findall(r'(?:vargrl\.main|tpu/run\.sh) +(.*?)(?: +#.*)?$', text, re.M)
  found = [(line.split()[0], line.split()[1:]) for line in lines]
  common = ['--config', 'experiments/quickstart.py']
  for name, arguments in re.findall(r'^\| `(\w+)`[^|]*\| `(--[^`]*)`:', README, re.M):
    found.append((name, common + arguments.split()))
  return found


@pytest.mark.parametrize('command, arguments', commands(), ids=lambda x: str(x)[:40])
def test_commands_are_such(command, arguments):
  arguments = [x.replace('experiments/X.py', 'experiments/quickstart.py') for x in arguments]
  if command == 'bench':
    arguments[1] = 'experiments/grpo_var_d16_jpeg.py'
  flags.parse(command, arguments)


def test_every_command_is_in_the_table():
  assert {command for command, _ in commands()} == {*flags.COMMANDS}


def test_the_first_block_under_test_is_what_ci_runs():
  section = README.split('\n## Test\n')[1]
  assert FENCE.search(section)[2] == "pip install -e '.[test]' && python -m pytest\n"
  section = README.split('\n## Quickstart\n')[1]
  command = 'python -m vargrl.main train --config experiments/quickstart.py'
  assert FENCE.search(section)[2] == f'pip install -e . && {command} --workdir runs/quickstart\n'


def test_what_the_readme_names_is_there():
  assert len(README.splitlines()) <= 350
  names = re.findall(r'`((?:models|tokenizers|objectives|eval|rewards)\.\w+)`', README)
  assert names and not {*names} - {*contracts.names()}
  for path in re.findall(r'(?<![\w/])(?:vargrl|experiments|tpu|tests)/[\w./*]*\w', README):
    assert [*ROOT.glob(path)] or path == 'experiments/X.py' or 'NAME' in path, path
  stems = {path.stem for path in (ROOT / 'experiments').glob('*.py')}
  table = README.split('## What works')[1].split('**Never')[0]
  for name in re.findall(r'`(\w+\*?)`', ' '.join(re.findall(r'\|([^|]*)\|$', table, re.M))):
    assert any(pathlib.PurePath(stem).match(name) for stem in stems), name
  headings = {re.sub(r'[^\w -]', '', h).lower().replace(' ', '-') for h in headings_of(README)}
  assert {*re.findall(r'\]\(#([\w-]+)\)', README)} <= headings


def headings_of(text):
  return re.findall(r'^#+ (.*)$', FENCE.sub('', text), re.M)
