"""Every experiment: builds abstractly at full size, imports ml_collections alone, and runs its smoke."""
import pathlib

import jax
import numpy as np
from PIL import Image
import pytest

from vargrl import chain, experiment, main, sample
from vargrl.run import Run

FILES = sorted(pathlib.Path(__file__).parent.parent.glob('experiments/*.py'))
VARIANTS = ('grpo_var_aesthetic.py:d30', 'grpo_var_aesthetic.py:lora', 'vmr_digits.py:vmr')
SMOKED = [f for f in FILES if f.stem != 'quickstart']  # its smoke is the chain of resume_test


def check_folder(argv, folder, capsys):
  """A folder that was cut ends with the same files, and is refused to another seed."""
  command = ['vargrl', 'sample', *argv, '--each=2', '--labels=all', '--preset=var', f'--folder={folder}']
  assert main.main(command) == 0, capsys.readouterr().err
  files = sorted(folder.glob('*.png'))
  assert [f.name for f in files] == [f'{k:04d}_{r:05d}.png' for k in range(10) for r in range(2)]
  before = {f: f.read_bytes() for f in files}
  for f in files[1::3]: f.unlink()
  capsys.readouterr()
  assert main.main([*command, f'--npz={folder}.npz']) == 0
  assert f'20 images in {folder}, {len(files[1::3])} of them drawn now' in capsys.readouterr().out
  assert {f: f.read_bytes() for f in folder.glob('*.png')} == before
  packed = np.load(f'{folder}.npz')['arr_0']
  assert packed.dtype == np.uint8 and packed.shape == (20, 8, 8, 3)
  pixels = lambda images: sorted(x.tobytes() for x in images)
  assert pixels(packed) == pixels(np.asarray(Image.open(f)) for f in files)
  assert main.main([*command, '--seed=1']) == 2
  assert 'was begun with seed 0, 1 found' in capsys.readouterr().err


SIZES = {'d16': 310_283_520, 'd30': 2_010_020_356}


@pytest.mark.parametrize('path', [*map(str, FILES), *(f'{FILES[0].parent}/{v}' for v in VARIANTS)],
                         ids=lambda p: p.split('/')[-1])
def test_full_size_fits_together(path, tmp_path):
  upstream = {}
  for name, config in chain.runs(experiment.load(path)):
    if 'weights/' in str(config.init): config.init = {}  # published files, which are not here
    run = Run(config, tmp_path, upstream=upstream, lean=True)
    upstream[name] = run.shapes.params
    count = sum(np.prod(x.shape) for x in jax.tree.leaves(run.shapes.params['policy']))
    if config.policy.size in SIZES and ':lora' not in path: assert count == SIZES[config.policy.size]
    assert count > 0


@pytest.mark.parametrize('path', SMOKED, ids=lambda p: p.stem)
def test_smoke_runs_two_steps_and_reports(path, tmp_path, capsys):
  argv = ['--config', f'{path}:smoke', '--workdir', str(tmp_path)]
  assert main.main(['vargrl', 'train', *argv]) == 0, capsys.readouterr().err
  config = experiment.load(f'{path}:smoke')
  assert (tmp_path / 'checkpoints' / str(config.steps)).is_dir()
  assert '<svg' in (tmp_path / 'report.html').read_text()
  if 'rollout' in config:
    assert main.main(['vargrl', 'sample', *argv, '--each=2', '--labels=1,3', f'--out={tmp_path}/s']) == 0
    images = np.load(tmp_path / 's.npz')
    assert images['image'].shape == (4, 8, 8, 3) and images['image'].dtype == np.uint8
    assert images['label'].tolist() == [1, 1, 3, 3]
    assert (tmp_path / 's.png').stat().st_size > 100
  if config.objective.name == 'objectives.grpo':
    again, labels = sample.draw(f'{path}:smoke', tmp_path, labels=[1, 3], each=2)
    np.testing.assert_array_equal(again, images['image'])
    assert labels.tolist() == [1, 1, 3, 3]
    check_folder(argv, tmp_path / 'pictures', capsys)
    assert main.main(['vargrl', 'eval', *argv]) == 0
    grid = tmp_path / 'eval' / 'samples_grid_00000002.png'
    assert f'samples/grid             {grid}' in capsys.readouterr().out and grid.stat().st_size > 100
    assert main.main(['vargrl', 'bench', '--config', f'{path}:smoke', '--repeats=1']) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ('rollout', 'update', 'tokens/s', 'images/s', 'matmul peak'))
