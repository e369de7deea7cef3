"""The rollout section of a config -> a plan of segments, and the functions of a policy that follows
it."""

import dataclasses
import difflib
from functools import partial

import jax
import jax.numpy as jnp

from vargrl import contracts
from vargrl.parallel import rows
from vargrl.parallel.rules import shard
from vargrl.rollout import generate as generating
from vargrl.rollout import plan as plans
from vargrl.rollout import score as scoring
from vargrl.rollout import vmaps
from vargrl.types import Policy, Tokenizer

COMMON = ('plan', 'weights')  # keys of `rollout` that are neither a segment nor of the net


def has_kind(section):
  """Whether a part of the rollout section is a segment's settings."""
  return 'kind' in (contracts.offers(section, 'keys') or tuple)()


def base_name(name, sections):
  """'text_1' -> 'text', unless it has a section of its own."""
  return name if name in sections else name.rpartition('_')[0] if '_' in name else name


def segments(rollout, names, model_config, **changes):
  """The plan of `names`: each the name of a section of `rollout`, or such a name with a number
  (text_1), which has the same settings; 'question:given' is the prompt's, not sampled. changes:
  {segment or section: {setting: value}} in the place of the config's. ValueError for settings that
  do not fit."""
  out = []
  for full in names:
    name, _, given = full.partition(':')
    section = base_name(name, rollout)
    if given not in ('', 'given') or section not in rollout or not has_kind(rollout[section]):
      known = sorted(k for k in rollout if has_kind(rollout[k]))
      near = difflib.get_close_matches(section, known, 1, 0.4)
      hint = f'did you mean {near[0]!r}?' if near else f'expected one of {known}'
      raise ValueError(f'rollout.plan: {full!r} has no section with a kind, {hint}')
    changed = changes.get(name, changes.get(section, {}))
    out.append(segment(rollout[section], name, model_config, bool(given), changed))
  if len({s.name for s in out}) != len(out) or not out:
    raise ValueError(f'rollout.plan: {tuple(names)}, expected different names, at least one')
  for found in out[:-1]:
    if found.given and not contracts.offers(found.kind, 'commit'):
      raise ValueError(
        f"rollout.plan: '{found.name}:given' of a kind that is only sampled, expected one of text"
      )
  return tuple(out)


def kind_module(name):
  """The module of a kind: 'text' is vargrl/rollout/kinds/text.py, a dotted name a module of the
  user's."""
  return contracts.module(name if '.' in name else f'rollout.kinds.{name}', 'kind')


def segment(section, name, model_config, given, changes):
  """One Segment from its section."""
  kind = kind_module(section.kind)
  fields = {f.name for f in dataclasses.fields(kind.Config)} - set(kind.FROM_MODEL)
  fields -= set(kind.PACKED_ONLY)
  contracts.check_keys(f'rollout.{name}', set(section) - {'kind'}, fields)
  tuples = lambda v: tuple(v) if isinstance(v, list) else v
  knobs = {k: tuples(v) for k, v in section.items() if k != 'kind'} | changes
  try:
    c = kind.Config(**knobs, **from_model(kind, model_config, section.kind))
  except ValueError as e:
    raise ValueError(f'rollout.{name}{sentence_end(str(e))}') from e
  return plans.Segment(name, kind, c, given)


def sentence_end(error: str) -> str:
  """What follows the name of a segment: 'rollout.KEY: ..' is of a key, else of the whole."""
  key = error.removeprefix('rollout.')
  return f'.{key}' if key != error else f': {error.removeprefix("rollout: ")}'


def from_model(kind, model_config, name):
  """{field: value} of a kind's Config that the policy's config says."""
  missing = [field for field in kind.FROM_MODEL if not hasattr(model_config, field)]
  if missing:
    raise ValueError(f'rollout: kind {name!r} needs {missing[0]!r} of the policy, which has none')
  return {field: getattr(model_config, field) for field in kind.FROM_MODEL}


def packed_plan(net_module, model_config, data):
  """The plan of packed rows: all text of a row, then all of its pictures, at temperature 1."""
  out = []
  for name in net_module.PACKED_KINDS:
    kind = kind_module(name)
    field, key = kind.PACKED_SIZE
    if not data[key]:
      continue
    options = kind.NEUTRAL | from_model(kind, model_config, name) | {field: data[key]}
    label = 'text' if kind.TEXT else 'image'
    out.append(plans.Segment(label, kind, kind.Config(**options)))
  return tuple(out)


def check_tokenizer(plan, policy, tokenizer, names):
  """ValueError where policy and tokenizer differ in what a kind needs them to share. names: their
  module names and sizes, for the sentence."""
  for name, kind, _, _ in plan:
    if kind.SHARED and tokenizer is None:
      raise ValueError('tokenizer: missing in a config whose rollout draws pictures')
    for key in kind.SHARED:
      for what, part in (('policy', policy), ('tokenizer', tokenizer)):
        if not hasattr(part.c, key):
          raise ValueError(f'rollout.{name}: needs {what}.{key}, {names[what][0]} has none')
      ours, theirs = getattr(policy.c, key), getattr(tokenizer.c, key)
      if ours != theirs:
        raise ValueError(
          f'policy.{key}: {ours} in policy {names["policy"][1]!r}, {theirs} in tokenizer '
          f'{names["tokenizer"][1]!r}'
        )


@dataclasses.dataclass(frozen=True)
class Maker:
  """What all plans of a run's policy have in common. python, net: modules of the model and of its
  net. model, tokenizer: linen modules. rollout: the config's section. settings: of the net."""

  python: object
  net: object
  model: object
  tokenizer: object
  rollout: object
  settings: object
  init: object
  reference: object

  def bind(self, params, frozen):
    """The net of these weights."""
    vq_params = frozen['tokenizer'] if self.tokenizer is not None else None
    return self.net.Net(self.model, self.tokenizer, params, vq_params, self.settings)

  def generator(self, plan, weights):
    """(policy, frozen, prompt_P, key_P, keys_PR) -> Rollout."""

    def generate(params, frozen, prompt_P, key_P, keys_PR):
      net = self.bind(*self.placed(params, frozen, weights))
      if self.settings:
        tokens = prompt_P['tokens'].shape[-1]
        self.settings.check(self.model.c, plan, tokens)
      return generating.generate(net, plan, prompt_P, key_P, keys_PR)

    return generate

  def placed(self, params, frozen, weights):
    """Weights as rollouts want them."""
    params = vmaps.place_for_decoding(weights, self.model, params, self.net.Net.CAST)
    if self.tokenizer is None:
      return params, frozen
    vq_params = vmaps.place_for_decoding(weights, self.tokenizer, frozen['tokenizer'])
    return params, frozen | {'tokenizer': vq_params}

  def brancher(self, plan, weights):
    """(policy, frozen, prompt_P, keys_PG, split, copies) -> Rollout [P, G, K, ..], or None."""
    if len(plan) > 1 or not contracts.offers(plan[0].kind, 'branches'):
      return None

    def branch(params, frozen, prompt_P, keys_PG, split, copies):
      net = self.bind(*self.placed(params, frozen, weights))
      return generating.branch(net, plan, prompt_P, keys_PG, split, copies)

    return branch

  def scorer(self, plan):
    """(policy, frozen, prompt_P, data_PR, reference=None) -> Scores."""

    def score(params, frozen, prompt_P, data_PR, reference=None):
      nets = [self.bind(self.net.Net.gather_head(self.model, params), frozen)]
      if reference is not None:
        weights = self.net.Net.gather_head(self.model, reference)
        nets.append(self.bind(jax.lax.stop_gradient(weights), frozen))
      return scoring.score(nets, plan, prompt_P, data_PR)[0]

    return score

  def policy(self, plan, packed=False):
    """The Policy that follows a plan. packed: of rows that hold several dialogues, which are not
    sampled."""
    weights, c = self.rollout.weights, self.model.c
    features = dict.fromkeys(self.net.PACKED) if packed else self.features()
    features = features | dict.fromkeys(s.name for s in plan if s.given)
    prompt = lambda batch: {name: batch[name] for name in features} if features else batch['label']
    return Policy(
      config=c,
      init=self.init,
      spans=plans.spans(plan),
      mask=partial(masks, plan) if plans.rows_end(plan) else None,
      corrupt=corruption(plan),
      features=features,
      prompt=prompt,
      unconditional=contracts.offers(self.model, 'unconditional'),
      keys=lambda rng, P, R: (vmaps.group_keys(rng, P), vmaps.row_keys(rng, P, R)),
      generate=None if packed else self.generator(plan, weights),
      branch=None if packed else self.brancher(plan, weights),
      with_plan=self.with_plan,
      check_prompt=partial(self.check_prompt, plan),
      presets={} if packed else self.presets(plan, weights),
      score=self.scorer(plan),
      latents=partial(latents, plan),
      texts=tuple(name for name, kind, _, _ in plan if kind.TEXT),
      reference=self.reference,
    )

  def check_prompt(self, plan, length):
    """ValueError where prompts of `length` tokens do not fit the plan."""
    if self.settings:
      self.settings.check(self.model.c, plan, length)

  def features(self):
    """{feature of a batch: (shape of a row, dtype), or None where only the data knows it}."""
    if found := contracts.offers(self.python, 'prompt_features'):
      return found(self.model.c)
    return dict.fromkeys(contracts.offers(self.net, 'PROMPT') or ())

  def with_plan(self, names, **changes):
    """Another Policy of the same model: of a plan of these names, with {section: {setting: value}}
    changed."""
    plan = segments(self.rollout, names, self.model.c, **changes)
    if self.settings:
      self.settings.check(self.model.c, plan, None)
    return self.policy(plan)

  def presets(self, plan, weights):
    """{name: a generate of published settings}, of plans of one picture."""
    if len(plan) > 1:
      return {}
    (name, kind, c, given) = plan[0]
    own = {field: getattr(c, field) for field in kind.FROM_MODEL}
    return {
      preset: self.generator(
        (plans.Segment(name, kind, dataclasses.replace(found, **own), given),), weights
      )
      for preset, found in (contracts.offers(kind, 'PRESETS') or {}).items()
    }


def masks(plan, data_PR):
  """float32 mask_PRA of the actions that rows took, from their data."""
  one = partial(plans.row_mask, plan)
  return jax.vmap(jax.vmap(one))(data_PR)


def corruption(plan):
  """(data_PR, key_P) -> data_PR of supervised rows with what is random of their targets, such as
  noise or a re-mask, which all rows of a prompt share; None where no kind has any."""
  found = [(i, s) for i, s in enumerate(plan) if contracts.offers(s.kind, 'corrupt')]

  def corrupt(data_PR, key_P):
    out = dict(data_PR)
    for i, (name, kind, c, _) in found:
      keys = jax.vmap(jax.random.fold_in, (0, None))(key_P, i)
      of_row = partial(kind.corrupt, c)
      out[name] = jax.vmap(jax.vmap(of_row, (0, None)))(data_PR[name], keys)
    return out

  return corrupt if found else None


def latents(plan, data, n_leading):
  """What the tokenizer decodes, of the pictures that all rows draw, on one axis B, those of a row
  adjacent; None for rows without any. n_leading: how many axes of the data are rows."""
  found = []
  for name, kind, c, given in plan:
    if kind.TEXT or given:
      continue
    latents = partial(kind.latents, c)
    for _ in range(n_leading):
      latents = jax.vmap(latents)
    found.append(latents(data[name]))
  if not found:
    return None
  join = lambda *x: jnp.concatenate(x, n_leading).reshape(-1, *x[0].shape[n_leading + 1 :])
  return jax.tree.map(join, *found)


def make(config, python, model, tokenizer, *, init, reference):
  """(the Policy of a run's rollouts, that of its packed training rows or None, the plan)."""
  net = contracts.module(python.NET, 'net')
  rollout = config.rollout
  sections = {k for k in rollout if has_kind(rollout[k])}
  own = (
    {f.name for f in dataclasses.fields(net.Settings)}
    if contracts.offers(net, 'Settings')
    else set()
  )
  contracts.check_keys('rollout', set(rollout) - sections, {*COMMON, *own})
  vmaps.check_weights(rollout.weights)
  tuples = lambda v: tuple(v) if isinstance(v, list) else v
  settings = net.Settings(**{k: tuples(rollout[k]) for k in own}) if own else None
  maker = Maker(python, net, model, tokenizer, rollout, settings, init, reference)
  plan = segments(rollout, rollout.plan, model.c)
  names = {
    what: (config[what].name, config[what].size)
    for what in ('policy', 'tokenizer')
    if what in config
  }
  check_tokenizer(plan, model, tokenizer, names)
  if settings:
    settings.check(model.c, plan, None)
  policy, packed = maker.policy(plan), None
  if contracts.module(config.data.name, 'data').PACKED:
    if not contracts.offers(net, 'PACKED_KINDS'):
      raise ValueError(f'data: dialogues found, {config.policy.name} reads none')
    packed = maker.policy(packed_plan(net, model.c, config.data), packed=True)
  return policy, packed, plan


def tokenizer_functions(python, model):
  """The Tokenizer record of a tokenizer module."""
  call = lambda frozen, *args, method: model.apply(
    {'params': frozen['tokenizer']}, *args, method=method
  )
  flips = contracts.offers(model, 'encode_with_flips')

  def decode(frozen, tokens, prompts, keys_B):
    # P x R rows of which R is spread are, as B rows, in no order that the compiler knows: it would
    # decode all everywhere.
    more = (prompts, keys_B) if python.CONDITIONAL else ()
    image = call(frozen, rows.shard_rows(tokens), *more, method='decode')
    return shard(image, 'Byxc')

  def reconstruct(params, image, scale_dropout):
    more = () if scale_dropout is None else (scale_dropout,)
    return model.apply({'params': params}, image, *more, method='reconstruct')

  dropout = contracts.offers(python, 'sample_scale_dropout')
  return Tokenizer(
    encode=partial(call, method='encode'),
    encode_with_flips=partial(call, method='encode_with_flips') if flips else None,
    decode=decode,
    reconstruct=reconstruct,
    scale_dropout=partial(dropout, model.c) if dropout else lambda rng, batch: None,
  )
