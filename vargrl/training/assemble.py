"""A run's config -> its functions, its abstract weights and where they come from. Nothing compiles
here.
"""

import dataclasses
import difflib
from functools import partial
import pathlib

from flax import traverse_util
import flax.linen as nn
import jax

from vargrl import contracts
from vargrl.checkpoint import files, torch
from vargrl.checkpoint import store as stores
from vargrl.data import names as class_names
from vargrl.models.judges import critics
from vargrl.models.layers import lora
from vargrl.parallel import place
from vargrl.rewards import mix, worker
from vargrl.rollout import packed
from vargrl.types import Models, lookup


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


def scored(config, built, lean=False, texts=None):
  """built.models with the rewards of `objective.collect`, started (host rewards have worker
  processes); lean: those on the device alone, whose weights are abstract. texts: see Models."""
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
  rewards = mix.make(collect.rewards, bind=models.bind, lean=lean, texts=texts, **collect.pool)
  for nickname in rewards.judges:
    section = collect.rewards[nickname]
    if lean or not models.classes or 'names' not in section:
      continue
    if (count := len(class_names.names(section.names))) != models.classes:
      rewards.close()
      raise ValueError(
        f'reward {nickname}: {count} names of classes, {models.classes} classes in the policy'
      )
  load = rewards.shapes if lean else rewards.load
  return dataclasses.replace(
    models,
    score=rewards.score,
    judge=rewards.device or None,
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
    return partial(worker.load(f'{name}.mask', options), **options)
  except ValueError as error:
    raise ValueError(f'objective.collect.mask: {str(error).removeprefix("reward ")}') from error


def key_of(seed, name):
  """The key that the weights `name` of a run with this seed are drawn with."""
  return jax.random.fold_in(jax.random.key(seed), sum(map(ord, name)))


def pieces(config, name, shapes):
  """{part: (reference checkpoint, its layouts, its shapes)} where config.init has a checkpoint for
  each of some parts of a model, {'lm': ..., 'drawer': ...}; {} where it has one for all, or
  none."""
  found = config.init.get(name, '')
  if not hasattr(found, 'items'):
    return {}
  python, model = module(config.policy, 'policy')
  known = python.parts(model.c) if hasattr(python, 'parts') else {}
  for part in found:
    if part not in known:
      raise ValueError(f'init.{name}.{part}: {config.policy.name} has the parts {sorted(known)}')
  return {
    part: (str(path), known[part][0].torch_layouts(known[part][1]), shapes[part])
    for part, path in found.items()
  }


def source(config, name, root):
  """What config.init names for `name`, or None: a checkpoint folder of ours, or a reference
  checkpoint (a file, or a folder with one). A run of the chain is a folder below the chain's
  workdir `root`."""
  if name not in config.init or not config.init[name] or hasattr(config.init[name], 'items'):
    return None
  path = str(config.init[name])
  if '/' in path or path.endswith(files.ENDINGS):
    return path
  return str(pathlib.Path(root) / path / 'checkpoints')


def layouts(config, name):
  """How the weights `name` lie in reference checkpoints; ValueError if there are none of this
  model.
  """
  section = 'policy' if name == 'reference' else name
  python, model = module(config[section], section)
  if not hasattr(python, 'torch_layouts'):
    raise ValueError(
      f'init.{name}: {config.init[name]} found, but {config[section].name} has no reference '
      'layout; expected a checkpoint folder of a run'
    )
  return python.torch_layouts(model.c)


def weights(config, name, init, mesh, root, say=print):
  """(frozen or initial weights, meta of our checkpoint that they come from): loaded where
  config.init says so, drawn from the seed otherwise; no meta comes with these, nor with reference
  checkpoints."""
  shapes, name = place.abstract_params(init, mesh), origin(config, name)
  path = source(config, name, root)
  if found := pieces(config, name, shapes):
    rest = lora.base_params({part: x for part, x in shapes.items() if part not in found})
    say(f'{name}: random weights of {", ".join(sorted(rest))}')
    drawn = place.init_sharded(
      lambda key: lora.base_params({part: nn.unbox(init(key)[part]) for part in rest}),
      key_of(config.seed, name),
      rest,
    )
    tree = {part: torch.load(*about) for part, about in found.items()} | drawn
    return (
      adapted(tree, init, key_of(config.seed, name), shapes) if name == 'policy' else tree
    ), {}
  if path:
    if files.known(path):
      tree, meta = torch.load(path, layouts(config, name), shapes), {}
    else:
      stored = lora.match_structure(shapes, stores.names(path, item=item(name)))
      _, tree, meta = stores.load(path, stored, item=item(name))
    return (
      adapted(tree, init, key_of(config.seed, name), shapes) if name == 'policy' else tree
    ), meta
  if name != 'critic' and (name != 'policy' or config.reference):
    say(f'{name}: no checkpoint in init, random weights')
  return place.init_sharded(init, key_of(config.seed, name), shapes), {}


def adapted(tree, init, key, shapes):
  """Weights as loaded -> those of the run: adapters that a base does not have are drawn from the
  seed.
  """
  _, wanted = lora.split(shapes)
  if not wanted or lora.split(tree)[1]:
    return tree
  return lora.join(tree, place.init_sharded(lambda key: lora.split(nn.unbox(init(key)))[1], key, wanted))


def origin(config, name):
  """A reference without a checkpoint of its own is a copy of what the policy starts from."""
  return 'policy' if name == 'reference' and not config.init.get(name) else name


def item(name):
  """What of a checkpoint becomes the weights `name`: all but a critic were the policy of their
  run.
  """
  return 'params/critic' if name == 'critic' else 'params/policy'


def check_sources(config, built, mesh, root, upstream):
  """Missing checkpoints and those of other models are told before anything is compiled.

  upstream: {run: abstract params} of the chain's earlier runs, which may have no checkpoint yet.
  """
  for name, init in (built.trained | built.frozen).items():
    folder, kind = source(config, name, root), item(name).removeprefix('params/')
    want = place.abstract_params(init, mesh)
    for part, about in pieces(config, name, want).items():
      told(
        f'init.{name}.{part}',
        about[0],
        module(config.policy, 'policy')[0].parts(built.models.config)[part][0].HUB,
        about[1],
        about[2],
      )
    if not folder:
      continue
    if files.known(folder):
      check_file(config, name, folder, want)
    elif config.init[name] in upstream:
      have = upstream[config.init[name]].get(kind, {})
      want = lora.match_structure(want, traverse_util.flatten_dict(have, sep='/'))
      stores.refuse_others(f'init.{name}: run {config.init[name]!r}', have, want)
    elif not stores.peek(
      folder, lora.match_structure(want, stores.names(folder, item=item(name))), item=item(name)
    ):
      raise FileNotFoundError(f'init.{name}: no checkpoint in {folder}')


def check_file(config, name, path, shapes):
  """What torch.load would refuse, told by the config's key and without reading an array."""
  hub = module(config['policy' if name == 'reference' else name], name)[0].HUB
  told(f'init.{name}', path, hub, layouts(config, name), shapes)


def told(what, path, hub, theirs, shapes):
  """The same of one file or folder; `what` of the config names it."""
  try:
    torch.check(path, theirs, shapes)
  except FileNotFoundError as e:
    path = pathlib.Path(path)
    raise FileNotFoundError(
      f'{what}: {e}; `huggingface-cli download {hub} {path.name} --local-dir {path.parent}` '
      'brings it, if it is a published one'
    ) from e
  except ValueError as e:
    raise ValueError(f'{what}: {e}') from e
