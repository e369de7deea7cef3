"""What a name in a config must name: the contract of each kind of module, written down once; and
config keys of earlier versions.

A name in a config is a path: 'objectives.grpo' is vargrl/objectives/grpo.py. Any other dotted name
is a module of the user's, on sys.path, under the same contracts.
"""

import difflib
import fnmatch
import importlib
import importlib.util
import pathlib

# {kind of module: {name that it must have: what that is}}. What a module may have besides is said
# in the text behind it.
CONTRACTS = {
  # May have: torch_layouts(c) and HUB, to read and write published checkpoints; flops; parts(c), of
  # models whose parts have checkpoints of their own; bundled.
  'model': {
    'SIZES': '{name: Config}, numbers alone',
    'Config': 'a frozen dataclass',
    'Model': 'a linen module with a field c: Config',
    'init': '(model, key) -> boxed parameters',
  },
  # A model with a rollout. May have prompt_features(c) -> {feature of a batch: (shape, dtype)},
  # else its net's PROMPT is the prompt, or else the label.
  'policy': {
    'NET': 'name of the module of its net',
    'flops': '(c, types.RowShape) -> {part: FLOPs of a forward pass over one row}',
  },
  # May have Settings, a dataclass of keys of the rollout section with check(model's config, plan,
  # tokens of a prompt or None); PROMPT, PACKED,
  # features of a batch that a prompt and a packed row are made of; PACKED_KINDS, its segments.
  'net': {'Net': '(model, tokenizer, params, vq_params, settings), see models/nets/block.py'},
  # A segment of a row; written for one row of one prompt. May have soft(c, outputs, data),
  # straight-through codes; commit(net, c, context, data) -> context, for segments that are given;
  # corrupt(c, data, key) -> data, of targets, {'tokens': what the tokenizer encodes}: what is
  # random of them, such as noise; branches, to continue a part of it several times; PRESETS {name:
  # Config}; NEUTRAL and PACKED_SIZE, for packed rows.
  'kind': {
    'Config': 'a frozen dataclass: settings, no hidden default',
    'TEXT': 'whether it is text; else a picture',
    'ENDS': 'whether its mask may be 0: where rows end within it, or not all actions are scored',
    'CHUNK': 'times vmaps.CHUNK actions whose outputs exist at once',
    'FROM_MODEL': "fields of Config that the policy's config says",
    'SHARED': 'what policy and tokenizer must have alike',
    'PACKED_ONLY': 'fields of Config that no config file has',
    'length': '(c) -> how many actions, static',
    'parts': '(c) -> (names of its parts, the part of each action)',
    'choices': '(c) -> how many draws an action is made of',
    'mask': '(c, data) -> (mask_A, whether the row goes on), from the data alone',
    'sample': '(net, c, context, key, alive, followed) -> (data, logp_A, sampler_logp_A, context)',
    'inputs': '(net, c, data, position, followed) -> ([Block, ..], position after)',
    'features': '(c, hidden of the first block, data) -> what the head reads, leading with A',
    'outputs': '(net, c, features) -> logits and the like, leading with A',
    'score': '(c, outputs, actions, reference outputs or nothing) -> types.Scores',
    'actions': '(c, data) -> what of the data leads with A',
    'latents': '(c, data) -> what the tokenizer decodes, leading with pictures; None of a text',
  },
  # Model has: encode, decode, embed, zeros and step of pictures by scales; reconstruct. May have
  # encode_with_flips; the module sample_scale_dropout(c, rng, batch).
  'tokenizer': {'CONDITIONAL': 'whether decode(tokens, prompts, keys_B) needs prompt and noise'},
  # The leading parameters of its functions are named policy, tokenizer, scorer or judges, and get
  # the run's record of that name (types.py; scorer: Rewards). May have check and check_loss,
  # ValueError for settings that cannot work; ROWS_TOGETHER, rows of a prompt that stay together.
  'objective': {
    'collect': '(records, **objective.collect) -> types.Collect',
    'loss': '(records, params, frozen, batch, **objective.loss) -> (Average, {name: Average})',
    'features': '(policy) -> what a batch of data must have, besides its prompts',
    'passes': '(policy, objective.collect) -> {kind of step: {program: [types.Pass]}}, {} of '
    'what trains no policy',
  },
  'evaluator': {
    'make': '(built, **section) -> evaluate(params, frozen, poll); training.assemble.Built'
  },
  # With HOST = False: reward(frozen, samples, **options) -> r_B, jitted; or, with a network of its
  # own, judge(**options) -> rewards.judge.Judge and FILES, its options that name files. With HOST =
  # True: reward(samples, **options) -> a number or None per row, in worker processes; may have
  # check(**options), ValueError for values that cannot work; GROUPS = True: of whole groups. A
  # user's function, 'module.function', is a host reward.
  'reward': {'HOST': 'whether it runs on the host; else on the device'},
  # May have image_token_ids(section), of dialogues.
  'data': {
    'make': '(seed, rows, **section) -> a stream of batches',
    'PACKED': 'whether its rows hold several dialogues',
  },
}


def names():
  """All modules of vargrl that a config may name, dotted, without 'vargrl.'."""
  root = pathlib.Path(__file__).parent
  found = ['.'.join(p.relative_to(root).with_suffix('').parts) for p in sorted(root.rglob('*.py'))]
  return [name for name in found if '.' in name and not name.endswith('__init__')]


def module(name: str, *contracts: str):
  """'objectives.grpo' -> the module vargrl/objectives/grpo.py; another name -> the user's module of
  that name. Raises ValueError, which says what is missing or what was meant, unless it is there and
  offers what the contracts, keys of CONTRACTS, say."""
  known = names()
  if name in known:
    found = importlib.import_module(f'vargrl.{name}')
  elif name in RENAMED_MODULES:
    raise ValueError(f'name: {name!r} found, it is called {RENAMED_MODULES[name]!r} now')
  elif not (found := outside(name)):
    near = [k for k in known if k.split('.')[0] == name.split('.')[0]] or known
    close = difflib.get_close_matches(name, known, 1, 0.4) or near[:1]
    raise ValueError(
      f'name: there is no {name!r} (vargrl/{name.replace(".", "/")}.py, or a module of that name '
      f'on sys.path); did you mean {close[0]!r}?'
    )
  for contract in contracts:
    needs = CONTRACTS[contract].items()
    missing = [f'{need} ({what})' for need, what in needs if not hasattr(found, need)]
    if missing:
      raise ValueError(
        f'name: {name!r} found, which has no {", no ".join(missing)}, as expected of a module of '
        f'the kind {contract!r}'
      )
  return found


def outside(name: str):
  """The user's module of a dotted name, None if there is none; ValueError where its import
  fails."""
  parts = name.split('.')
  if parts[0] == 'vargrl' or not all(map(str.isidentifier, parts)):
    return None
  try:
    spec = importlib.util.find_spec(name)
    return importlib.import_module(name) if spec and spec.has_location else None
  except Exception as e:
    if isinstance(e, ModuleNotFoundError) and e.name and f'{name}.'.startswith(f'{e.name}.'):
      return None  # a package on the way that is not there
    raise ValueError(f'name: importing {name!r} failed: {type(e).__name__}: {e}') from e


def offers(thing, name: str):
  """What a module or model offers beyond its contract, None if it does not."""
  return getattr(thing, name, None)


# Modules of earlier versions: {what a config called them: their present name}.
RENAMED_MODULES = {
  'data.dialogue_pairs': 'data.dialogue.pairs',
  'data.dialogue_prompts': 'data.dialogue.prompts',
  'data.dialogues': 'data.dialogue.train',
  'models.blip': 'models.judges.blip',
  'models.classifier': 'models.judges.classifier',
  'models.clip': 'models.judges.clip',
  'models.critics': 'models.judges.critics',
  'models.inception': 'models.judges.inception',
  'objectives.dpo_unified': 'objectives.dpo',
  'objectives.sft_bits': 'objectives.sft',
  'objectives.sft_unified': 'objectives.sft',
}

# Config keys of earlier versions: the pattern of their path (a part `*` is any name) and what they
# are called now. Of several new names, the one that the section expects; what is no bare name lies
# in a section below.
RENAMED = {
  'data.look': 'vision',
  'data.look.least': 'min_pixels',
  'data.look.most': 'max_pixels',
  'data.vision.least': 'min_pixels',
  'data.vision.most': 'max_pixels',
  'data.wanted': 'loss_on',
  'data.drawn': 'image_tokens',
  'data.pictures': 'max_images',
  'data.patches': 'max_patches',
  'data.memory': 'max_context',
  'data.records': ('examples_per_row', 'max_records'),
  'data.sources.*.records': 'max_records',
  'data.draw': 'prefill_image',
  'data.answer': 'max_answer',
  'evals.*.look': 'vision',
  'evals.*.patches': 'max_patches',
  'evals.*.records': 'max_records',
  'replicated_at_most': 'max_replicated_share',
  'tokenizer.drop': 'scale_dropout',
  'tokenizer.phis': 'n_shared_convs',
  'tokenizer.spread': 'codebook_std',
  'evals.*.every': 'every_steps',
  'evals.*.each': ('per_class', 'per_prompt'),
  'evals.*.samples_each': 'per_class',
  'evals.*.words': 'max_text_tokens',
  'policy.chunks': 'export_chunks',
  'policy.drop': 'scale_dropout',
  'policy.padded': 'image_pad_to',
  'policy.phis': 'n_shared_convs',
  'policy.special': 'image_tokens',
  'policy.spread': 'codebook_std',
  'rollout.name': 'plan',
  'rollout.guidance': 'image.guidance (of models.var 1 more)',
  'rollout.record': 'image.logp_of',
  'rollout.temperature': 'image.temperature or text.temperature',
  'rollout.top_k': 'image.top_k or text.top_k',
  'rollout.top_p': 'image.top_p or text.top_p',
  'rollout.bit_temperature': 'image.temperature',
  'rollout.bit_top_p': 'image.top_p',
  'rollout.words': 'text.max_tokens',
  'rollout.stop': 'text.stop',
  'rollout.nothing': 'uncond_prompt',
  'rollout.released': 'reference_impl',
  'objective.collect.old': 'old_logp',
  'objective.collect.combine': 'reward_mix',
  'objective.collect.label_drop': 'prompt_drop',
  'objective.collect.shared': 'same_flips',
  'objective.loss.kl': 'penalty',
  'objective.loss.alpha': 'scale_weight_power',
  'objective.loss.first': 'first_scale',
  'objective.loss.last': 'last_scale',
  'objective.loss.bits': "segments (('image', {'weight': ..}),)",
}


def renamed(section: str, key: str, expected=()) -> str | None:
  """The present name of a config key of an earlier version; None if it never had another name.

  section: the dotted path of the section that the key was found in, such as 'data' or
  'evals.generation'. expected: the keys that the section may have; where a key has become one of
  several, the one among these is returned.
  """
  for old, names in RENAMED.items():
    if fnmatch.fnmatchcase(f'.{section}.{key}', f'*.{old}'):
      names = (names,) if isinstance(names, str) else names
      bare = [name for name in names if name.isidentifier() and expected]
      known = [name for name in names if name in expected or name not in bare]
      if known:
        return known[0]
  return None


def check_keys(section: str, found, expected):
  """Raises ValueError, which names the section, unless the keys found in it are those expected."""
  if error := key_error(section, found, expected):
    raise ValueError(f'{section}: {error}')


def key_error(section: str, found, expected) -> str:
  """What is wrong with the keys found in a config section, as the end of a sentence; '' if nothing.

  A key of an earlier version is named together with its present name.
  """
  found, expected = set(found), set(expected)
  names = {key: renamed(section, key, expected) for key in sorted(found - expected)}
  if any(names.values()):
    return '; '.join(f'key {k!r} found, it is called {v!r} now' for k, v in names.items() if v)
  return '' if found == expected else f'keys {sorted(found)} found, {sorted(expected)} expected'
