"""Wrong input gives one clear sentence and exit code 2, before anything is compiled."""

import json

import jax
import pytest

from vargrl import main
from vargrl.commands import errors

QUICK = 'experiments/quickstart.py:smoke'


def run(capsys, compiles, *argv, code=2):
  before = len(compiles)
  assert main.main(['vargrl', *argv]) == code
  err = capsys.readouterr().err
  assert len(compiles) == before, 'compiled before the error'
  lines = [line for line in err.splitlines() if line.startswith('error:')]
  assert len(lines) == 1, err
  return err[err.index('error:') :]


def train(capsys, compiles, tmp_path, *argv, config=QUICK):
  return run(capsys, compiles, 'train', '--config', config, '--workdir', str(tmp_path / 'w'), *argv)


def test_unknown_command_names_the_nearest(capsys):
  assert main.main(['vargrl', 'trian']) == 2
  assert "did you mean 'train'" in capsys.readouterr().err


def test_unknown_key_names_the_nearest(capsys, compiles, tmp_path):
  assert 'peak' in train(capsys, compiles, tmp_path, '--config.grpo.optim.paek=1e-3')


def test_unknown_key_without_a_near_one_lists_what_there_is(capsys, compiles, tmp_path):
  assert "'size'" in train(capsys, compiles, tmp_path, '--config.grpo.policy.wdth=64')


def test_wrong_type_of_a_value(capsys, compiles, tmp_path):
  assert 'abc' in train(capsys, compiles, tmp_path, '--config.grpo.steps=abc')


def test_unknown_experiment_names_the_nearest(capsys, compiles, tmp_path):
  error = train(capsys, compiles, tmp_path, config='experiments/quickstrat.py')
  assert "did you mean 'experiments/quickstart.py'" in error


def test_unknown_variant(capsys, compiles, tmp_path):
  assert 'expected jpeg or smoke' in train(
    capsys, compiles, tmp_path, config='experiments/quickstart.py:jpg'
  )


def test_unknown_objective_names_the_nearest(capsys, compiles, tmp_path):
  error = train(capsys, compiles, tmp_path, '--config.grpo.objective.name=objectives.gpro')
  assert "did you mean 'objectives.grpo'" in error


def test_unknown_reward_names_the_nearest(capsys, compiles, tmp_path):
  error = train(
    capsys,
    compiles,
    tmp_path,
    '--config.reference=True',
    '--config.objective.collect.rewards.jpeg.name=rewards.jpg',
    config='experiments/grpo_var_d16_jpeg.py:smoke',
  )
  assert 'rewards.jpg' in error and 'rewards.jpeg' in error


def test_unknown_dataset_names_the_nearest(capsys, compiles, tmp_path):
  error = train(capsys, compiles, tmp_path, '--config.tokenizer.data.dataset=digit')
  assert "'digit'" in error and 'digits' in error


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


def test_group_of_one(capsys, compiles, tmp_path):
  error = train(
    capsys,
    compiles,
    tmp_path,
    '--config.objective.collect.rollouts=1',
    config='experiments/grpo_var_d16_jpeg.py:smoke',
  )
  assert 'rollouts: 1' in error and 'at least 2' in error


def test_batch_that_does_not_divide(capsys, compiles, tmp_path):
  error = train(
    capsys,
    compiles,
    tmp_path,
    '--config.minibatches=3',
    config='experiments/grpo_var_d16_jpeg.py:smoke',
  )
  assert '8 prompts' in error and 'divisor' in error


def test_missing_checkpoint(capsys, compiles, tmp_path):
  error = train(
    capsys,
    compiles,
    tmp_path,
    '--config.init.policy=./nowhere/checkpoints',
    config='experiments/grpo_var_d16_jpeg.py:smoke',
  )
  assert 'init.policy' in error and 'nowhere' in error


def test_sampling_from_nothing(capsys, compiles, tmp_path):
  error = run(capsys, compiles, 'sample', '--config', QUICK, '--workdir', str(tmp_path))
  assert 'no checkpoint' in error


def test_tokenizer_that_does_not_fit_the_policy(capsys, compiles, tmp_path):
  error = train(
    capsys,
    compiles,
    tmp_path,
    '--config.tokenizer.size=digits',
    config='experiments/grpo_var_d16_jpeg.py:smoke',
  )
  assert 'policy.scales' in error


def test_images_of_another_size(capsys, compiles, tmp_path):
  error = train(
    capsys,
    compiles,
    tmp_path,
    '--config.data.size=16',
    config='experiments/pretrain_var_d16_imagenet256.py:smoke',
  )
  assert 'data.size: 16' in error and '8' in error


def test_clip_bounds_in_the_wrong_order(capsys, compiles, tmp_path):
  error = train(
    capsys,
    compiles,
    tmp_path,
    '--config.objective.loss.clip_high=0.1',
    config='experiments/grpo_var_d16_jpeg.py:smoke',
  )
  assert 'clip=0.2, clip_high=0.1' in error


@pytest.mark.parametrize(
  'change, words',
  [
    ('--config.objective.collect.split=3', ('split: 3 of 3 scales', '1 to 2')),
    ('--config.objective.collect.eta=0.', ('eta: 0.0',)),
    ('--config.objective.loss.last=1', ('last=1', 'split')),
    ('--config.objective.collect.combine=mean', ("combine: 'mean'", 'normalize')),
    (
      "--config.objective.collect.mask={'name':'rewards.brightnes','threshold':.5}",
      ('objective.collect.mask', "did you mean 'brightness'"),
    ),
    (
      "--config.objective.collect.mask={'name':'rewards.brightness','treshold':.5}",
      ('objective.collect.mask', "did you mean 'threshold'"),
    ),
    (
      "--config.objective.collect.mask={'name':'rewards.classifier'}",
      ('objective.collect.mask', "'mask'"),
    ),
  ],
)
def test_values_and_masks_that_make_no_sense(capsys, compiles, tmp_path, change, words):
  error = train(capsys, compiles, tmp_path, change, config='experiments/vmr_digits.py:smoke')
  assert all(word in error for word in words), error


def test_missing_flags(capsys, compiles):
  assert '--workdir is missing' in run(capsys, compiles, 'train', '--config', QUICK)


def test_a_workdir_without_a_name(capsys, compiles):
  assert '--workdir is missing' in run(
    capsys, compiles, 'train', '--config', QUICK, '--workdir', ''
  )


def test_an_experiment_that_is_no_python(capsys, compiles, tmp_path):
  assert "no experiment 'README.md'" in train(capsys, compiles, tmp_path, config='README.md')


def test_labels_outside_the_classes(capsys, compiles, tmp_path):
  error = run(
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
  error = run(capsys, compiles, *argv, '--preset=vars')
  assert "preset: 'vars' found" in error and "'var', 'var-demo'" in error
  assert "'vars'" in run(capsys, compiles, *argv, '--preset=vars', f'--folder={tmp_path}/folder')
  assert '--npz' in run(capsys, compiles, *argv, f'--npz={tmp_path}/a.npz') and not list(
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
      '--prompts: models.var found, a policy of words and pictures expected',
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
def test_sampling_knows_words_from_classes(capsys, compiles, tmp_path, config, argv, words):
  (tmp_path / 'empty.txt').write_text('\n')
  (tmp_path / 'cat.txt').write_text('a cat')
  said = {'messages': [{'role': 'user', 'content': '<image>what?'}], 'images': ['lost.png']}
  (tmp_path / 'lost.json').write_text(json.dumps([said]))
  error = run(
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


def test_resuming_with_another_shape(capsys, compiles, tmp_path):
  config, workdir = 'experiments/pretrain_var_d16_imagenet256.py:smoke', str(tmp_path / 'w')
  assert main.main(['vargrl', 'train', '--config', config, '--workdir', workdir]) == 0
  capsys.readouterr()
  before = len(compiles)
  assert (
    main.main(
      [
        'vargrl',
        'train',
        '--config',
        config,
        '--workdir',
        workdir,
        '--config.steps=3',
        '--config.policy.size=digits',
        '--config.tokenizer.size=digits',
      ]
    )
    == 2
  )
  err = capsys.readouterr().err
  assert len(compiles) == before
  assert (
    '~ params/policy/blocks/fc1/w checkpoint (2, 32, 128)' in err and 'model (3, 96, 384)' in err
  )
  # Nor on other data than what it was begun with.
  assert (
    main.main(
      [
        'vargrl',
        'train',
        '--config',
        config,
        '--workdir',
        workdir,
        '--config.steps=3',
        '--config.seed=1',
      ]
    )
    == 2
  )
  assert 'error: data: state of' in capsys.readouterr().err
  assert (
    main.main(
      [
        'vargrl',
        'train',
        '--config',
        config,
        '--workdir',
        workdir,
        '--config.steps=1',
        '--config.optim.warmup=0',
      ]
    )
    == 2
  )
  assert 'error: steps: 1, expected at least 2' in capsys.readouterr().err
  # Nothing was lost: with the old shape, the run goes on from where it was.
  assert (
    main.main(['vargrl', 'train', '--config', config, '--workdir', workdir, '--config.steps=3'])
    == 0
  )
  assert 'steps 2 to 3' in capsys.readouterr().out
  assert (
    main.main(
      [
        'vargrl',
        'train',
        '--config',
        config,
        '--workdir',
        workdir,
        '--config.steps=3',
        '--config.data.batch=32',
      ]
    )
    == 0
  )
  out = capsys.readouterr().out
  assert 'without effect on what is finished' in out and 'finished, 3 steps' in out


# A chain: what does not fit in a late run is told before the first one starts.


@pytest.mark.parametrize(
  'change, words',
  [
    ('--config.tokenizer.policy.size=digits', ('init.tokenizer', "'tokenizer'", 'codebook')),
    ('--config.grpo.objective.name=objectives.reduce', ('objectives.reduce', "'collect'")),
    ('--config.grpo.objective.loss.alpha=-1.', ('objective.loss.alpha: -1.0',)),
    ('--config.grpo.objective.collect.pool.max_failed=1.', ('max_failed=1.0',)),
    ('--config.grpo.optim.warmup=5', ('optim.warmup: 5 updates',)),
    ('--config.grpo.optim.peak=nan', ('optim.peak: nan',)),
    ('--config.grpo.mesh=(1,1,1)', ('mesh:', 'fsdp')),
    ('--config.grpo.objective.loss.kl=-1.', ('objective.loss.kl: -1.0',)),
    ('--config.grpo.init.policy=classifer', ('init.policy', 'classifer')),
    ('--config.grpo.data.classes=12', ('12 classes', '10 in the model')),
    ('--config.pretrain.objective.collect.label_drop=2.', ('label_drop: 2.0',)),
    ('--config.pretrain.evals.test.dataset=digit', ("'digit'", 'digits')),
    ('--config.pretrain.data.dataset=digit_pairs', ("needs 'image'", 'chosen')),
    ('--config.tokenizer.objective.loss.adversarial=.4', ("'critic'",)),
  ],
)
def test_a_chain_is_checked_before_its_first_run(capsys, compiles, tmp_path, change, words):
  error = train(capsys, compiles, tmp_path, change)
  assert all(word in error for word in words), error
  assert not (tmp_path / 'w' / 'tokenizer' / 'checkpoints').exists()


def test_pairs_are_not_cut(capsys, compiles, tmp_path):
  error = train(
    capsys, compiles, tmp_path, '--config.accum=32', config='experiments/dpo_digits.py:smoke'
  )
  assert '32 parts of 16 pairs' in error


@pytest.mark.parametrize('argv', [['compile', '--help'], ['train', '-h']])
def test_help_of_a_command_names_its_flags(argv, capsys):
  assert main.main(['vargrl', *argv]) == 0
  out = capsys.readouterr().out
  assert out.startswith(argv[0]) and '--topology' in out and '--workdir' in out
