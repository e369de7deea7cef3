"""The smallest run of every objective on every policy, on data of the policy's kind."""

import pathlib
import sys

from ml_collections import ConfigDict

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments import grpo_qwen2_text, grpo_vargpt_7b, quickstart, sft_infinity_2b  # noqa: E402

BRIGHTNESS = dict(light=dict(name='rewards.brightness', weight=1.0))
EXACT = dict(right=dict(grpo_qwen2_text.REWARD))
POOL = dict(max_failed=0.1, workers=1, timeout=60.0, retries=1, chunk=256)
GROUPS = dict(
  rollouts=4,
  old_logp='trainer',
  std='group',
  eps=1e-4,
  kl_reward=0.1,
  reward_mix='sum',
  resample=1,
  mask={},
)
ALL = (('.*', {}),)
SURROGATE = dict(
  level='token',
  clip=0.2,
  clip_high=0.28,
  penalty=0.1,
  estimator='exact',
  scale_weight_power=0.7,
  first_scale=0,
  last_scale=-1,
  segments=ALL,
)
PAIRS = dict(kind='sigmoid', beta=0.1, smoothing=0.0, scale_weight_power=0.5, segments=ALL)
BRANCHES = dict(split=1, continuations=2, eta=1.0, prefix_steps=1, suffix_steps=1)
# {objective: (what of its data, objective.collect, objective.loss)}
OBJECTIVES = {
  'grpo': ('prompts', GROUPS, SURROGATE),
  'vmr': ('prompts', GROUPS | BRANCHES, SURROGATE),
  'dpo_groups': ('prompts', dict(rollouts=4), PAIRS),
  'dpo': ('pairs', dict(flip=0.0, flip_scales=0, same_flips=True), PAIRS),
  'sft': (
    'train',
    dict(prompt_drop=0.0, condition_drop=0.0, drop_path=0.0, flip=0.0, flip_scales=0),
    dict(scale_weight_power=0.5, segments=ALL),
  ),
  'tokenizer': (
    'images',
    {},
    dict(l1=0.2, l2=1.0, quantizer=1.0, perceptual=0.0, adversarial=0.0),
  ),
  'classify': ('images', dict(noise=0.1), dict(smoothing=0.05)),
}
POLICIES = ('var', 'infinity', 'unified', 'qwen2', 'vq', 'bsq', 'classifier')


def sections(policy):
  """{section: of a run with this policy}: itself, what it needs, and how it is sampled."""
  if policy in ('vq', 'bsq'):
    size = 'smoke' if policy == 'vq' else 'smoke-square'
    return dict(policy=dict(name=f'tokenizers.{policy}', size=size))
  if policy == 'classifier':
    return dict(policy=dict(name='models.judges.classifier', size='smoke'))
  config = {
    'var': quickstart.get_config('smoke').pretrain,
    'infinity': sft_infinity_2b.get_config('smoke'),
    'unified': grpo_vargpt_7b.get_config('smoke'),
    'qwen2': grpo_qwen2_text.get_config('smoke').grpo,
  }[policy]
  config = config.copy_and_resolve_references()
  if policy in ('infinity', 'unified'):
    config.policy.scales = config.tokenizer.scales = '1x1 2x2'
  return {k: config[k] for k in ('policy', 'tokenizer', 'rollout') if k in config}


LABELS = dict(split='train', size=8, crop='none', flip=False, shuffle=True, batch=8)
LABELS |= dict(max_unreadable=0.01, dir='', threads=1, workers=0)
FEATURES = dict(name='data.features', dataset='random', split='', dir='', prompts=8, tokens=8)
FEATURES |= dict(width=16, size=(4, 4), shuffle=True)
DIALOGUES = dict(shuffle=True, max_unreadable=0.01, threads=1, workers=0)
SCENES = dict(DIALOGUES, size=(16, 16), crop='cover', tokenizer='scenes')
SCENES |= dict(vision=dict(patch=4, merge=2, frames=1, min_pixels=1024, max_pixels=1024))
SUMS = dict(DIALOGUES, tokenizer='characters', **grpo_qwen2_text.TEXT)
PACKED = dict(batch=8, examples_per_row=2, loss_on='assistant', prompt_drop=0.0)
ONE = dict(split='train', dir='', max_records=32, prompts=8)


def labels(what):
  if what == 'prompts':
    return dict(name='data.prompts', classes=10, prompts=8)
  return dict(name='data.source', dataset='digit_pairs' if what == 'pairs' else 'digits', **LABELS)


def features(what):
  images = dict(prompts=(), pairs=('chosen', 'rejected')).get(what, ('image',))
  return dict(FEATURES, images=images)


def packed(dataset, **more):
  source = dict(dataset=dataset, split='train', dir='', max_records=32, weight=1.0)
  return dict(PACKED, name='data.dialogue.train', sources=dict(only=source), **more)


def scenes(what):
  if what == 'train':
    places = dict(length=256, max_patches=128, max_images=2, max_context=72, image_tokens=5)
    return packed('scenes/small/32/generation', positions='mrope', **places, **SCENES)
  if what == 'pairs':
    answers = dict(name='data.dialogue.pairs', dataset='scenes/small/32/pairs', max_answer=48)
    return dict(answers, length=48, max_patches=0, **ONE, **SCENES)
  asked = dict(name='data.dialogue.prompts', dataset='scenes/small/32/generation', length=48)
  return dict(asked, max_patches=0, prefill_image=False, **ONE, **SCENES)


def sums(what):
  none = dict(max_patches=0)
  if what == 'train':
    places = dict(max_images=0, max_context=0, image_tokens=0, length=40)
    return packed('sums/99', positions='sequential', **places, **none, **SUMS)
  if what == 'pairs':
    answers = dict(name='data.dialogue.pairs', dataset='sums/99/pairs', max_answer=5)
    return dict(answers, length=24, **none, **ONE, **SUMS)
  asked = dict(name='data.dialogue.prompts', dataset='sums/99', length=24, prefill_image=False)
  return dict(asked, **none, **ONE, **SUMS)


DATA = dict(var=labels, vq=labels, bsq=labels, classifier=labels)
DATA |= dict(infinity=features, unified=scenes, qwen2=sums)


def config(objective, policy, data=None):
  """A ConfigDict. data: the policy whose kind of data it has, itself if None."""
  what, collect, loss = OBJECTIVES[objective]
  c = quickstart.common()
  c.steps, c.mesh, c.max_replicated_share = 2, (('data', -1), ('fsdp', 1), ('tensor', 1)), 1.0
  c.optim.warmup = 0
  for name, section in sections(policy).items():
    c[name] = section
  c.reference = what in ('prompts', 'pairs')
  c.objective = dict(name=f'objectives.{objective}', collect=dict(collect), loss=dict(loss))
  if what == 'prompts':
    rewards = EXACT if policy == 'qwen2' else BRIGHTNESS
    c.objective.collect.update(rewards=ConfigDict(rewards), pool=dict(POOL))
  if 'flip' in collect and policy in ('infinity', 'unified'):
    c.objective.collect.update(flip=0.3, flip_scales=2)
  if 'max_tokens' in c.get('rollout', {}).get('text', {}) and objective == 'dpo':
    c.rollout.text.max_tokens = 48 if policy == 'unified' else 5
  c.data = DATA[data or policy]('train' if what == 'images' and policy in DATA else what)
  return c
