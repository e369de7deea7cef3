"""A run's config -> its records of functions, its abstract weights and where they come from.
Nothing compiles here.
"""

import dataclasses
import difflib
from functools import partial

from flax import traverse_util

from vargrl import contracts
from vargrl.models.judges import critics
from vargrl.models.layers import lora
from vargrl.rewards import mix, worker
from vargrl.training import policy as policies
from vargrl.types import Judges, Policy, Rewards, Tokenizer


def module(section, what):
  """dict(name, size, **changes) -> (python module, linen model of that size)."""
  python = contracts.module(section.name, 'model')
  if section.size not in python.SIZES:
    raise ValueError(f'{what}.size: {section.size!r}, expected one of {sorted(python.SIZES)}')
  changes = {k: v for k, v in section.items() if k not in ('name', 'size')}
  known = [f.name for f in dataclasses.fields(python.Config)]
  for key in changes:
    if key not in known:
      if now := contracts.renamed(what, key, known):
        raise ValueError(f'{what}.{key}: it is called {now!r} now')
      near = difflib.get_close_matches(key, known, 1, 0)
      raise ValueError(
        f'{what}.{key}: {section.name} has no such option; did you mean {near[0]!r}?'
      )
  changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
  return python, python.Model(dataclasses.replace(python.SIZES[section.size], **changes))


# Sections whose weights a run uses and never trains.
FROZEN = ('tokenizer', 'classifier', 'perceptual')


@dataclasses.dataclass(frozen=True)
class Built:
  """What build makes of a config.

  policy: of rollouts. packed: the Policy of packed rows of data, or None. plan: of rollouts, ()
  without. tokenizer, judges: records. bound: {parameter of a reward: the function it gets}.
  trained, frozen: {name: key -> boxed params} of all weights. parts: {section: linen model}."""

  policy: Policy
  packed: Policy | None
  plan: tuple
  tokenizer: Tokenizer | None
  judges: Judges
  bound: dict
  trained: dict
  frozen: dict
  parts: dict

  @property
  def learner(self):
    """The Policy that objectives score: of packed rows if the data has them."""
    return self.packed or self.policy

  def records(self, scorer=None):
    """{name of a parameter of an objective's functions: its record}."""
    return {
      'policy': self.learner,
      'tokenizer': self.tokenizer,
      'judges': self.judges,
      'scorer': scorer,
    }


def build(config):
  """The functions of a run, but for its rewards; ValueError where the config's parts do not fit."""
  python, model = module(config.policy, 'policy')
  trained, frozen = {'policy': partial(python.init, model)}, {}
  parts, modules = {'policy': model}, {'policy': python}
  for name in (*FROZEN, 'critic'):
    if name in config:
      modules[name], parts[name] = module(config[name], name)
      group = trained if name == 'critic' else frozen
      group[name] = partial(modules[name].init, parts[name])
  reference = lambda params, frozen: frozen.get('reference')
  if adapter_off(config, model.c):
    reference = lambda params, frozen: lora.base_params(params['policy'])
  elif config.reference:
    frozen['reference'] = trained['policy']
  check_parts(config, trained, frozen, parts)
  init, packed, plan = trained['policy'], None, ()
  if 'rollout' in config:
    contracts.module(config.policy.name, 'policy')
    policy, packed, plan = policies.make(
      config, python, model, parts.get('tokenizer'), init=init, reference=reference
    )
  else:
    policy = without_rollout(model.c, init, reference)
  tokenizer = None
  for name in ('tokenizer', 'policy'):
    if name in parts and (name == 'tokenizer' or hasattr(modules[name], 'CONDITIONAL')):
      found = contracts.module(config[name].name, 'tokenizer')
      tokenizer = policies.tokenizer_functions(found, parts[name])
      break
  classifier = contracts.offers(parts.get('classifier'), 'apply')
  bound = {'classifier': classify(parts['classifier'])} if classifier else {}
  return Built(policy, packed, plan, tokenizer, judges(parts), bound, trained, frozen, parts)


def check_parts(config, trained, frozen, parts):
  """ValueError for weights in `init` that the run does not have, or a classifier of other
  classes.
  """
  known = [*trained, *frozen] + ['reference'] * config.reference
  for key in config.init:
    if key not in known:
      near = difflib.get_close_matches(key, known, 1, 0)
      raise ValueError(f'init.{key}: no weights of this name in the run; did you mean {near[0]!r}?')
  if 'classifier' not in parts:
    return
  ours, theirs = parts['classifier'].c.classes, contracts.offers(parts['policy'].c, 'classes') or 0
  if ours != theirs:
    raise ValueError(f'classifier: {ours} classes, {theirs} in the policy')


def without_rollout(c, init, reference):
  """The Policy of a tokenizer or classifier that is trained."""
  nothing = dict.fromkeys(
    (
      'prompt',
      'unconditional',
      'keys',
      'generate',
      'branch',
      'with_plan',
      'score',
      'latents',
      'mask',
      'corrupt',
      'check_prompt',
    )
  )
  return Policy(
    config=c, init=init, spans=(), features={}, presets={}, texts=(), reference=reference, **nothing
  )


def classify(model):
  """(classifier's weights, image_Byxc) -> logits_BV."""
  return lambda params, x: model.apply({'params': params}, x)


def judges(parts):
  """The Judges of a run's parts."""
  perceptual = None
  if 'perceptual' in parts:
    features = lambda frozen, x: parts['perceptual'].apply(
      {'params': frozen['perceptual']}, x, method='features'
    )
    perceptual = lambda frozen, a, b: critics.perceptual(features(frozen, a), features(frozen, b))
  policy = parts['policy']
  return Judges(
    classify=classify(policy) if contracts.offers(policy.c, 'stages') else None,
    critic=classify(parts['critic']) if 'critic' in parts else None,
    perceptual=perceptual,
  )


def adapter_off(config, c):
  """True if the reference is the policy without its adapters, which takes no memory."""
  rank = contracts.offers(c, 'lora_rank')
  return bool(config.reference and rank and not config.init.get('reference'))


def check_reference(config, built, trained):
  """The pass without adapters is a reference only as long as the base stays what it was."""
  if not adapter_off(config, built.policy.config):
    return
  base = traverse_util.flatten_dict(lora.base_params(trained['policy']), sep='/')
  if moving := [name for name, t in base.items() if t]:
    only = "(('/lora_', 1.0), ('.*', None))"
    raise ValueError(
      f'optim.scale: trains {len(moving)} base weights (policy/{moving[0]} is one) of the policy '
      f'whose adapter-off pass is the reference, expected {only}, or a checkpoint in init.reference'
    )


def rewards(config, built, data=None, abstract=False):
  """The Rewards of `objective.collect`, started (host rewards have worker processes), or None.

  data: the run's stream, which knows the records of its labels. abstract: those on the device
  alone, whose weights are abstract."""
  collect = config.objective.collect
  if 'rewards' not in collect:
    return None
  if 'classifier' not in built.bound and any(
    r.name == 'rewards.classifier' for r in collect.rewards.values()
  ):
    raise ValueError('classifier: missing in a config that has the reward rewards.classifier')
  check_samples(collect.rewards, built.policy)
  classes = contracts.offers(built.policy.config, 'classes') or 0
  if not abstract:
    count = contracts.offers(data, 'record_count')
    prompts = contracts.offers(data, 'record_prompts') or ()
    mix.check_names(collect.rewards, classes=classes, records=count, prompts=prompts)
  found = mix.make(
    collect.rewards,
    bind=built.bound,
    abstract=abstract,
    records=contracts.offers(data, 'prompt_records'),
    decode_text=contracts.offers(data, 'decode_text'),
    **collect.pool,
  )
  load = found.shapes if abstract else found.load
  return Rewards(
    score=found.score,
    device=found.device or None,
    weights=load if found.judges else None,
    mask=mask(collect.mask) if 'mask' in collect else None,
    captions=captions(data),
    close=found.close,
  )


def check_samples(rewards, policy):
  """ValueError for one of our rewards that looks at what the rows of a policy do not have."""
  pictures = [s.name for s in policy.spans if s.picture]
  for nickname, section in rewards.items():
    if 'segment' in section:
      if section.segment not in policy.texts:
        raise ValueError(
          f'reward {nickname}: segment {section.segment!r}, expected one of the texts of a row '
          f'{list(policy.texts)}'
        )
    elif section.name.startswith('rewards.') and not pictures:
      raise ValueError(
        f'reward {nickname}: {section.name} looks at pictures, rows of the segments '
        f'{[s.name for s in policy.spans]} found'
      )


def check_answers(data, spans):
  """ValueError for answers of pairs that the text of a row has no room for."""
  text = next((span for span in spans if not span.picture), None)
  if text is None or 'max_answer' not in data:
    return
  room = text.stop - text.start
  if data.max_answer > room:
    raise ValueError(
      f'data.max_answer: {data.max_answer} tokens found, at most {room} expected (max_tokens of '
      f'rollout.{text.name})'
    )


def captions(data):
  """labels of rows -> what their prompts say."""
  records = contracts.offers(data, 'prompt_records')
  if records is None:
    return lambda labels: [f'class {label}' for label in labels]
  return lambda labels: [record.get('prompt', '') for record in records(labels)]


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
