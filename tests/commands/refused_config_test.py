"""Configs that make no sense: one sentence, for the whole chain, before anything is compiled."""

import pytest
from refusals import refused_train


def test_unknown_objective_names_the_nearest(capsys, compiles, tmp_path):
  error = refused_train(capsys, compiles, tmp_path, '--config.grpo.objective.name=objectives.gpro')
  assert "did you mean 'objectives.grpo'" in error


def test_unknown_reward_names_the_nearest(capsys, compiles, tmp_path):
  error = refused_train(
    capsys,
    compiles,
    tmp_path,
    '--config.reference=True',
    '--config.objective.collect.rewards.jpeg.name=rewards.jpg',
    config='experiments/grpo_var_d16_jpeg.py:smoke',
  )
  assert 'rewards.jpg' in error and 'rewards.jpeg' in error


def test_unknown_dataset_names_the_nearest(capsys, compiles, tmp_path):
  error = refused_train(capsys, compiles, tmp_path, '--config.tokenizer.data.dataset=digit')
  assert "'digit'" in error and 'digits' in error


@pytest.mark.parametrize(
  'summary', ["(('reward','up'),)", "('reward',)", "(('reward','higher','x'),)", "((1,''),)"]
)
def test_a_summary_that_the_report_cannot_show(capsys, compiles, tmp_path, summary):
  """Not at the end, when the report is written."""
  error = refused_train(capsys, compiles, tmp_path, f'--config.summary={summary}')
  assert "found, (name of a metric, one of ('higher', 'lower', '')) expected" in error


def test_group_of_one(capsys, compiles, tmp_path):
  error = refused_train(
    capsys,
    compiles,
    tmp_path,
    '--config.objective.collect.rollouts=1',
    config='experiments/grpo_var_d16_jpeg.py:smoke',
  )
  assert 'rollouts: 1' in error and 'at least 2' in error


def test_batch_that_does_not_divide(capsys, compiles, tmp_path):
  error = refused_train(
    capsys,
    compiles,
    tmp_path,
    '--config.minibatches=3',
    config='experiments/grpo_var_d16_jpeg.py:smoke',
  )
  assert '8 prompts' in error and 'divisor' in error


def test_missing_checkpoint(capsys, compiles, tmp_path):
  error = refused_train(
    capsys,
    compiles,
    tmp_path,
    '--config.init.policy=./nowhere/checkpoints',
    config='experiments/grpo_var_d16_jpeg.py:smoke',
  )
  assert 'init.policy' in error and 'nowhere' in error


def test_tokenizer_that_does_not_fit_the_policy(capsys, compiles, tmp_path):
  error = refused_train(
    capsys,
    compiles,
    tmp_path,
    '--config.tokenizer.size=digits',
    config='experiments/grpo_var_d16_jpeg.py:smoke',
  )
  assert 'policy.scales' in error


def test_images_of_another_size(capsys, compiles, tmp_path):
  error = refused_train(
    capsys,
    compiles,
    tmp_path,
    '--config.data.size=16',
    config='experiments/pretrain_var_d16_imagenet256.py:smoke',
  )
  assert 'data.size: 16' in error and '8' in error


def test_clip_bounds_in_the_wrong_order(capsys, compiles, tmp_path):
  error = refused_train(
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
    ('--config.objective.loss.last_scale=1', ('last_scale=1', 'split')),
    ('--config.objective.collect.reward_mix=mean', ("reward_mix: 'mean'", 'normalize')),
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
  error = refused_train(
    capsys, compiles, tmp_path, change, config='experiments/vmr_digits.py:smoke'
  )
  assert all(word in error for word in words), error


@pytest.mark.parametrize(
  'change, words',
  [
    ('--config.tokenizer.policy.size=digits', ('init.tokenizer', "'tokenizer'", 'codebook')),
    ('--config.grpo.objective.name=objectives.reduce', ('objectives.reduce', 'collect')),
    ('--config.grpo.objective.loss.scale_weight_power=-1.', ('scale_weight_power: -1.0',)),
    ('--config.grpo.objective.collect.pool.max_failed=1.', ('pool.max_failed: 1.0',)),
    ('--config.grpo.optim.warmup=5', ('optim.warmup: 5 found',)),
    ('--config.grpo.optim.peak=nan', ('optim.peak: nan',)),
    ('--config.grpo.mesh=(1,1,1)', ('mesh:', 'fsdp')),
    ('--config.grpo.objective.loss.penalty=-1.', ('penalty: -1.0',)),
    ('--config.grpo.init.policy=classifer', ('init.policy', 'classifer')),
    ('--config.grpo.data.classes=12', ('12 classes', '10 in the model')),
    ('--config.pretrain.objective.collect.prompt_drop=2.', ('prompt_drop: 2.0',)),
    ('--config.pretrain.evals.test.dataset=digit', ("'digit'", 'digits')),
    ('--config.pretrain.data.dataset=digit_pairs', ("needs 'image'", 'chosen')),
    ('--config.tokenizer.objective.loss.adversarial=.4', ("'critic'",)),
  ],
)
def test_a_chain_is_checked_before_its_first_run(capsys, compiles, tmp_path, change, words):
  error = refused_train(capsys, compiles, tmp_path, change)
  assert all(word in error for word in words), error
  assert not (tmp_path / 'w' / 'tokenizer' / 'checkpoints').exists()


def test_pairs_are_not_cut(capsys, compiles, tmp_path):
  error = refused_train(
    capsys, compiles, tmp_path, '--config.accum=32', config='experiments/dpo_digits.py:smoke'
  )
  assert '32 parts of 16 pairs' in error
