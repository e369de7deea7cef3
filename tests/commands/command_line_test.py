"""Commands, flags, overrides and --help; a mistake is one sentence and exit code 2."""

import re

import jax
import pytest
from refusals import QUICK, refused, refused_train

from vargrl import main
from vargrl.commands import errors, flags


def test_unknown_command_names_the_nearest(capsys):
  assert main.main(['vargrl', 'trian']) == 2
  assert "did you mean 'train'" in capsys.readouterr().err


def test_unknown_key_names_the_nearest(capsys, compiles, tmp_path):
  assert 'peak' in refused_train(capsys, compiles, tmp_path, '--config.grpo.optim.paek=1e-3')


def test_unknown_key_without_a_near_one_lists_what_there_is(capsys, compiles, tmp_path):
  assert "'size'" in refused_train(capsys, compiles, tmp_path, '--config.grpo.policy.wdth=64')


def test_wrong_type_of_a_value(capsys, compiles, tmp_path):
  assert 'abc' in refused_train(capsys, compiles, tmp_path, '--config.grpo.steps=abc')


def test_unknown_experiment_names_the_nearest(capsys, compiles, tmp_path):
  error = refused_train(capsys, compiles, tmp_path, config='experiments/quickstrat.py')
  assert "did you mean 'experiments/quickstart.py'" in error


def test_unknown_variant(capsys, compiles, tmp_path):
  assert 'expected jpeg or smoke' in refused_train(
    capsys, compiles, tmp_path, config='experiments/quickstart.py:jpg'
  )


def test_missing_flags(capsys, compiles):
  assert '--workdir is missing' in refused(capsys, compiles, 'train', '--config', QUICK)


def test_a_workdir_without_a_name(capsys, compiles):
  assert '--workdir is missing' in refused(
    capsys, compiles, 'train', '--config', QUICK, '--workdir', ''
  )


def test_an_experiment_that_is_no_python(capsys, compiles, tmp_path):
  assert "no experiment 'README.md'" in refused_train(
    capsys, compiles, tmp_path, config='README.md'
  )


def test_memory_that_is_too_small_comes_with_advice():
  with pytest.raises(Exception) as found:
    jax.numpy.zeros(1 << 48).block_until_ready()
  text = errors.memory_advice(found.value)
  assert (
    text.startswith('a device has too little memory (Out of memory')
    and 'accum' in text
    and '\n' not in text
  )
  assert (
    errors.memory_advice(RuntimeError('RESOURCE_EXHAUSTED: of a kind that is not memory')) == ''
  )


@pytest.mark.parametrize('command', [*flags.COMMANDS])
@pytest.mark.parametrize('flag', ['--help', '-h'])
def test_help_of_a_command_has_its_flags_an_example_and_exit_codes(command, flag, capsys):
  assert main.main(['vargrl', command, flag]) == 0
  out = capsys.readouterr().out
  assert out.startswith(f'usage: python -m vargrl.main {command} --config FILE[:VARIANT]')
  found = {*re.findall(r'^  --([\w.]+)=', out, re.MULTILINE)}
  assert found == {*flags.flags_of(command), 'config.KEY'}
  assert f'example:\n  python -m vargrl.main {command} --config ' in out
  assert out.index('exit codes:') < out.index('  0  ') < out.index('  1  ') < out.index('  2  ')
  assert max(map(len, out.splitlines())) <= 125


def test_the_example_of_a_command_is_accepted(capsys):
  for command, about in flags.COMMANDS.items():
    flags.parse(command, about.example.split())


def test_help_names_all_commands(capsys):
  assert main.main(['vargrl', '--help']) == 0
  out = capsys.readouterr().out
  assert all(f'  {command} ' in out for command in flags.COMMANDS)


@pytest.mark.parametrize(
  'change, hint',
  [
    ('steps', [f'--config.{run}.steps' for run in ('tokenizer', 'classifier', 'pretrain', 'grpo')]),
    ('stepz', [f'--config.{run}.steps' for run in ('tokenizer', 'classifier', 'pretrain', 'grpo')]),
    ('data.prompts', ['--config.grpo.data.prompts']),
    ('dta.promts', ['--config.grpo.data.prompts']),
    ('objective.collect.rollouts', ['--config.grpo.objective.collect.rollouts']),
  ],
)
def test_a_key_of_the_runs_of_a_chain_names_the_runs(capsys, compiles, tmp_path, change, hint):
  error = refused_train(capsys, compiles, tmp_path, f'--config.{change}=3')
  hint = ' or '.join(filter(None, (', '.join(hint[:-1]), hint[-1])))
  assert error.endswith(f'did you mean {hint}?\n'), error


def test_the_name_of_a_run_that_is_mistyped(capsys, compiles, tmp_path):
  error = refused_train(capsys, compiles, tmp_path, '--config.gpro.steps=3')
  assert error.endswith("config has no key 'gpro', did you mean 'grpo'?\n")


@pytest.mark.parametrize(
  'flag, words',
  [
    ('--words=64', '--words found, it is called --max_text_tokens now'),
    ('--each=8', '--each found, it is called --per_class now'),
    ('--groups=8', '--groups: a flag of pairs found, one of sample expected: --config, --workdir'),
    ('--wandb=x', '--wandb: a flag of train found'),
    ('--labls=8', 'Did you mean: labels'),
  ],
)
def test_flags_of_earlier_versions_and_of_other_commands(capsys, compiles, tmp_path, flag, words):
  argv = ('sample', '--config', QUICK, '--workdir', str(tmp_path))
  assert words in refused(capsys, compiles, *argv, flag)


def test_train_trains_all_runs(capsys, compiles, tmp_path):
  error = refused_train(capsys, compiles, tmp_path, '--run=grpo')
  assert '--run: train trains all runs' in error
