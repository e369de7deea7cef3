"""A run's config -> its functions, its abstract weights and where they come from. Nothing compiles
here.
"""

import dataclasses
import difflib
from functools import partial

from flax import traverse_util
import jax

from vargrl import contracts
from vargrl.models.judges import critics
from vargrl.models.layers import lora
from vargrl.rewards import mix, worker
from vargrl.rollout import packed
from vargrl.types import Models, Samples, lookup


def module(section, what):
  """dict(name, size, **changes) -> (python module, linen model of that size)."""
  python = lookup(section.name, 'SIZES', 'Config', 'Model', 'init')
  if section.size not in python.SIZES:
    raise ValueError(f'{what}.size: {section.size!r}, expected one of {sorted(python.SIZES)}')
  changes = {k: v for k, v in section.items() if k not in ('name', 'size')}
  known = [f.name for f in dataclasses.fields(python.Config)]
  for key in changes:
    if key not in known:
      near = difflib.get_close_matches(key, known, 1, 0)
      raise ValueError(
        f'{what}.{key}: {section.name} has no such option; did you mean {near[0]!r}?'
      )
  changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
  return python, python.Model(dataclasses.replace(python.SIZES[section.size], **changes))


FROZEN = (
  'tokenizer',
  'classifier',
  'perceptual',
)  # sections whose weights a run uses and never trains


@dataclasses.dataclass(frozen=True)
class Built:
  """models: the functions. trained, frozen: {name: key -> boxed params} of all weights. parts:
  {section: linen model}."""

  models: Models
  trained: dict
  frozen: dict
  parts: dict


def build(config):
  """The functions of a run, but for its rewards; ValueError where the config's parts do not fit."""
  policy, model = module(config.policy, 'policy')
  trained, frozen = {'policy': partial(policy.init, model)}, {}
  parts = {'policy': model}
  for name in FROZEN:
    if name in config:
      python, parts[name] = module(config[name], name)
      frozen[name] = partial(python.init, parts[name])
  if 'critic' in config:
    python, parts['critic'] = module(config.critic, 'critic')
    trained['critic'] = partial(python.init, parts['critic'])
  functions = dict(init=trained['policy'], config=model.c)
  if adapter_off(config, model.c):
    functions['reference'] = lambda params, frozen: lora.base_params(params['policy'])
  elif config.reference:
    frozen['reference'] = trained['policy']
  if 'rollout' in config:
    functions |= sampling(config, model, parts)
  if config.policy.name.startswith('tokenizers.'):
    functions['reconstruct'] = lambda params, x, keep=None: model.apply(
      {'params': params}, x, *([] if keep is None else [keep]), method='reconstruct'
    )
    if hasattr(policy, 'kept'):
      functions['kept'] = partial(policy.kept, model.c)
  if hasattr(model.c, 'stages'):
    functions['classify'] = lambda params, x: model.apply({'params': params}, x)
  if 'critic' in parts:
    functions['critic'] = lambda params, x: parts['critic'].apply({'params': params}, x)
  if 'classifier' in parts:
    functions['bind'] = {
      'classifier': lambda params, x: parts['classifier'].apply({'params': params}, x)
    }
  if 'perceptual' in parts:
    features = lambda frozen, x: parts['perceptual'].apply(
      {'params': frozen['perceptual']}, x, method='features'
    )
    functions['perceptual'] = lambda frozen, a, b: critics.perceptual(
      features(frozen, a), features(frozen, b)
    )
  known = [*trained, *frozen] + ['reference'] * config.reference
  for key in config.init:
    if key not in known:
      near = difflib.get_close_matches(key, known, 1, 0)
      raise ValueError(f'init.{key}: no weights of this name in the run; did you mean {near[0]!r}?')
  if 'classifier' in parts and parts['classifier'].c.classes != getattr(model.c, 'classes', 0):
    raise ValueError(
      f'classifier: {parts["classifier"].c.classes} classes, {model.c.classes} in the policy'
    )
  return Built(Models(**functions), trained, frozen, parts)


def adapter_off(config, c):
  """True if the reference is the policy without its adapters, which takes no memory."""
  return bool(config.reference and getattr(c, 'lora_rank', 0) and not config.init.get('reference'))


def check_reference(config, built, trained):
  """The pass without adapters is a reference only as long as the base stays what it was."""
  if not adapter_off(config, built.models.config):
    return
  base = traverse_util.flatten_dict(lora.base_params(trained['policy']), sep='/')
  if moving := [name for name, t in base.items() if t]:
    only = "(('/lora_', 1.0), ('.*', None))"
    raise ValueError(
      f'optim.scale: trains {len(moving)} base weights (policy/{moving[0]} is one) of the policy '
      f'whose adapter-off pass is the reference, expected {only}, or a checkpoint in init.reference'
    )


def sampling(config, model, parts):
  """The functions of a policy that draws; rollout knobs are checked by its Config."""
  if 'tokenizer' not in parts:
    raise ValueError('tokenizer: missing in a config that has a rollout')
  rollout, tokenizer = (
    lookup(config.rollout.name, 'Config', 'generate', 'logprobs', 'SAME'),
    parts['tokenizer'],
  )
  for key in rollout.SAME:
    for what, part in (('policy', model), ('tokenizer', tokenizer)):
      if not hasattr(part.c, key):
        raise ValueError(
          f'rollout.name: {config.rollout.name!r} needs {what}.{key}, {config[what].name} has none'
        )
    ours, theirs = getattr(model.c, key), getattr(tokenizer.c, key)
    if ours != theirs:
      raise ValueError(
        f'policy.{key}: {ours} in policy {config.policy.size!r}, {theirs} in tokenizer '
        f'{config.tokenizer.size!r}'
      )
  c, presets = sampler(config), getattr(rollout, 'PRESETS', {})
  if hasattr(rollout, 'check_model'):
    rollout.check_model(c, model.c)
  (
    c.strengths(len(model.c.scales)),
    c.temperatures(len(model.c.scales)),
  )  # one for each scale, or one for all

  def generator(c):
    return lambda params, frozen, prompt_P, keys_PR: rollout.generate(
      model, tokenizer, c, params, frozen['tokenizer'], prompt_P, keys_PR
    )

  def logprobs(params, frozen, batch, reference=None):
    return rollout.logprobs(
      model,
      tokenizer,
      c,
      params,
      frozen['tokenizer'],
      batch.label,
      batch.tokens,
      batch.keep,
      reference,
      batch.shown,
    )

  found, policy = {}, lookup(config.policy.name)
  if hasattr(rollout, 'PROMPT'):
    length = model.c.decoder.length
    found |= dict(
      asks=rollout.PROMPT,
      prompt=lambda batch: {name: batch[name] for name in rollout.PROMPT},
      plan=tuple(rollout.plan(c, length)),
      drawn=lambda tokens, lead: tokens['bits'].reshape(-1, length, model.c.bits),
      packed=lambda params, frozen, batch: packed.logprobs(
        model,
        tokenizer,
        params,
        frozen['tokenizer'],
        batch.label,
        batch.tokens[:, 0],
        batch.shown[:, 0],
        batch.label['dropped'],
        None if batch.keep is None else batch.keep[:, 0],
      ),
    )
  if hasattr(rollout, 'branch'):
    found['branch'] = lambda params, frozen, prompt_P, keys_PG, split, K: rollout.branch(
      model, tokenizer, c, params, frozen['tokenizer'], prompt_P, keys_PG, split, K
    )
  if hasattr(policy, 'given'):
    given = policy.given(model.c)
    found |= dict(given=given, prompt=lambda batch: {name: batch[name] for name in given})
  if hasattr(tokenizer, 'correct'):
    found['correct'] = lambda frozen, x, flips: tokenizer.apply(
      {'params': frozen['tokenizer']}, x, flips, method='correct'
    )
  return found | dict(
    scales=model.c.scales,
    classes=getattr(model.c, 'classes', 0),
    keys=rollout.keys,
    logprobs=logprobs,
    generate=generator(c),
    otherwise=lambda **changes: generator(dataclasses.replace(c, **changes)),
    unconditional=getattr(model, 'unconditional', None),
    presets={
      name: generator(dataclasses.replace(preset, weights=c.weights))
      for name, preset in presets.items()
    },
    encode=lambda frozen, x: tokenizer.apply({'params': frozen['tokenizer']}, x, method='encode'),
    decode=lambda frozen, t_BL: rollout.decode(tokenizer, frozen['tokenizer'], t_BL),
  )


def sampler(config):
  """The settings of the run's rollouts."""
  knobs = {
    k: tuple(v) if isinstance(v, list) else v for k, v in config.rollout.items() if k != 'name'
  }
  Config = lookup(config.rollout.name, 'Config').Config
  fields = {f.name for f in dataclasses.fields(Config)}
  contracts.check_keys('rollout', knobs, fields)
  return Config(**knobs)


def scored(config, built, lean=False, texts=None, records=None):
  """built.models with the rewards of `objective.collect`, started (host rewards have worker
  processes); lean: those on the device alone, whose weights are abstract. texts: see Models.
  records: how many records the data's labels number, None where that is unknown."""
  collect, models = config.objective.collect, dataclasses.replace(built.models, texts=texts)
  if 'rewards' not in collect:
    return models
  if 'mask' in collect:
    if collect.mask and models.plan:
      raise ValueError(
        f'objective.collect.mask: {collect.mask.to_dict()} found, {{}} expected of '
        f'{config.policy.name}'
      )
    models = dataclasses.replace(models, mask=mask(collect.mask))
  if 'classifier' not in models.bind and any(
    r.name == 'rewards.classifier' for r in collect.rewards.values()
  ):
    raise ValueError('classifier: missing in a config that has the reward rewards.classifier')
  if not lean:
    mix.check_names(collect.rewards, classes=models.classes, records=records)
  told = texts and (
    lambda labels: [
      {'prompt': text, 'label': int(label)} for text, label in zip(texts(labels), labels)
    ]
  )
  rewards = mix.make(collect.rewards, bind=models.bind, lean=lean, records=told, **collect.pool)
  load, sees = (
    rewards.shapes if lean else rewards.load,
    lambda x, label: Samples(x, {}, {'label': label}),
  )
  rows = collect.get('rollouts', 1)
  return dataclasses.replace(
    models,
    score=lambda frozen, x, label: rewards.score(
      frozen, sees(x, label), rows if len(label) % rows == 0 else 1
    ),
    judge=rewards.device
    and jax.jit(lambda frozen, x, label: rewards.device(frozen, sees(x, label)))
    or None,
    close=rewards.close,
    reward_weights=load if rewards.judges else None,
  )


def mask(section):
  """{'name': 'rewards.brightness', **options} -> that module's `mask` as (image_Byxc, label_B) ->
  mask_Byx; None of an empty section."""
  options = dict(section.items())
  if not options:
    return None
  if 'name' not in options:
    raise ValueError(
      f"objective.collect.mask: keys {sorted(options)} found, 'name' expected among them"
    )
  name = options.pop('name')
  try:
    arrays = ('image_Byxc', 'label_B')
    return partial(worker.load(f'{name}.mask', options, arrays), **options)
  except ValueError as error:
    raise ValueError(f'objective.collect.mask: {str(error).removeprefix("reward ")}') from error
