"""Every objective on every policy: it is traced as a run would compile its steps, or refused with
one sentence; and its arithmetic is counted."""

import math
import re

import jax
import numpy as np
import pytest
import tiny_configs

from vargrl.commands import compile as compiling
from vargrl.parallel import place
from vargrl.training import assemble, flops
from vargrl.training.run import Run

NO_ROLLOUT = 'objective: objectives.{} needs a policy with a section rollout, .* found without one'
ONE_PICTURE = 'objective: vmr needs a policy of one picture by scales, found '
NO_TOKENIZER = 'policy: not a tokenizer of tokenizers/, as objectives.tokenizer trains'
NO_CLASSIFIER = 'policy: not a classifier, as objectives.classify trains'
REFUSED = {
  (objective, policy): NO_ROLLOUT.format(objective)
  for objective in ('grpo', 'vmr', 'dpo', 'dpo_groups', 'sft')
  for policy in ('vq', 'bsq', 'classifier')
}
REFUSED |= {('vmr', 'unified'): ONE_PICTURE, ('vmr', 'qwen2'): ONE_PICTURE}
REFUSED |= {('tokenizer', p): NO_TOKENIZER for p in set(tiny_configs.POLICIES) - {'vq', 'bsq'}}
REFUSED |= {('classify', p): NO_CLASSIFIER for p in set(tiny_configs.POLICIES) - {'classifier'}}
PAIRS = [(o, p) for o in tiny_configs.OBJECTIVES for p in tiny_configs.POLICIES]
ACCEPTED = [pair for pair in PAIRS if pair not in REFUSED]


def test_the_table_is_whole():
  assert len(PAIRS) == 49 and len(ACCEPTED) == 21 and set(REFUSED) < set(PAIRS)


@pytest.mark.parametrize('objective, policy', [pair for pair in PAIRS if pair in REFUSED])
def test_what_cannot_learn_is_refused_in_one_sentence(objective, policy):
  with pytest.raises(ValueError, match=REFUSED[objective, policy]) as e:
    Run(tiny_configs.config(objective, policy), '', inference_only=True)
  assert '\n' not in str(e.value)


class Tracer(compiling.Compiler):
  """call(name, function, *args): traces it; what it returns has shapes. called: the names."""

  def __init__(self, run):
    self.run, self.called = run, []

  def __call__(self, name, function, *args):
    self.called.append(name)
    return jax.eval_shape(function, *args)


def trace(run):
  """{kind of step: (names of its programs, Experience, metrics of the update)}, of abstract arrays;
  the update's state must be as the one before."""
  frozen = {k: place.abstract_params(init, run.mesh) for k, init in run.built.frozen.items()}
  if run.rewards and run.rewards.weights:
    frozen['rewards'] = run.rewards.weights(run.mesh)
  collect, update = run.collect_and_update()
  key, found = jax.eval_shape(lambda: jax.random.key(0)), {}
  for kind, step in collect.variants.items():
    tracer = Tracer(run)
    stage = compiling.LoweringStage(tracer, kind, step)
    batch = collect.run(stage, run.shapes.params, frozen, tracer.batch(), key).experience
    state, metrics = stage.call('update', update, run.shapes, frozen, batch)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), state, run.shapes)
    assert collect.kind(step) == kind
    found[kind] = {re.sub(r' \(.*', '', name) for name in tracer.called if name}, batch, metrics
  return found


PROGRAMS = {
  'grpo': {'rollout', 'decode', 'rewards', 'logprobs', 'update'},
  'dpo_groups': {'rollout', 'decode', 'rewards', 'logprobs', 'update'},
  'dpo': {'prepare', 'update'},
  'sft': {'prepare', 'update'},
  'tokenizer': {'update'},
  'classify': {'prepare', 'update'},
}
PROGRAMS['vmr'] = PROGRAMS['grpo']


@pytest.mark.parametrize('objective, policy', ACCEPTED)
def test_all_programs_of_a_step_are_traced_and_counted(objective, policy):
  run = Run(tiny_configs.config(objective, policy), '', inference_only=True)
  run.rewards = assemble.rewards(run.config, run.built, abstract=True)
  with jax.set_mesh(run.mesh):
    found = trace(run)
    assert set(found) == ({'prefix', 'suffix'} if objective == 'vmr' else {''})
    for kind, (called, batch, metrics) in found.items():
      expected = PROGRAMS[objective]
      if policy == 'qwen2':  # which draws nothing, and whose rewards are the host's
        expected = expected - {'decode', 'rewards'}
      assert called == expected
      assert {'loss', 'grad_norm', 'skipped'} <= set(metrics)
      check_rows(run, kind, batch)
      check_flops(run, kind, called)


def check_rows(run, kind, batch):
  """Scores and masks of a batch are of as many actions as its rows have."""
  spans = run.built.learner.spans
  if not spans:
    assert batch.data is None and batch.image is not None
    return
  A = 1 if kind == 'prefix' else spans[-1].stop
  for x in (batch.old_logp, batch.ref_logp, batch.loss_mask, batch.kl_mask):
    assert x is None or x.shape[-1] == A
  tokens = [batch.data[span.name]['tokens'].shape[2] for span in spans]
  assert sum(tokens) == A


def check_flops(run, kind, called):
  total = flops.step_flops(run, kind)
  assert math.isfinite(total) and total > 0
  if not flops.step_passes(run):
    return
  counted = {name: flops.program_flops(run, name, kind) for name in called}
  assert counted['update'] > 0
  assert all(counted.get(name, 1) > 0 for name in ('rollout', 'logprobs'))
  assert total == pytest.approx(sum(counted.values()))


KINDS = ('var', 'infinity', 'unified', 'qwen2')  # of data
# What may be answered in text alone may be asked in the words of scenes.
ALSO = {('grpo', 'qwen2', 'unified')}


@pytest.mark.parametrize('policy', KINDS)
@pytest.mark.parametrize('objective', ['grpo', 'dpo', 'sft'])
def test_data_of_another_kind_is_refused_in_one_sentence(objective, policy):
  for kind in KINDS:
    if kind == policy or (objective, kind) == ('dpo', 'var') or (objective, policy, kind) in ALSO:
      continue
    with pytest.raises(ValueError, match='^data[.:]') as e:
      Run(tiny_configs.config(objective, policy, kind), '')
    assert '\n' not in str(e.value)
