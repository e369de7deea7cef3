"""Every experiment: builds abstractly at full size, imports ml_collections alone, and runs its
smoke.
"""

import pathlib

import jax
import numpy as np
import pytest

from vargrl import main
from vargrl.commands import experiment, sample
from vargrl.models.layers import lora
from vargrl.reporting import writer as writing
from vargrl.training import chain, flops
from vargrl.training.run import Run

FILES = sorted(pathlib.Path(__file__).parent.parent.glob('experiments/*.py'))
# What these run, others run too.
ALIKE = (
  'grpo_vargpt_7b',
  'grpo_qwen2_text',
  'pretrain_var_d16_imagenet256',
  'tokenizer_msvq_imagenet256',
  'grpo_var_aesthetic',
  'grpo_var_painting',
  'grpo_var_aesthetic_painting',
  'dpo_digits',
  'vmr_digits',
  'dpo_var_d16_best_of_group',
  'vmr_var_d16_aesthetic',
  'grpo_infinity_2b',
  'vargpt_7b',
)
VARIANTS = (
  'quickstart.py:jpeg',
  'grpo_var_aesthetic.py:d30',
  'grpo_var_aesthetic.py:d36',
  'grpo_var_aesthetic.py:lora',
  'vmr_digits.py:vmr',
  'vargpt_7b.py:0.5b',
  'vargpt_7b.py:1024',
  'scenes.py:grpo',
  'grpo_qwen2_text.py:tiny',
)
SMOKED = [
  pytest.param(f, marks=pytest.mark.slow) if f.stem in ALIKE else f
  for f in FILES
  if f.stem != 'quickstart'
]  # its smoke is the chain of resume_test


BENCH = (
  'rollout',
  '. tokenizer',
  '. transformer',
  '. sampler',
  'decode',
  'gradient',
  'update',
  'tokens/s',
  'images/s',
  'matmul peak',
)
SIZES = {
  'd16': 310_283_520,
  'd30': 2_010_020_356,
  '2b': 2_204_564_032,
  '1.5b': 1_543_714_304,
  'vargpt-v1.1': 10_527_683_648,
}


@pytest.mark.parametrize(
  'path',
  [
    *map(str, FILES),
    *(
      pytest.param(f'{FILES[0].parent}/{v}', marks=pytest.mark.slow if 'vargpt' in v else ())
      for v in VARIANTS
    ),
  ],
  ids=lambda p: p.split('/')[-1],
)
def test_full_size_fits_together(path, tmp_path):
  upstream = {}
  for name, config in chain.runs(experiment.load(path)):
    if 'weights/' in str(config.init):
      config.init = {}  # published files, which are not here
    run = Run(config, tmp_path, upstream=upstream, inference_only=True)
    upstream[name] = run.shapes.params
    count = sum(
      np.prod(x.shape) for x in jax.tree.leaves(lora.base_params(run.shapes.params['policy']))
    )
    if config.policy.size in SIZES:
      assert count == SIZES[config.policy.size]
    assert count > 0
    # As `compile` asks of every program of every run.
    for kind, programs in (flops.step_passes(run) or {'': {'update': ()}}).items():
      assert flops.program_flops(run, 'update', kind) > 0
      for program in ('decode', *programs):
        assert flops.program_flops(run, program, kind) >= 0 and flops.traffic(run, program) >= 0


@pytest.mark.slow
def test_grpo_in_the_place_of_dpo_runs_two_steps_too(tmp_path, capsys):
  argv = ['--config', 'experiments/scenes.py:smoke-grpo', '--workdir', str(tmp_path)]
  assert main.main(['vargrl', 'train', *argv]) == 0, capsys.readouterr().err
  last = [row for row in writing.load(tmp_path / 'grpo') if 'reward' in row][-1]
  assert last['sampler/trainer_gap'] < 1e-5 and np.isfinite(last['loss'])


def test_pairs_of_a_group_are_never_cut(tmp_path):
  config = experiment.load('experiments/scenes.py')
  config.dpo.accum = 2 * config.dpo.data.prompts
  with pytest.raises(
    ValueError, match='minibatches x accum: 128 parts of 64 pairs, expected a divisor'
  ):
    Run(config.dpo, tmp_path, inference_only=True)


@pytest.mark.parametrize('path', SMOKED, ids=lambda p: p.stem)
def test_smoke_runs_two_steps_and_reports(path, tmp_path, capsys):
  argv = ['--config', f'{path}:smoke', '--workdir', str(tmp_path)]
  assert main.main(['vargrl', 'train', *argv]) == 0, capsys.readouterr().err
  for name, config in chain.runs(experiment.load(f'{path}:smoke')):
    assert (tmp_path / name / 'checkpoints' / str(config.steps)).is_dir()
  assert '<svg' in (tmp_path / 'report.html').read_text()
  if path.stem in ('pretrain_var_d16_imagenet256', 'grpo_var_d16_jpeg'):
    assert (
      main.main(['vargrl', 'sample', *argv, '--per_class=2', '--labels=1,3', f'--out={tmp_path}/s'])
      == 0
    )
    images = np.load(tmp_path / 's.npz')
    assert images['image'].shape == (4, 8, 8, 3) and images['image'].dtype == np.uint8
    assert images['label'].tolist() == [1, 1, 3, 3]
    assert (tmp_path / 's.png').stat().st_size > 100
  if path.stem == 'grpo_var_d16_jpeg':
    again, labels = sample.draw(f'{path}:smoke', tmp_path, labels=['one', 3], per_class=2)
    np.testing.assert_array_equal(again, images['image'])
    assert labels.tolist() == [1, 1, 3, 3]
    assert (
      main.main(
        [
          'vargrl',
          'sample',
          *argv,
          '--per_class=2',
          '--labels=1,3',
          f'--folder={tmp_path}/folder',
          f'--npz={tmp_path}/arr_0.npz',
        ]
      )
      == 0
    )
    assert {f.name for f in tmp_path.glob('folder/*.png')} == {
      f'000{k}_0000{r}.png' for k in (1, 3) for r in (0, 1)
    }
    assert np.load(tmp_path / 'arr_0.npz')['arr_0'].shape == (4, 8, 8, 3)
    assert main.main(['vargrl', 'eval', *argv]) == 0
    grid = tmp_path / 'eval' / 'samples_grid_00000002.png'
    assert (
      f'samples/grid             {grid}' in capsys.readouterr().out and grid.stat().st_size > 100
    )
    assert main.main(['vargrl', 'bench', '--config', f'{path}:smoke', '--repeats=1']) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in BENCH)
  if path.stem == 'tokenizer_msvq_imagenet256':
    assert main.main(['vargrl', 'bench', '--config', f'{path}:smoke']) == 2
    assert "a run of one of ('objectives.grpo'" in capsys.readouterr().err


@pytest.mark.slow  # the pieces of GRPO's above, with another loss
def test_bench_of_supervised_training(capsys):
  path = FILES[0].parent / 'pretrain_var_d16_imagenet256.py'
  assert main.main(['vargrl', 'bench', '--config', f'{path}:smoke', '--repeats=1']) == 0
  out = capsys.readouterr().out
  assert all(word in out for word in BENCH)
