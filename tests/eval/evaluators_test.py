"""What an evaluator cannot work with is one clear sentence when it is made, before anything
compiles.
"""

import dataclasses
from types import SimpleNamespace

import fake_run
import jax
from ml_collections import ConfigDict
import pytest

from vargrl.commands import experiment
from vargrl.eval import run
from vargrl.training import assemble

CONFIG = experiment.load('experiments/quickstart.py:smoke')


@pytest.fixture(scope='module')
def built():
  """{run: its Built}, of a tokenizer, of a classifier and of a policy."""
  return {k: assemble.build(CONFIG[k]) for k in ('tokenizer', 'classifier', 'pretrain')}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return str(tmp_path_factory.getbasetemp() / 'tfds')


def evals(folder, of='tokenizer', **changes):
  """The evaluators of a run of the quickstart, the first of them changed; None removes a key."""
  section = dict(CONFIG[of].evals.judge if 'judge' in changes else CONFIG[of].evals.test)
  section |= dict(dir=folder) | {k: v for k, v in changes.items() if k != 'judge'}
  return ConfigDict({'mine': {k: v for k, v in section.items() if v is not None}})


def test_the_quickstarts_evaluators_are_made(built, folder):
  for name, found in built.items():
    config = CONFIG[name].evals.copy_and_resolve_references()
    for section in config.values():
      section.dir = folder
    made = run.make(config, found)
    assert [(e.name, e.every_steps) for e in made] == [(k, 0) for k in config]


WRONG = {
  'dataset': (dict(dataset='digit'), "'digit' found.*digits"),
  'split': (dict(split='validation'), 'validation'),
  'no records': (dict(split='test[:0]'), r'digits/test\[:0\]'),
  'kind': (dict(kind='classified'), "kind: 'classified' found.*classify"),
  'kind of another run': (dict(kind='classify'), 'no `classify`'),
  'crop': (dict(crop='random'), "crop: 'random' found"),
  'limit': (dict(limit=-1), 'limit: -1 found'),
  'size': (dict(size=16), 'size: 16 pixels found, 8 expected'),
  'no such feature': (
    dict(dataset='digit_pairs'),
    r"digit_pairs/test: features .*\['image'\] expected",
  ),
  'every_steps below 0': (dict(every_steps=-1), 'every_steps: -1 found'),
  'every_steps not whole': (dict(every_steps=1.5), 'every_steps: 1.5 found'),
  'every_steps a bool': (dict(every_steps=True), 'every_steps: True found'),
  'no every_steps': (dict(every_steps=None), r"\['every_steps'\] expected"),
  'option too few': (dict(limit=None), 'keys .*limit.* expected'),
  'option too many': (dict(limits=3), "keys .*'limits'.* found"),
  'evaluator': (dict(name='eval.heldout'), "did you mean 'eval.held_out'"),
  'no evaluator': (dict(name='eval.real'), "name: 'eval.real' found, which has no make"),
  'a data source': (dict(name='data.source'), "name: 'data.source' found, an evaluator"),
  'itself': (dict(name='eval.run'), "name: 'eval.run' found, an evaluator"),
}


@pytest.mark.parametrize('changes, message', WRONG.values(), ids=WRONG)
def test_one_sentence_and_nothing_compiled(built, folder, changes, message):
  compiled = []
  hear = lambda name, *_, **__: compiled.append(name) if 'backend_compile' in name else None
  jax.monitoring.register_event_duration_secs_listener(hear)
  with pytest.raises(ValueError, match=rf'^evals\.mine: (.|\n)*{message}'):
    run.make(evals(folder, **changes), built['tokenizer'])
  assert not compiled


def test_the_judge_and_the_samples_tell_too(built, folder):
  policy = built['pretrain']
  with pytest.raises(ValueError, match=r"^evals\.mine: .*'digit' found"):
    run.make(evals(folder, 'pretrain', judge=True, dataset='digit'), policy)
  with pytest.raises(ValueError, match=r'^evals\.mine: per_class: 0 found'):
    run.make(evals(folder, 'pretrain', judge=True, per_class=0), policy)
  with pytest.raises(
    ValueError, match=r'^evals\.mine: digits/train: 10 classes found, 5 in the model'
  ):
    run.make(
      evals(folder, 'pretrain', judge=True),
      fake_run.built(dataclasses.replace(policy.policy, config=SimpleNamespace(classes=5))),
    )
  with pytest.raises(ValueError, match=r'^evals\.mine: samples: the run has no policy'):
    run.make(evals(folder, 'pretrain', judge=True), built['classifier'])


@pytest.mark.parametrize('classes, per_class', [(12, 1), ((3, -1), 1), ((), 1), (0, 1), (2, 0)])
def test_samples_of_what_is_not_there(built, classes, per_class):
  section = dict(
    name='eval.samples', every_steps=5, classes=classes, per_class=per_class, seed=0, preset=''
  )
  with pytest.raises(ValueError, match=r'^evals\.mine: (classes|per_class): .* found'):
    run.make(ConfigDict({'mine': section}), built['pretrain'])
