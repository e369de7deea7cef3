"""Pretraining, SFT, DPO, GRPO, tokenizers, classifiers: one loop. An objective is `collect` + `loss`."""
from functools import partial
import inspect
import json
import math
import pathlib
import time

from clu.metrics import Average
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from vargrl import build as building
from vargrl import optim, pictures
from vargrl.checkpoint import store as stores
from vargrl.eval import run as evaluators
from vargrl.metrics import Writer
from vargrl.parallel import mesh as meshes
from vargrl.parallel import multihost, rules
from vargrl.types import Experience, State, lookup

ONE_ROW = ('label', 'image')  # fields of Experience that lead with P alone


def split(batch, n):
  """An Experience of P x R rows -> the same with a leading axis of n parts of equal size.

  Parts are strided over the prompts, so that each stays on the devices that its rows are on. Where
  there are fewer prompts than parts, the groups are cut too: no loss looks across rows.
  """
  lead = batch.tokens if batch.tokens is not None else batch.image[:, None]
  P, R = lead.shape[:2]
  if P % n == 0:
    return jax.tree.map(lambda x: x.reshape(P // n, n, *x.shape[1:]).swapaxes(0, 1), batch)
  cut = n // P
  rows = lambda x: x.reshape(P * cut, 1, R // cut, *x.shape[2:])
  once = lambda x: jnp.repeat(x, cut, 0)[:, None]
  return Experience(**{k: None if v is None else (once if k in ONE_ROW else rows)(v)
                       for k, v in vars(batch).items()})


def check_split(P, R, n):
  if P % n and (n % P or R % (n // P)):
    raise ValueError(f'minibatches x accum: {n} parts of {P} prompts x {R} rows, expected a divisor')


def make_update(loss, tx, accum):
  """(state, frozen, batch) -> (state, metrics). Exact under accumulation: totals are summed first, the one
  division comes last. A non-finite gradient, or a batch without any verdict, leaves the state."""
  def total(params, frozen, batch):
    value, metrics = loss(params, frozen, batch)
    return value.total, (value, metrics)

  def update(state, frozen, batch):
    one = lambda part: jax.grad(total, has_aux=True)(state.params, frozen, part)
    if accum == 1:
      grads, (value, metrics) = one(batch)
    else:
      parts = split(batch, accum)
      first, rest = jax.tree.map(lambda x: x[0], parts), jax.tree.map(lambda x: x[1:], parts)
      carry, _ = jax.lax.scan(lambda c, part: (add(c, one(part)), None), one(first), rest)
      grads, (value, metrics) = carry
    grads = jax.tree.map(lambda g: g / jnp.maximum(value.count, 1e-6), grads)
    norm = optax.tree.norm(grads)
    good = jnp.isfinite(norm) & jnp.isfinite(value.total) & (value.count > 0)
    updates, opt = tx.update(grads, state.opt, state.params)
    new = State(optax.apply_updates(state.params, updates), opt)
    state = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
    ones = jnp.ones(())
    return state, metrics | {'grad_norm': Average(total=norm, count=ones),
                             'skipped': Average(total=1. - good, count=ones)}
  return update


def add(a, b):
  return jax.tree.map(lambda x, y: x.merge(y) if isinstance(x, Average) else x + y, a, b,
                      is_leaf=lambda x: isinstance(x, Average))


def state_shapes(trained, tx, mesh):
  """The abstract State, optimizer moments on the shardings of their weights."""
  params = {name: building.abstract(init, mesh) for name, init in trained.items()}
  where = {jax.tree_util.keystr(k): x.sharding for k, x in jax.tree_util.tree_leaves_with_path(params)}
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def one(path, x):
    name = jax.tree_util.keystr(path)
    near = [s for k, s in where.items() if name.endswith(k)]
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=near[0] if near else whole)
  return State(params, jax.tree_util.tree_map_with_path(one, jax.eval_shape(tx.init, params)))


class Run:
  """What a run is made of, checked and not yet compiled: shared by training, evaluation and bench."""

  def __init__(self, config, root):
    self.config, self.root, self.mesh = config, root, meshes.make(config.mesh)
    self.objective, self.data_module = lookup(config.objective.name), lookup(config.data.name)
    self.updates_per_step = config.minibatches * config.epochs
    self.check()
    self.built = building.build(config)
    self.models = self.built.models
    building.check_sources(config, self.built, self.mesh, root)
    params = {name: building.abstract(init, self.mesh) for name, init in self.built.trained.items()}
    rules.check(params, jax.tree.map(lambda x: x.sharding, params), at_most=config.replicated_at_most)
    self.tx, self.rate = optim.make(config.optim, params, max(config.steps, 1) * self.updates_per_step)
    self.shapes = state_shapes(self.built.trained, self.tx, self.mesh)
    self.check_loss()
    self.evals = evaluators.make(config.evals, self.models)

  def check(self):
    """What a person gets wrong, told in one sentence before anything is loaded."""
    config, collect = self.config, self.config.objective.collect
    signature(self.objective.collect, collect, 'objective.collect')
    signature(self.objective.loss, config.objective.loss, 'objective.loss')
    signature(self.data_module.make, config.data, 'data', given=('seed', 'host'))
    for name in ('steps', 'save_every', 'minibatches', 'accum', 'epochs', 'show_every', 'keep'):
      if config[name] < 1: raise ValueError(f'{name}: {config[name]}, expected at least 1')
    P = config.data.prompts if 'prompts' in config.data else config.data.batch
    R = collect.rollouts if 'rollouts' in collect else 2 if config.objective.name.endswith('dpo') else 1
    if hasattr(self.objective, 'check'):
      self.objective.check(**collect, updates=self.updates_per_step, reference=config.reference)
    parts = config.minibatches * config.accum
    check_split(P, R, config.minibatches)
    check_split(P, R, parts)
    for n in {1, config.minibatches, parts}:
      rules.rows(self.mesh, max(P // n, 1), R if P % n == 0 else R * P // n)

  def check_loss(self):
    if hasattr(self.objective, 'check_loss'):
      self.objective.check_loss(**self.config.objective.loss, scales=self.models.scales,
                                reference=self.config.reference)

  def frozen(self, say=print):
    return {name: building.weights(self.config, name, init, self.mesh, self.root, say)
            for name, init in self.built.frozen.items()}

  def initial(self, say=print):
    params = {name: building.weights(self.config, name, init, self.mesh, self.root, say)
              for name, init in self.built.trained.items()}
    shardings = jax.tree.map(lambda x: x.sharding, self.shapes.opt)
    return State(params, jax.jit(self.tx.init, out_shardings=shardings)(params))

  def data(self):
    options = {k: v for k, v in self.config.data.items() if k != 'name'}
    return self.data_module.make(seed=self.config.seed, host=multihost.host(), **options)

  def pieces(self):
    """(collect, update), update jitted with the state donated."""
    loss = partial(self.objective.loss, self.models, **self.config.objective.loss)
    collect = self.objective.collect(self.models, **self.config.objective.collect)
    return collect, jax.jit(make_update(loss, self.tx, self.config.accum), donate_argnums=0)


def signature(function, section, what, given=()):
  """A dictionary in the config is the keyword arguments of one function."""
  parameters = inspect.signature(function).parameters.values()
  expected = {p.name for p in parameters if p.kind == p.KEYWORD_ONLY} - set(given)
  found = set(section) - {'name'}
  if found != expected:
    raise ValueError(f'{what}: keys {sorted(found)}, expected {sorted(expected)}')


def train(config, workdir, *, root=None, say=print):
  """Runs or continues the run in `workdir`; returns its final State. `root`: the chain's workdir."""
  workdir = pathlib.Path(workdir)
  run = Run(config, root or workdir)
  store = stores.Store(workdir / 'checkpoints', every=config.save_every, keep=config.keep)
  with jax.set_mesh(run.mesh):
    data = run.data()
    check_data(run, data)
    found = store.restore(run.shapes)
    first, state = (found[0], found[1]) if found else (0, run.initial(say))
    if found: data.set_state(found[2])
    describe(run, workdir, first, say)
    frozen, rng = run.frozen(say), jax.random.key(config.seed)
    collect, update = run.pieces()
    halve = jax.jit(partial(split, n=config.minibatches))
    # A loss that is not finite stops the run; the state before it is what was saved.
    writer = Writer(workdir, first=first)
    bar = tqdm(total=config.steps, initial=first, desc=workdir.name, unit='step', dynamic_ncols=True,
               mininterval=1., disable=not multihost.first())

    began = time.perf_counter()
    for step in range(first, config.steps + 1):
      last = step == config.steps
      for name, evaluate, every in run.evals:
        if step == 0 or last or (every and step % every == 0):
          record(writer, step, name, evaluate(state.params, frozen))
      if last or step % config.save_every == 0: writer.flush()  # waits for the update; a resumed run needs it
      store.save(step, state, data.get_state(), {'config': config.to_json_best_effort()}, force=last)
      if last: break

      batch = multihost.from_local(next(data), run.mesh)  # what was saved has not been seen
      batch, metrics, show = collect(state.params, frozen, batch, jax.random.fold_in(rng, step))
      if show and step % config.show_every == 0:  # before the update: it takes the state's buffers
        for name, (images, captions) in show().items():
          writer.write_images(step, {name: pictures.grid(images, captions, columns=8)})
      for _ in range(config.epochs):
        parts = halve(batch)
        for i in range(config.minibatches):
          state, facts = update(state, frozen, jax.tree.map(lambda x, i=i: x[i], parts))
          writer.add(step, facts)
      writer.add(step, metrics | {f'data/{k}': v for k, v in data.counts.items()})
      writer.add(step, {'lr': run.rate(step * run.updates_per_step), 'time/step': time.perf_counter() - began})
      began = time.perf_counter()
      bar.update()
    bar.close()
    store.close()
    writer.close()
    data.close()
    run.models.close()
  return state


def check_data(run, data):
  """The data's images and labels must fit the models."""
  classes, config = data.classes, run.models.config
  wanted = run.models.classes or getattr(config, 'classes', 0)
  if wanted and classes and classes > wanted:
    raise ValueError(f'data: {classes} classes in the data set, {wanted} in the model')
  size = run.config.data.size if 'size' in run.config.data else None
  part = building.module(run.config.tokenizer, 'tokenizer')[1].c if 'tokenizer' in run.config else config
  if size and getattr(part, 'image_size', size) != size:
    raise ValueError(f'data.size: {size} pixels, {part.image_size} expected by the model')


def record(writer, step, prefix, values):
  """Numbers and pictures of an evaluator, under its name."""
  for name, value in values:
    write = writer.write_images if np.ndim(value) == 3 else writer.write_scalars
    write(step, {f'{prefix}/{name}': value})


def describe(run, workdir, first, say):
  """Shapes once, at start; and config.json, with what has changed since it was written."""
  config = run.config
  new = json.loads(config.to_json_best_effort())
  path = workdir / 'config.json'
  if path.exists() and first:
    old = json.loads(path.read_text())
    for key in sorted(set(old) | set(new)):
      if old.get(key) != new.get(key): say(f'config: {key} changed from {old.get(key)} to {new.get(key)}')
  if multihost.first(): pictures.save_bytes(path, json.dumps(new, indent=2).encode())
  leaves = jax.tree.leaves(run.shapes.params)
  count = sum(math.prod(x.shape) for x in leaves)
  shape = 'x'.join(str(n) for n in run.mesh.shape.values())
  say(f'{workdir.name}: {config.objective.name} on {config.policy.name} {config.policy.size}, '
      f'{count:,} parameters, mesh {shape}, steps {first} to {config.steps}')


def finished(config, workdir):
  """True if the run's last checkpoint is there; loading it later verifies it."""
  return (pathlib.Path(workdir) / 'checkpoints' / str(config.steps)).is_dir()
