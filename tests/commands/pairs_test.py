"""Best-of-group pairs: what is chosen, that it survives interruptions, and that DPO trains on
it.
"""

import pathlib

import numpy as np
import pytest

from vargrl import main
from vargrl.commands import pairs
from vargrl.data import source

HERE = pathlib.Path(__file__).parents[2] / 'experiments'
GRPO = ['--config', f'{HERE}/grpo_var_d16_jpeg.py:smoke']


def read(folder, batch):
  stream = source.make(
    dataset=pairs.NAME,
    split='train',
    dir=str(folder),
    batch=batch,
    size=8,
    crop='none',
    flip=False,
    shuffle=False,
    max_unreadable=0.0,
    threads=0,
    workers=0,
    seed=0,
    rows=range(batch),
  )
  batch = next(stream)
  stream.close()
  return batch


def test_best_and_worst_by_hand():
  """Three prompts: a clear pair, all equal, one verdict alone; the fourth has a row without a
  verdict.
  """
  nan = np.nan
  r_PR = np.array([[1.0, 3, 2], [5, 5, 5], [nan, 4, nan], [nan, 7, 6]], np.float32)
  tokens_PRL = np.arange(12).reshape(4, 3, 1)
  part, (best, worst) = pairs.best_and_worst(np.array([9, 8, 7, 6]), tokens_PRL, r_PR)
  assert part['label'].tolist() == [9, 6] and part['group'].tolist() == [0, 3]
  assert part['chosen'].tolist() == [[1], [10]] and part['rejected'].tolist() == [[0], [11]]
  assert part['reward_chosen'].tolist() == [3, 7] and part['reward_rejected'].tolist() == [1, 6]
  assert best.tolist() == [1, 10] and worst.tolist() == [0, 11]


def test_an_interrupted_command_goes_on_and_dpo_trains_on_what_it_made(
  tmp_path, capsys, monkeypatch
):
  argv = ['vargrl', 'pairs', *GRPO, '--groups=20']
  assert main.main([*argv, f'--out={tmp_path}/whole']) == 0
  save_part, calls = pairs.save_part, []

  def dies(path, part):
    if len(calls) == 1:
      raise KeyboardInterrupt
    calls.append(path)
    save_part(path, part)

  monkeypatch.setattr(pairs, 'save_part', dies)
  with pytest.raises(KeyboardInterrupt):
    main.main([*argv, f'--out={tmp_path}/cut'])
  monkeypatch.setattr(pairs, 'save_part', save_part)
  assert main.main([*argv, f'--out={tmp_path}/cut', '--seed=1']) == 2
  assert 'another config or seed' in capsys.readouterr().err
  assert main.main([*argv, f'--out={tmp_path}/cut']) == 0
  whole, cut = (read(tmp_path / name, 16) for name in ('whole', 'cut'))
  for name in ('label', 'chosen', 'rejected'):
    np.testing.assert_array_equal(whole[name], cut[name])
  assert whole['chosen'].shape == (16, 21) and (whole['chosen'] != whole['rejected']).any(1).all()
  assert (tmp_path / 'cut' / 'pairs.png').stat().st_size > 100 and not (
    tmp_path / 'cut' / 'parts'
  ).exists()

  dpo = [
    'vargrl',
    'train',
    '--config',
    f'{HERE}/dpo_digits.py:smoke',
    '--workdir',
    str(tmp_path / 'dpo'),
    '--config.data.dataset=best_of_group',
    f'--config.data.dir={tmp_path}/whole',
  ]
  assert main.main(dpo) == 0, capsys.readouterr().err
  assert main.main([*argv, f'--out={tmp_path}/whole']) == 2
  assert 'exists already' in capsys.readouterr().err


def test_without_a_pair_nothing_is_left_that_another_reward_could_take(tmp_path, capsys):
  """All rewards are zero; then the same folder with another reward."""
  argv = ['vargrl', 'pairs', *GRPO, '--groups=8', f'--out={tmp_path}/o']
  flat = '--config.objective.collect.rewards.jpeg.sign=0'
  assert main.main([*argv, flat]) == 2
  assert 'none of 8 groups has two different rewards' in capsys.readouterr().err
  assert main.main(argv) == 2
  assert 'another config or seed' in capsys.readouterr().err


def test_wrong_input(tmp_path, capsys):
  def error(*argv):
    assert main.main(['vargrl', 'pairs', *argv]) == 2
    return capsys.readouterr().err

  assert '--out is missing' in error(*GRPO)
  assert '--groups: 0 found, an integer at least 1' in error(
    *GRPO, f'--out={tmp_path}', '--groups=0'
  )
  assert 'a run of objectives.grpo expected' in error(
    '--config', f'{HERE}/dpo_digits.py:smoke', f'--out={tmp_path}'
  )
