"""A config of before: module names and keys of earlier versions, each refused in one sentence that
has the present name, until nothing is left to say."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from experiments import grpo_vargpt_7b, quickstart, vargpt_7b  # noqa: E402
from vargrl import contracts  # noqa: E402
from vargrl.training.run import Run  # noqa: E402


def set_at(config, path, value):
  """Changes a key of a config, or with value None deletes it."""
  *sections, key = path.split('.')
  with config.unlocked():
    for name in sections:
      config = config[name]
    if key in config:
      del config[key]  # its type may be another one
    if value is not None:
      config[key] = value


def refused(config):
  """The sentence that a run of this config is refused with."""
  with pytest.raises(ValueError) as e:
    Run(config, '', inference_only=True)
  assert '\n' not in str(e.value)
  return str(e.value)


def concerns(sentence, path, value):
  """Whether a sentence is about the section of this key, or about what a section of all names."""
  section = sentence.partition(':')[0]
  if section == 'name':
    return isinstance(value, dict) and repr(value['name']) in sentence
  if section == 'config':
    return repr(path) in sentence
  return path.startswith(f'{section}.')


def rename_until_accepted(config, old, present):
  """old, present: {path of a key: value}, of all that a version before had otherwise. Changes what
  each sentence is about until the run is built; returns the sentences."""
  for path in present:
    set_at(config, path, None)
  for path, value in old.items():
    set_at(config, path, value)
  sentences = []
  while len(sentences) <= len(old):
    try:
      Run(config, '', inference_only=True)
      return sentences
    except ValueError as e:
      sentences.append(str(e))
    assert '\n' not in sentences[-1]
    for which, keep in ((old, False), (present, True)):
      for path, value in which.items():
        if concerns(sentences[-1], path, value):
          set_at(config, path, value if keep else None)
  raise AssertionError(sentences)


def test_a_config_of_grpo_is_told_everything():
  config = quickstart.get_config('smoke').grpo
  config.init = {}
  collect, loss = config.objective.collect, config.objective.loss
  old = {
    'replicated_at_most': 0.02,
    'rollout.name': 'rollout.next_scale',
    'rollout.guidance': 0.0,
    'rollout.temperature': 1.0,
    'rollout.top_k': 0,
    'rollout.top_p': 0.0,
    'rollout.record': 'cond',
    'classifier': dict(name='models.classifier', size='smoke'),
    'objective.collect.old': 'trainer',
    'objective.collect.combine': 'sum',
    'objective.loss.kl': 0.2,
    'objective.loss.alpha': 0.7,
    'objective.loss.first': 0,
    'objective.loss.last': 2,
  }
  present = {
    'max_replicated_share': 0.02,
    'rollout.plan': ('image',),
    'rollout.image': config.rollout.image,
    'classifier': dict(name='models.judges.classifier', size='smoke'),
    'objective.collect.old_logp': 'trainer',
    'objective.collect.reward_mix': 'sum',
    'objective.collect.resample': 0,
    'objective.loss.penalty': loss.penalty,
    'objective.loss.scale_weight_power': 0.7,
    'objective.loss.first_scale': 0,
    'objective.loss.last_scale': 2,
    'objective.loss.segments': loss.segments,
    'optim.ema': 0.0,
  }
  assert collect.old_logp == 'trainer'
  told = rename_until_accepted(config, old, present)
  key = lambda a, b: f'key {a!r} found, it is called {b!r} now'
  assert f'config: {key("replicated_at_most", "max_replicated_share")}' in told
  (rollout,) = [x for x in told if x.startswith('rollout: ')]
  for a, b in (
    ('name', 'plan'),
    ('guidance', 'image.guidance (of models.var 1 more)'),
    ('temperature', 'image.temperature or text.temperature'),
    ('record', 'image.logp_of'),
  ):
    assert key(a, b) in rollout
  (collected,) = [x for x in told if x.startswith('objective.collect: ')]
  assert key('old', 'old_logp') in collected and key('combine', 'reward_mix') in collected
  (losses,) = [x for x in told if x.startswith('objective.loss: ')]
  for a, b in (('kl', 'penalty'), ('alpha', 'scale_weight_power'), ('last', 'last_scale')):
    assert key(a, b) in losses
  assert "name: 'models.classifier' found, it is called 'models.judges.classifier' now" in told
  assert [x for x in told if x.startswith('optim: ')] and len(told) == 6


def test_a_config_of_a_unified_policy_is_told_everything():
  config = grpo_vargpt_7b.get_config('smoke')
  config.init, rollout = {}, config.rollout
  old = {
    'data.name': 'data.dialogue_prompts',
    'policy.special': (6, 7, 8),
    'policy.padded': 0,
    'rollout.name': 'rollout.interleaved',
    'rollout.words': (4, 0),
    'rollout.stop': (2,),
    'rollout.bit_temperature': 1.0,
    'rollout.bit_top_p': 0.0,
    'rollout.nothing': (),
    'rollout.released': True,
  }
  present = {
    'data.name': 'data.dialogue.prompts',
    'rollout.plan': ('text', 'image'),
    'rollout.text': rollout.text,
    'rollout.image': rollout.image,
    'rollout.uncond_prompt': (),
    'rollout.reference_impl': True,
  }
  for path in present:
    set_at(config, path, None)
  for path, value in old.items():
    set_at(config, path, value)
  named = "name: 'data.dialogue_prompts' found, it is called 'data.dialogue.prompts' now"
  assert refused(config) == named
  config.data.name = 'data.dialogue.prompts'
  for _ in ('padded', 'special'):
    sentence = refused(config)
    assert sentence in (
      "policy.special: it is called 'image_tokens' now",
      "policy.padded: it is called 'image_pad_to' now",
    )
    set_at(config, sentence.partition(':')[0], None)
  sentence = refused(config)
  for a, b in (
    ('words', 'text.max_tokens'),
    ('stop', 'text.stop'),
    ('bit_temperature', 'image.temperature'),
    ('bit_top_p', 'image.top_p'),
    ('nothing', 'uncond_prompt'),
    ('released', 'reference_impl'),
  ):
    assert f'key {a!r} found, it is called {b!r} now' in sentence


@pytest.mark.parametrize(
  'old, present', [('sft_unified', 'sft'), ('sft_bits', 'sft'), ('dpo_unified', 'dpo')]
)
def test_objectives_that_are_one_now(old, present):
  config = vargpt_7b.get_config('smoke').sft256
  config.objective.name = f'objectives.{old}'
  sentence = f"name: 'objectives.{old}' found, it is called 'objectives.{present}' now"
  assert refused(config) == sentence


def test_weights_of_bits_are_of_segments_now():
  config = vargpt_7b.get_config('smoke').sft256
  config.init = {}
  config.objective.loss = dict(bits=3.0, alpha=0.5)
  assert refused(config) == (
    "objective.loss: key 'alpha' found, it is called 'scale_weight_power' now; key 'bits' found, "
    """it is called "segments (('image', {'weight': ..}),)" now"""
  )


def test_options_of_a_tokenizer_that_is_trained():
  config = quickstart.get_config('smoke').tokenizer
  for old, new in (('phis', 'n_shared_convs'), ('spread', 'codebook_std')):
    set_at(config, f'policy.{old}', 1)
    assert refused(config) == f'policy.{old}: it is called {new!r} now'
    set_at(config, f'policy.{old}', None)


def test_every_module_of_before_has_one_now():
  for old, new in contracts.RENAMED_MODULES.items():
    assert old not in contracts.names() and new in contracts.names()


def test_what_every_run_has_to_say_is_asked_for():
  for key in ('seed', 'mesh', 'optim', 'objective', 'evals'):
    config = quickstart.get_config('smoke').grpo
    set_at(config, key, None)
    assert f'[{key!r}] expected too' in refused(config)
  config = quickstart.get_config('smoke').grpo
  set_at(config, 'objective.loss', None)
  assert refused(config) == (
    "objective: keys ['collect', 'name'] found, ['collect', 'loss', 'name'] expected"
  )
