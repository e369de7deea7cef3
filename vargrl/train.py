"""Pretraining, SFT, DPO, GRPO, tokenizers, classifiers: one loop. An objective is `collect` + `loss`."""
import contextlib
from functools import partial
import hashlib
import json
import math
import pathlib
import time

import jax
import numpy as np
from tqdm import tqdm

from vargrl import pictures, update
from vargrl.checkpoint import digest
from vargrl.checkpoint import store as stores
from vargrl.metrics import Writer
from vargrl.parallel import multihost
from vargrl.run import Run

SKIPS = 10  # steps in a row without one good update, after which a run ends: it would not recover


def train(config, workdir, *, root=None, run=None, say=print, saved=lambda: None):
  """Runs or continues the run in `workdir`; returns its final State.

  root: the chain's workdir. run: the Run of config, if it is there already. saved: called after every
  save has begun. Raises ValueError for what does not fit, FloatingPointError after SKIPS steps whose
  updates were all skipped; what was saved before stays good.
  """
  workdir = pathlib.Path(workdir)
  run = run or Run(config, root or workdir)
  with contextlib.ExitStack() as stack, jax.set_mesh(run.mesh):
    stack.callback(run.close)
    store = stores.Store(workdir / 'checkpoints', every=config.save_every, keep=config.keep)
    stack.callback(store.close)
    if (store.latest() or 0) > config.steps:
      raise ValueError(f'steps: {config.steps}, expected at least {store.latest()}, the newest checkpoint of '
                       f'{workdir}')
    found = store.restore(run.shapes)
    if found and found[0] == config.steps:
      say(f'{workdir.name}: finished, {config.steps} steps')
      return found[1]
    first, state = (found[0], found[1]) if found else (0, run.initial(say))
    frozen = run.frozen(say)
    meta = {'config': config.to_json_best_effort(), 'frozen': fingerprints(frozen)}
    if found:
      check_frozen(found[3].get('frozen', {}), meta['frozen'], workdir)
      run.data.set_state(found[2])
    describe(run, workdir, first, say)
    writer = Writer(workdir, first=first)
    stack.callback(writer.close)
    bar = stack.enter_context(tqdm(
        total=config.steps, initial=first, desc=workdir.name, unit='step', dynamic_ncols=True, mininterval=1.,
        disable=not multihost.first()))

    def save(step, state, last):
      for name, evaluate, every in run.evals:
        if step == 0 or last or (every and step % every == 0):
          record(writer, step, name, evaluate(state.params, frozen))
      # It waits for the update; but a run that is resumed must find the rows up to here.
      if last or step % config.save_every == 0: writer.flush()
      if store.save(step, state, run.data.get_state(), meta, force=last): saved()

    state = loop(run, state, frozen, first, writer, save, bar)
  saved()
  return state


def loop(run, state, frozen, first, writer, save, bar):
  """Steps first .. config.steps - 1, with save(step, state, last) before each and after the last."""
  config, rng, idle = run.config, jax.random.key(run.config.seed), 0
  collect, step_update = run.pieces()
  halve = jax.jit(partial(update.split, n=config.minibatches))
  began = time.perf_counter()
  for step in range(first, config.steps):
    save(step, state, False)
    batch = multihost.from_local(next(run.data), run.mesh)  # what was saved has not been seen
    batch, metrics, show = collect(state.params, frozen, batch, jax.random.fold_in(rng, step))
    if show and step % config.show_every == 0:  # before the update: it takes the state's buffers
      for name, (images, captions) in show().items():
        writer.write_images(step, {name: pictures.grid(images, captions, columns=8)})
    for _ in range(config.epochs):
      parts = halve(batch)
      for i in range(config.minibatches):
        state, facts = step_update(state, frozen, jax.tree.map(lambda x, i=i: x[i], parts))
        writer.add(step, facts)
    writer.add(step, metrics | {f'data/{k}': v for k, v in run.data.counts.items()})
    writer.add(step, {'lr': run.rate(step * run.updates_per_step), 'time/step': time.perf_counter() - began})
    began = time.perf_counter()
    idle = idle + 1 if writer.row.get('skipped') == 1 else 0  # of the step before
    if idle == SKIPS:
      raise FloatingPointError(f'{bar.desc}: no update of the {SKIPS} steps up to {writer.row["step"]} had a '
                               'finite gradient and a row with a verdict')
    bar.update()
  save(config.steps, state, True)
  return state


def fingerprints(frozen):
  """{name: 16 hex digits} of the weights that a run uses and never trains."""
  names = lambda weights: json.dumps(digest.digests(weights), sort_keys=True)
  return {name: hashlib.sha256(names(weights).encode()).hexdigest()[:16] for name, weights in frozen.items()}


def check_frozen(old, new, workdir):
  for name in old:
    if name in new and old[name] != new[name]:
      raise ValueError(f'init.{name}: weights {new[name]} found, {old[name]} expected, with which {workdir} was '
                       'begun; begin anew in another workdir')


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
