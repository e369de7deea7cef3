"""What `sample` refuses before anything is compiled."""

import json

import pytest
from refusals import QUICK, refused


def test_sampling_from_nothing(capsys, compiles, tmp_path):
  error = refused(capsys, compiles, 'sample', '--config', QUICK, '--workdir', str(tmp_path))
  assert 'no checkpoint' in error


def test_labels_outside_the_classes(capsys, compiles, tmp_path):
  error = refused(
    capsys, compiles, 'sample', '--config', QUICK, '--workdir', str(tmp_path), '--labels=3,12'
  )
  assert "'12'" in error


def test_a_sampler_that_nobody_published(capsys, compiles, tmp_path):
  argv = (
    'sample',
    '--config',
    'experiments/grpo_var_d16_jpeg.py:smoke',
    '--workdir',
    str(tmp_path),
  )
  error = refused(capsys, compiles, *argv, '--preset=vars')
  assert "preset: 'vars' found" in error and "'var', 'var-demo'" in error
  assert "'vars'" in refused(
    capsys, compiles, *argv, '--preset=vars', f'--folder={tmp_path}/folder'
  )
  assert '--npz' in refused(capsys, compiles, *argv, f'--npz={tmp_path}/a.npz') and not list(
    tmp_path.iterdir()
  )


@pytest.mark.parametrize(
  'config, argv, words',
  [
    (
      'scenes',
      ['--labels=3'],
      '--labels: models.unified found, which takes --prompts, --max_text_tokens and --begin',
    ),
    ('scenes', ['--per_class=8'], '--per_class: models.unified found'),
    (
      'grpo_var_d16_jpeg',
      ['--prompts=a.txt'],
      '--prompts: models.var found, a policy that answers in text expected',
    ),
    ('grpo_var_d16_jpeg', ['--begin='], '--begin: models.var found'),
    ('scenes', [], '--prompts is missing: models.unified answers dialogues'),
    (
      'scenes',
      ['--prompts=README.md'],
      '--prompts: README.md found, a file that ends with .json or .jsonl or .txt expected',
    ),
    ('scenes', ['--prompts=none.json'], 'none.json found, which is no file'),
    (
      'scenes',
      ['--prompts=none.json', '--max_text_tokens=a'],
      "--max_text_tokens: 'a' found, numbers such as 64,64 expected",
    ),
    ('scenes', ['--prompts={}/lost.json'], "lost.json: record 0: picture 'lost.png' found neither"),
    ('scenes', ['--prompts={}/empty.txt'], 'empty.txt: 0 records found'),
    ('scenes', ['--prompts={}/cat.txt'], 'no checkpoint in'),
    ('scenes', ['--prompts={}/cat.txt', '--run=tokenizer'], '--prompts: tokenizers.bsq found'),
  ],
)
def test_flags_of_classes_and_of_dialogues_are_told_apart(
  capsys, compiles, tmp_path, config, argv, words
):
  (tmp_path / 'empty.txt').write_text('\n')
  (tmp_path / 'cat.txt').write_text('a cat')
  said = {'messages': [{'role': 'user', 'content': '<image>what?'}], 'images': ['lost.png']}
  (tmp_path / 'lost.json').write_text(json.dumps([said]))
  error = refused(
    capsys,
    compiles,
    'sample',
    '--config',
    f'experiments/{config}.py:smoke',
    '--workdir',
    str(tmp_path / 'w'),
    *(x.format(tmp_path) for x in argv),
  )
  assert words in error and not (tmp_path / 'w').exists()
