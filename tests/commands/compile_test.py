"""Every program of an experiment, compiled for TPUs that are not there; needs libtpu."""

import importlib.util
import os
import pathlib

import jax
import pytest

from vargrl import main
from vargrl.commands import compile as compiling

EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'experiments'
LIBTPU = importlib.util.find_spec('libtpu') is not None


def compile(experiment, *more):
  return main.main(['vargrl', 'compile', '--config', f'{EXPERIMENTS}/{experiment}', *more])


def test_what_cannot_be_compiled_is_told(capsys):
  assert compile('grpo_var_d16_jpeg.py:smoke', '--topology=v5litepod-16') == 2
  assert 'KIND:AxB' in capsys.readouterr().err
  if not LIBTPU:
    assert compile('grpo_var_d16_jpeg.py:smoke') == 2
    assert "pip install -e '.[tpu]'" in capsys.readouterr().err


def test_the_process_is_left_as_it_was(monkeypatch):
  before = jax.config.jax_platforms, jax.config.jax_enable_compilation_cache, dict(os.environ)
  monkeypatch.setattr(
    compiling,
    'compile_run',
    lambda *_: os.environ.update(TPU_WORKER_HOSTNAMES='localhost') or False,
  )
  assert compile('grpo_var_d16_jpeg.py:smoke') == 1
  assert (
    jax.config.jax_platforms,
    jax.config.jax_enable_compilation_cache,
    dict(os.environ),
  ) == before


def test_a_config_without_a_pod_wants_a_topology(capsys, tmp_path):
  text = (EXPERIMENTS / 'grpo_var_d16_jpeg.py').read_text()
  (tmp_path / 'podless.py').write_text(text.replace('c.pod, ', 'c.other, '))
  assert main.main(['vargrl', 'compile', '--config', f'{tmp_path}/podless.py:smoke']) == 2
  assert 'neither --topology nor a pod in the config' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason='libtpu is not installed')
@pytest.mark.parametrize(
  'experiment',
  [
    'grpo_var_d16_jpeg.py:smoke',
    'vmr_digits.py:smoke',
    'dpo_digits.py:smoke',
    'pretrain_var_d16_imagenet256.py:smoke',
  ],
)
def test_programs_fit_and_are_all_told(experiment, capsys):
  assert compile(experiment, '--topology=v5e:2x2') == 0
  out = capsys.readouterr().out
  assert 'update' in out and '15.75 GiB each' in out and 'all-reduce' in out
  if 'grpo' in experiment:
    assert all(word in out for word in ('rollout', 'decode', 'logprobs', 'of analytic'))


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason='libtpu is not installed')
def test_networks_of_rewards_and_two_slices_are_compiled(capsys):
  mesh = "--config.mesh=(('data',2),('fsdp',-1),('tensor',1))"
  assert (
    compile(
      'grpo_var_aesthetic.py:smoke',
      '--topology=2*v5e:2x2',
      mesh,
      '--config.max_replicated_share=0.1',
    )
    == 0
  )
  out = capsys.readouterr().out
  assert '8 devices of 2*v5e:2x2, mesh 2x4x1' in out and 'rewards ' in out
  single = mesh.replace('2', '1')
  assert compile('grpo_var_d16_jpeg.py:smoke', '--topology=2*v5e:2x2', single) == 2
  assert 'mesh: data=1 in config, expected a multiple of the 2 slices' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason='libtpu is not installed')
def test_what_does_not_fit_is_exit_code_1_with_buffers_and_advice(capsys):
  assert (
    compile(
      'grpo_var_d16_jpeg.py:smoke',
      '--topology=v5e:2x2',
      '--config.data.prompts=16777216',
      '--effort=-1',
    )
    == 1
  )
  out = capsys.readouterr().out
  assert 'rollout            does not fit into 15.75 GiB: it needs fewer data.prompts' in out
  assert 'GiB  moments' in out and out.count(' GiB  ') > 6


def test_the_compilers_words_about_memory_are_made_short():
  assert compiling.memory_summary(
    'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries '
    '(18.00G) exceeds available HBM (15.75G).'
  ).startswith('Ran out of memory on HBM')
  text = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. \
Ran out of memory in memory space hbm. Used 20.10G of 15.75G hbm. Exceeded hbm capacity by 4.35G.

Largest program allocations in hbm:

  1. Size: 12.00G
     Operator: op_name="jit(sample)/while/body/dot_general"
     Shape: bf16[64,2240,2304]{2,1,0:T(8,128)(2,1)}
     Allocation type: HLO temp
"""
  told = compiling.memory_summary(text).splitlines()
  assert told[0].startswith('Ran out of memory in memory space hbm. Used 20.10G of 15.75G')
  assert told[1].split() == ['12.00G', 'bf16[64,2240,2304]', 'jit(sample)/while/body/dot_general']
