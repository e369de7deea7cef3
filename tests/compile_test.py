"""Every program of an experiment, compiled for TPUs that are not there; needs libtpu."""
import importlib.util
import pathlib

import pytest

from vargrl import main

EXPERIMENTS = pathlib.Path(__file__).parents[1] / 'experiments'
LIBTPU = importlib.util.find_spec('libtpu') is not None


def compile(experiment, *more):
  return main.main(['vargrl', 'compile', '--config', f'{EXPERIMENTS}/{experiment}', *more])


def test_what_cannot_be_compiled_is_told(capsys):
  assert compile('grpo_var_d16_jpeg.py:smoke', '--topology=v5litepod-16') == 2
  assert 'KIND:AxB' in capsys.readouterr().err
  if not LIBTPU:
    assert compile('grpo_var_d16_jpeg.py:smoke') == 2
    assert "pip install 'vargrl[tpu]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason='libtpu is not installed')
@pytest.mark.parametrize('experiment', ['grpo_var_d16_jpeg.py:smoke', 'vmr_digits.py:smoke', 'dpo_digits.py:smoke',
                                        'pretrain_var_d16_imagenet256.py:smoke'])
def test_programs_fit_and_are_all_told(experiment, capsys):
  assert compile(experiment, '--topology=v5e:2x2') == 0
  out = capsys.readouterr().out
  assert 'update' in out and '16 GiB each' in out and 'all-gather' in out
  if 'grpo' in experiment: assert all(word in out for word in ('rollout', 'decode', 'logprobs'))
