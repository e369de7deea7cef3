"""What a run is made of: its config looked up, put together and checked. Nothing compiles here.

Whatever a person can get wrong is told in one sentence, before the first weight is drawn.
"""

from functools import partial
import inspect

import jax

from vargrl import contracts
from vargrl.checkpoint import digest
from vargrl.data.dialogue import tokenizer as tokenizers
from vargrl.eval import run as evaluators
from vargrl.io import numbers as io_numbers
from vargrl.parallel import mesh as meshes
from vargrl.parallel import multihost, place, rows, rules
from vargrl.rewards import mix
from vargrl.training import assemble as building
from vargrl.training import flops, optim, timing, update, weights
from vargrl.types import State, sides

# What every run says of itself, besides sections of networks that some have.
KEYS = ('seed', 'steps', 'save_every', 'show_every', 'keep', 'profile', 'mesh')
KEYS += ('max_replicated_share', 'reference', 'init', 'evals', 'minibatches', 'accum', 'epochs')
KEYS += ('policy', 'objective', 'data', 'optim')


class Run:
  """Shared by training, evaluation, sampling and bench.

  root: the workdir of the chain. upstream: {run: abstract params} of the runs that will have left
  their checkpoints below it before this one starts. inference_only: without what only training
  needs, the data, the evaluators and the rewards. devices: those of this process if None."""

  def __init__(self, config, root, *, upstream=(), inference_only=False, devices=None):
    check_sections(config)
    self.config, self.root, self.mesh = config, root, meshes.make(config.mesh, devices)
    self.objective = contracts.module(config.objective.name, 'objective')
    self.data_module = contracts.module(config.data.name, 'data')
    self.updates_per_step = config.minibatches * config.epochs
    self.check_config()
    self.built = building.build(config)
    self.policy, self.tokenizer = self.built.policy, self.built.tokenizer
    self.rewards = None
    self.check_objective()
    if contracts.offers(self.policy.config, 'attention') == 'splash':
      from vargrl.models.layers import splash  # late: its kernels take long to import

      splash.interpreted(self.mesh.devices.flat[0].platform)
    self.shapes = self.shape()
    weights.check_sources(config, self.built, self.mesh, root, dict(upstream))
    self.evals, self.data = [], None
    if inference_only:
      return
    building.check_reference(config, self.built, self.optimizer.trained)
    options = {k: v for k, v in config.data.items() if k != 'name'}
    self.data = self.data_module.make(
      seed=config.seed, rows=multihost.local_rows(self.mesh, self.n_prompts), **options
    )
    self.check_data()
    flops.check(self)
    self.evals = evaluators.make(config.evals, self.built)  # last: these two may start processes
    try:
      self.rewards = building.rewards(config, self.built, self.data)
    except BaseException:
      evaluators.close(self.evals)
      raise

  def close(self):
    if self.data:
      self.data.close()
    evaluators.close(self.evals)
    if self.rewards:
      self.rewards.close()

  def check_config(self):
    config, collect = self.config, self.config.objective.collect
    signature(self.objective.collect, collect, 'objective.collect')
    signature(self.objective.loss, config.objective.loss, 'objective.loss')
    signature(self.data_module.make, config.data, 'data', given=('seed', 'rows'))
    for name in ('steps', 'minibatches', 'accum', 'epochs'):
      io_numbers.check_number(name, config[name], least=1, whole=True)
    for name in ('save_every', 'show_every', 'keep'):
      io_numbers.check_number(name, config[name], least=1)
    io_numbers.check_number('max_replicated_share', config.max_replicated_share)
    timing.check(config.profile)
    pair = contracts.offers(self.objective, 'ROWS_TOGETHER') or 0  # rows that must stay together
    P = self.n_prompts = config.data.prompts if 'prompts' in config.data else config.data.batch
    drawn = collect.rollouts if 'rollouts' in collect else 1
    R = pair or drawn
    rows.mesh_axes(self.mesh, P, drawn)
    for n in sorted({1, config.minibatches, config.minibatches * config.accum}):
      update.check_split(P, R, n, whole=bool(pair))
      rows.mesh_axes(self.mesh, max(P // n, 1), R if P % n == 0 else R * P // n)

  def check_objective(self):
    objective, config = self.objective, self.config
    records, policy = self.built.records(), self.built.learner
    if needs(objective.loss, 'policy') and policy.score is None:
      raise ValueError(
        f'objective: {config.objective.name} needs a policy with a section rollout, '
        f'{config.policy.name} found without one'
      )
    if needs(objective.collect, 'scorer') and policy.generate is None:
      raise ValueError(
        f'objective: {config.objective.name} samples rows, {config.data.name} found, which packs '
        'given ones'
      )
    if contracts.offers(objective, 'check'):
      bound = bind_records(objective.check, records)
      bound(
        **config.objective.collect,
        updates=self.updates_per_step,
        reference=config.reference,
      )
    if contracts.offers(objective, 'check_loss'):
      bound = bind_records(objective.check_loss, records)
      bound(**config.objective.loss, reference=config.reference)

  def shape(self):
    """The abstract State, what belongs to a weight on the shardings of that weight."""
    config, trained, mesh = self.config, self.built.trained, self.mesh
    params = {name: place.abstract_params(init, mesh) for name, init in trained.items()}
    rules.check_replicated(
      params, jax.tree.map(lambda x: x.sharding, params), max_share=config.max_replicated_share
    )
    updates = max(config.steps, 1) * self.updates_per_step
    self.optimizer = optim.make(config.optim, params, updates)
    where = {
      jax.tree_util.keystr(k): x.sharding for k, x in jax.tree_util.tree_leaves_with_path(params)
    }
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def one(path, x):
      name = jax.tree_util.keystr(path)
      near = [s for k, s in where.items() if name.endswith(k)]
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=near[0] if near else whole)

    trained_params, _ = optim.partition(params, self.optimizer.trained)
    opt = jax.eval_shape(self.optimizer.tx.init, trained_params)
    ema = jax.eval_shape(lambda params: optim.ema_start(params, self.optimizer.trained), params)
    opt, self.ema_shapes = jax.tree_util.tree_map_with_path(one, (opt, ema))
    return State(params, opt, self.ema_shapes if config.optim.ema else None)

  def stored_shapes(self, names):
    """The abstract State of a checkpoint with leaves of these names: with a moving average if that
    has one, whatever the config says now."""
    has_ema = any(name.startswith('ema/') for name in names)
    return self.shapes.replace(ema=self.ema_shapes if has_ema else None)

  def check_data(self):
    """The data's features, labels and image size must fit objective and models."""
    data, config, name = self.data, self.config, self.config.objective.name
    missing = [f for f in self.features() if f not in data.features]
    if missing:
      raise ValueError(
        f'data: features {sorted(data.features)} in the data set, {name} needs {missing[0]!r}'
      )
    if (self.policy.features.get('text') or None) and 'tokens' in config.data:
      (tokens, width), _ = self.policy.features['text']
      found = config.data.tokens, config.data.width
      if found[0] > tokens or found[1] != width:
        raise ValueError(
          f'data: {found[0]} text features of {found[1]}, at most {tokens} of {width} expected by '
          'the '
          'policy'
        )
    expected = contracts.offers(self.policy.config, 'classes')
    if expected and data.classes and data.classes > expected:
      raise ValueError(f'data: {data.classes} classes in the data set, {expected} in the model')
    if expected and 'label' in self.features():
      data.label_limit = expected
    if contracts.offers(self.data_module, 'image_token_ids'):
      self.check_dialogues()
    size = config.data.size if 'size' in config.data else None
    part = (
      building.module(config.tokenizer, 'tokenizer')[1].c
      if 'tokenizer' in config
      else self.policy.config
    )
    if size and sides(getattr(part, 'image_size', size)) != sides(size):
      raise ValueError(f'data.size: {size} pixels, {part.image_size} expected by the model')

  def check_dialogues(self):
    """Tokens, patches and places of dialogues must be the policy's."""
    data, c = self.config.data, self.policy.config
    if not self.built.learner.texts and not self.policy.features:
      raise ValueError(f'data: dialogues found, {self.config.policy.name} reads none')
    check_token_ids(data, c)
    if self.policy.generate and 'rollouts' in self.config.objective.collect:
      self.policy.check_prompt(data.length)
    vision = contracts.offers(c, 'image')
    for name in ('patch', 'merge', 'frames') if vision and data.vision else ():
      if data.vision[name] != getattr(vision, name):
        raise ValueError(
          f'data.vision.{name}: {data.vision[name]} found, {getattr(vision, name)} expected by the '
          'policy'
        )
    self.check_pictures(bool(vision))
    building.check_answers(data, self.built.learner.spans)
    places = contracts.offers(c, 'image_places')
    if places and 'image_tokens' in data and data.image_tokens != places:
      raise ValueError(
        f'data.image_tokens: {data.image_tokens} found, {places} expected, the places of a picture '
        'in the policy'
      )

  def check_pictures(self, reads):
    """Dialogues have no pictures that the policy does not read or draw. reads: whether it reads
    any."""
    data, name = self.config.data, self.config.policy.name
    draws = any(span.picture for span in self.built.learner.spans)
    if not reads and data.max_patches:
      raise ValueError(
        f'data.max_patches: {data.max_patches} found, 0 expected as {name} reads none'
      )
    if not draws and 'max_images' in data and data.max_images:
      raise ValueError(f'data.max_images: {data.max_images} found, 0 expected as {name} draws none')
    if not draws and 'max_answer' in data and data.size:
      raise ValueError(
        f'data.size: {tuple(data.size)} found, () expected as rollout.plan has no picture'
      )

  def features(self):
    """What a batch of data must have."""
    learner = self.built.learner
    return (*self.objective.features(learner), *learner.features)

  def frozen(self, say=print, only=None):
    """{name: weights} that are used and never trained, `rewards` of the networks that judge; `only`
    some of them."""
    found = {
      name: weights.load_or_init(self.config, name, init, self.mesh, self.root, say)[0]
      for name, init in self.built.frozen.items()
      if not only or name in only
    }
    if self.rewards and self.rewards.weights and (not only or 'rewards' in only):
      found['rewards'] = self.rewards.weights(self.mesh)
    return found

  def fingerprints(self, frozen):
    """{name: what tells these weights from others}; those drawn from a seed may differ in the last
    bit between compilers, and are told by the seed."""
    drawn = lambda name: (
      not weights.checkpoint_path(
        self.config, weights.checkpoint_name(self.config, name), self.root
      )
    )

    def one(name, tree):
      if name == 'rewards':
        return mix.fingerprint(tree)
      return (
        f'random, seed {self.config.seed}, key by crc32' if drawn(name) else digest.digest(tree)
      )

    return {name: one(name, tree) for name, tree in frozen.items()}

  def initial(self, say=print):
    """(State, meta of the checkpoint that the policy comes from, if any)."""
    found = {
      name: weights.load_or_init(self.config, name, init, self.mesh, self.root, say)
      for name, init in self.built.trained.items()
    }
    params = {name: tree for name, (tree, _) in found.items()}
    shardings = jax.tree.map(lambda x: x.sharding, self.shapes.opt)
    trained_params, _ = optim.partition(params, self.optimizer.trained)
    opt = jax.jit(self.optimizer.tx.init, out_shardings=shardings)(trained_params)
    ema = self.initial_ema(params) if self.config.optim.ema else None
    return State(params, opt, ema), found['policy'][1]

  def initial_ema(self, params):
    """The moving average that starts from these parameters, of which it is a copy."""
    shardings = jax.tree.map(lambda x: x.sharding, self.ema_shapes)
    start = partial(optim.ema_start, trained=self.optimizer.trained)
    return jax.jit(start, out_shardings=shardings)(params)

  def collect_and_update(self):
    """(collect, update), update jitted with the state donated."""
    records = self.built.records(self.rewards)
    loss = bind_records(self.objective.loss, records)
    loss = partial(loss, **self.config.objective.loss)
    collect = bind_records(self.objective.collect, records)(**self.config.objective.collect)
    step = update.make_update(loss, self.optimizer, self.config.accum)
    # Said aloud: with shardings of the compiler's choice, the second call would compile again.
    shardings = jax.tree.map(lambda x: x.sharding, self.shapes)
    return collect, jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def check_sections(config):
  """ValueError unless a run's config has what every run must say."""
  missing = [key for key in KEYS if key not in config]
  for key in sorted(config):
    if key not in KEYS and (now := contracts.renamed('', key, missing)):
      raise ValueError(f'config: key {key!r} found, it is called {now!r} now')
  if missing:
    raise ValueError(f'config: keys {sorted(config)} found, {missing} expected too')
  io_numbers.check_no_nan('', config)
  contracts.check_keys('objective', config.objective, ('name', 'collect', 'loss'))
  contracts.check_keys('optim', config.optim, optim.KEYS)


def signature(function, section, what, given=()):
  """A section of the config is the keyword arguments of one function."""
  parameters = inspect.signature(function).parameters.values()
  expected = {p.name for p in parameters if p.kind == p.KEYWORD_ONLY} - set(given)
  contracts.check_keys(what, set(section) - {'name'}, expected)


def needs(function, record):
  """Whether a function of an objective takes this record of the run."""
  return record in inspect.signature(function).parameters


def bind_records(function, records):
  """The function with those of a run's records that its first parameters name."""
  found = []
  for p in inspect.signature(function).parameters.values():
    if p.kind == p.KEYWORD_ONLY or p.name not in records:
      break
    found.append(records[p.name])
  return partial(function, *found)


def check_token_ids(data, c):
  """ValueError where the tokenizer of a config's data section is of another model than that of
  Config `c`."""
  special, vocab = tokenizers.image_token_ids(data)
  ours = contracts.offers(c, 'image_tokens')
  if ours is not None and special and special != tuple(ours):
    raise ValueError(
      f'policy.image_tokens: {tuple(ours)} found, {special} expected, the tokens of '
      f'{data.tokenizer} '
      'for pictures that are drawn'
    )
  expected = c.vocab if ours is None else c.text.vocab
  if vocab > expected:
    raise ValueError(
      f'data.tokenizer: {vocab} tokens in {data.tokenizer}, at most {expected} expected by the '
      'policy'
    )
