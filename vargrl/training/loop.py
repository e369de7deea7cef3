"""Pretraining, SFT, DPO, GRPO, tokenizers, classifiers: one loop. An objective is `collect` +
`loss`.
"""

import contextlib
from functools import partial
import json
import math
import pathlib
import time

import jax
import numpy as np
from tqdm import tqdm

from vargrl.checkpoint import store as stores
from vargrl.parallel import multihost, preemption
from vargrl.reporting import images as pictures
from vargrl.reporting.writer import Writer
from vargrl.training import optim, timing, update
from vargrl.training.run import Run

SEEN = 'evaluated'  # a file: the evaluators have looked at the last state, which was saved without
SKIPS = 10  # steps in a row without one good update, after which a run ends: it would not recover


def train(config, workdir, *, root=None, run=None, say=print, saved=lambda: None):
  """Runs or continues the run in `workdir`; returns its final State.

  root: the chain's workdir. run: the Run of config, if it is there already. saved: called after
  every save has begun. Raises ValueError for what does not fit, FloatingPointError after SKIPS
  steps whose updates were all skipped, and preemption.Stop, with the last complete step saved, when
  the machine is taken away or a person has interrupted; what was saved before stays good."""
  workdir, began = pathlib.Path(workdir), time.perf_counter()
  run = run or Run(config, root or workdir)
  say = say if multihost.is_first_host() else lambda _: None
  with contextlib.ExitStack() as stack, jax.set_mesh(run.mesh):
    stack.callback(run.close)
    check, begin_save = stack.enter_context(preemption.watch(say))
    multihost.on_all_hosts(lambda: check_resume(run, workdir))
    store = multihost.on_all_hosts(
      lambda: stores.Store(
        workdir / 'checkpoints', every_steps=config.save_every, max_to_keep=config.keep
      )
    )
    stack.callback(store.close)
    found = store.restore(run.shapes)
    first, state, data, meta = found or (0, None, None, {})
    frozen = run.frozen(say)
    fingerprints = run.fingerprints(frozen)
    check_frozen(meta, fingerprints, workdir)
    seen = workdir / SEEN
    seen = multihost.allgather_text(seen.read_text() if seen.exists() else '')[0]
    unseen = first == config.steps and meta.get('unseen', False) and seen != str(first)
    if first == config.steps and not unseen:
      tell_changes(run, workdir, lambda text: say(f'{text}, without effect on what is finished'))
      say(f'{workdir.name}: finished, {config.steps} steps')
      return state
    if found:
      run.data.set_state(data)
    else:
      state, source = run.initial(say)
      if differ(source, fingerprints, 'tokenizer'):
        say(
          f'init.policy: was trained with another tokenizer, {source["frozen"]["tokenizer"]}, than '
          f'init.tokenizer, {fingerprints["tokenizer"]}'
        )
    meta = {'config': config.to_json_best_effort(), 'frozen': fingerprints}
    describe(run, workdir, first, say)
    writer = Writer(workdir, first=first)
    stack.callback(writer.close)
    bar = stack.enter_context(
      tqdm(
        total=config.steps,
        initial=first,
        desc=workdir.name,
        unit='step',
        dynamic_ncols=True,
        mininterval=1.0,
        disable=not multihost.is_first_host(),
      )
    )
    watch = stack.enter_context(timing.watching(run, workdir, check, began))

    def due(step):
      """The evaluators that look at the state before this step, or after the last one."""
      return [x[:2] for x in run.evals if step in (0, config.steps) or (x[2] and step % x[2] == 0)]

    def save(step, state, data, stopped=False):
      last = step == config.steps
      if stopped:
        begin_save()
      # It waits for the update; but a run that is resumed must find the rows up to here.
      if stopped or due(step) or last or step % config.save_every == 0:
        writer.flush()
      if (
        store.save(
          step, state, data, meta | {'unseen': last}, force=stopped or bool(due(step)) or last
        )
        and not stopped
      ):
        on_save()
      seconds, store.save_seconds = store.save_seconds, None
      return {'time/save_whole': seconds} if seconds else {}

    def evaluate(step, state):
      for name, evaluator in due(step):
        record(writer, step, name, evaluator(state.params, frozen, partial(watch.phase, 'eval')))
        watch.phase('eval')
      if step == config.steps and multihost.is_first_host():
        pictures.save_bytes(workdir / SEEN, str(step).encode())

    return loop(run, state, frozen, first, writer, save, evaluate, bar, watch)


def loop(run, state, frozen, first, writer, save, evaluate, bar, watch):
  """Steps first .. config.steps - 1, with save(step, state, data) and evaluate(step, state) before
  each and after the last. What evaluators look at is saved before: they may take longer than the
  machine is there."""
  config, rng, idle = run.config, jax.random.key(run.config.seed), 0
  collect, step_update = run.pieces()
  halve = jax.jit(partial(update.split, n=config.minibatches))
  for step in range(first, config.steps + 1):
    data = run.data.get_state()
    try:
      saves = save(step, state, data)
      if step < config.steps:
        watch.phase('save')
      evaluate(step, state)
      if step == config.steps:
        return state
      watch.trace(step)
      if multihost.is_multihost():
        watch.phase('wait_for_update', state.params)  # the next line would, and be blamed
      batch = multihost.global_batch(
        multihost.on_all_hosts(partial(read, run.data, watch.phase)), run.mesh, run.rows
      )
      watch.phase('data')
      batch, metrics, show = collect(
        state.params, frozen, batch, jax.random.fold_in(rng, step), step, watch.phase
      )
      watch.phase('prepare')
    except preemption.Stop:  # the step is given up, and made again by the one who goes on
      save(step, state, data, stopped=True)
      raise
    if show and step % config.show_every == 0:  # before the update: it takes the state's buffers
      for name, (images, captions) in show().items():
        writer.write_images(step, {name: pictures.grid(images, captions, columns=8)})
    for _ in range(config.epochs):
      parts = halve(batch)
      for i in range(config.minibatches):
        state, facts = step_update(state, frozen, jax.tree.map(lambda x, i=i: x[i], parts))
        writer.add(step, facts)
    writer.add(step, metrics | {f'data/{k}': v for k, v in run.data.counts.items()})
    writer.add(step, {'lr': run.rate(step * run.updates_per_step)} | saves | watch.rates(batch))
    watch.trace(step + 1, state)
    idle = idle + 1 if writer.row.get('skipped') == 1 else 0  # of the step before
    if idle == SKIPS:
      raise FloatingPointError(
        f'{bar.desc}: no update of the {SKIPS} steps up to {writer.row["step"]} had a '
        'finite gradient and a row with a verdict'
      )
    bar.update()


def read(data, phase):
  """The next batch. A signal to all processes of a terminal or job ends the workers of the data
  first: where there has been one, this is no error but a notice."""
  try:
    return next(data)
  except Exception:
    for _ in range(0 if multihost.is_multihost() else 15):  # jax hears a SIGTERM within a second
      time.sleep(0.1)
      phase('data')
    raise


def check_resume(run, workdir):
  """Raises ValueError for a checkpoint that the run cannot continue from, before anything is
  compiled."""
  checkpoint = stores.read_metadata(workdir / 'checkpoints', run.shapes, item='')
  if not checkpoint:
    return
  step, data, _ = found
  if step > run.config.steps:
    raise ValueError(
      f'steps: {run.config.steps}, expected at least {step}, the newest checkpoint of {workdir}'
    )
  if step < run.config.steps:
    run.data.set_state(data)


def check_frozen(meta, fingerprints, workdir):
  """The weights that a run uses must stay those that it was begun with."""
  for name in fingerprints:
    if differ(meta, fingerprints, name):
      raise ValueError(
        f'init.{name}: weights {fingerprints[name]} found, {meta["frozen"][name]} expected, with '
        f'which {workdir} was begun; move it away to begin anew'
      )


def differ(meta, fingerprints, name):
  """True if the checkpoint of `meta` knows weights `name`, and they are others than these."""
  old = meta.get('frozen', {}).get(name)
  return old is not None and name in fingerprints and old != fingerprints[name]


def record(writer, step, prefix, values):
  """Numbers and pictures of an evaluator, under its name."""
  for name, value in values:
    write = writer.write_images if np.ndim(value) == 3 else writer.write_scalars
    write(step, {f'{prefix}/{name}': value})


def tell_changes(run, workdir, say):
  """What has changed since config.json was written."""
  new, path = json.loads(run.config.to_json_best_effort()), workdir / 'config.json'
  old = json.loads(path.read_text()) if path.exists() else new
  for key in sorted(set(old) | set(new)):
    if old.get(key) != new.get(key):
      say(f'config: {key} changed from {old.get(key)} to {new.get(key)}')


def describe(run, workdir, first, say):
  """Shapes once, at start; and config.json, with what has changed since it was written."""
  config = run.config
  if first:
    tell_changes(run, workdir, say)
  text = json.dumps(json.loads(config.to_json_best_effort()), indent=2)
  if multihost.is_first_host():
    pictures.save_bytes(workdir / 'config.json', text.encode())
  leaves = jax.tree.leaves(run.shapes.params)
  count = sum(math.prod(x.shape) for x in leaves)
  shape = 'x'.join(str(n) for n in run.mesh.shape.values())
  learned = sum(
    math.prod(x.shape) for x in jax.tree.leaves(optim.part(run.shapes.params, run.trained)[0])
  )
  trained = '' if learned == count else f' ({learned:,} trained)'
  held = sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(run.shapes)
  )
  say(
    f'{workdir.name}: {config.objective.name} on {config.policy.name} {config.policy.size}, '
    f'{count:,} parameters{trained}, mesh {shape}, {held / 2**20:.1f} MiB of state a device, '
    f'steps {first} to {config.steps}'
  )
