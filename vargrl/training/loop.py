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
from vargrl.reporting import images
from vargrl.reporting.writer import Writer
from vargrl.training import optim, timing, update
from vargrl.training.run import Run

FINAL_EVAL_FILE = 'evaluated'  # the evaluators have run on the last state, saved before they did
MAX_SKIPPED_STEPS = 10  # in a row; a run without one good update would not recover


def train(config, workdir, *, root=None, run=None, log=print, on_save=lambda: None, wandb=''):
  """Runs or continues the run in `workdir`; returns its final State.

  root: the chain's workdir. run: the Run of config, if it is built already. log: receives lines for
  the user. on_save: called after every save has begun. wandb: a project of Weights & Biases, '' for
  none. Raises ValueError for what does not fit, FloatingPointError after MAX_SKIPPED_STEPS
  steps whose updates were all skipped, and preemption.Stop, with the last complete step saved, when
  the machine is taken away or a person has interrupted; what was saved before stays good."""
  workdir, began = pathlib.Path(workdir), time.perf_counter()
  run = run or Run(config, root or workdir)
  log = log if multihost.is_first_host() else lambda _: None
  with contextlib.ExitStack() as stack, jax.set_mesh(run.mesh):
    stack.callback(run.close)
    check, begin_save = stack.enter_context(preemption.watch(log))
    multihost.on_all_hosts(lambda: check_resume(run, workdir))
    store = multihost.on_all_hosts(
      lambda: stores.Store(
        workdir / 'checkpoints', every_steps=config.save_every, max_to_keep=config.keep
      )
    )
    stack.callback(store.close)
    checkpoint = store.restore(run.shapes)
    first, state, data, meta = checkpoint or (0, None, None, {})
    frozen = run.frozen(log)
    fingerprints = run.fingerprints(frozen)
    check_frozen(meta, fingerprints, workdir)
    final_eval = workdir / FINAL_EVAL_FILE
    evaluated = multihost.allgather_text(final_eval.read_text() if final_eval.exists() else '')[0]
    finished = first == config.steps
    if finished and not (meta.get('unseen', False) and evaluated != str(first)):
      log_config_diff(run, workdir, lambda text: log(f'{text}, without effect on what is finished'))
      log(f'{workdir.name}: finished, {config.steps} steps')
      return state
    if checkpoint:
      run.data.set_state(data)
    else:
      state, source = run.initial(log)
      if has_changed(source, fingerprints, 'tokenizer'):
        log(
          f'init.policy: was trained with another tokenizer, {source["frozen"]["tokenizer"]}, than '
          f'init.tokenizer, {fingerprints["tokenizer"]}'
        )
    meta = {'config': config.to_json_best_effort(), 'frozen': fingerprints}
    log_overview(run, workdir, first, log)
    writer = Writer(workdir, first=first, wandb=wandb)
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
      ends = step in (0, config.steps)
      return [e for e in run.evals if ends or (e.every_steps and step % e.every_steps == 0)]

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
      for evaluator in due(step):
        values = evaluator.evaluate(state.params, frozen, partial(watch.phase, 'eval'))
        write_values(writer, step, evaluator.name, values)
        watch.phase('eval')
      if step == config.steps and multihost.is_first_host():
        images.save_bytes(workdir / FINAL_EVAL_FILE, str(step).encode())

    return run_steps(run, state, frozen, first, writer, save, evaluate, bar, watch)


def run_steps(run, state, frozen, first, writer, save, evaluate, bar, watch):
  """Steps first .. config.steps - 1, with save(step, state, data) and evaluate(step, state) before
  each and after the last. What evaluators look at is saved before: they may take longer than the
  machine is there."""
  config, rng, n_skipped = run.config, jax.random.key(run.config.seed), 0
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
        multihost.on_all_hosts(partial(next_batch, run.data, watch.phase)), run.mesh, run.rows
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
      for name, (image_Byxc, captions) in show().items():
        writer.write_images(step, {name: images.grid(image_Byxc, captions, columns=8)})
    for _ in range(config.epochs):
      parts = halve(batch)
      for i in range(config.minibatches):
        state, facts = step_update(state, frozen, jax.tree.map(lambda x, i=i: x[i], parts))
        writer.add(step, facts)
    writer.add(step, metrics | {f'data/{k}': v for k, v in run.data.counts.items()})
    writer.add(step, {'lr': run.rate(step * run.updates_per_step)} | saves | watch.rates(batch))
    watch.trace(step + 1, state)
    n_skipped = n_skipped + 1 if writer.row.get('skipped') == 1 else 0  # of the step before
    if n_skipped == MAX_SKIPPED_STEPS:
      raise FloatingPointError(
        f'{bar.desc}: no update of the {MAX_SKIPPED_STEPS} steps up to {writer.row["step"]} had a '
        'finite gradient and a row with a verdict'
      )
    bar.update()


def next_batch(data, phase):
  """The next batch of an iterator. A signal to all processes of a terminal or job ends the workers of the data
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
  step, data, _ = checkpoint
  if step > run.config.steps:
    raise ValueError(
      f'steps: {run.config.steps}, expected at least {step}, the newest checkpoint of {workdir}'
    )
  if step < run.config.steps:
    run.data.set_state(data)


def check_frozen(meta, fingerprints, workdir):
  """Raises ValueError unless the frozen weights are those that the run was started with."""
  for name in fingerprints:
    if has_changed(meta, fingerprints, name):
      raise ValueError(
        f'init.{name}: weights {fingerprints[name]} found, {meta["frozen"][name]} expected, with '
        f'which {workdir} was started; move it away to start anew'
      )


def has_changed(meta, fingerprints, name):
  """True if the checkpoint of `meta` was made with other weights `name` than these."""
  old = meta.get('frozen', {}).get(name)
  return old is not None and name in fingerprints and old != fingerprints[name]


def write_values(writer, step, prefix, values):
  """Writes the numbers and images of an evaluator under its name."""
  for name, value in values:
    write = writer.write_images if np.ndim(value) == 3 else writer.write_scalars
    write(step, {f'{prefix}/{name}': value})


def log_config_diff(run, workdir, log):
  """Logs the keys that have changed since config.json was written."""
  new, path = json.loads(run.config.to_json_best_effort()), workdir / 'config.json'
  old = json.loads(path.read_text()) if path.exists() else new
  for key in sorted(set(old) | set(new)):
    if old.get(key) != new.get(key):
      log(f'config: {key} changed from {old.get(key)} to {new.get(key)}')


def log_overview(run, workdir, first, log):
  """Logs sizes and mesh once, at the start, and what has changed in the config; writes
  config.json."""
  config = run.config
  if first:
    log_config_diff(run, workdir, log)
  text = json.dumps(json.loads(config.to_json_best_effort()), indent=2)
  if multihost.is_first_host():
    images.save_bytes(workdir / 'config.json', text.encode())
  leaves = jax.tree.leaves(run.shapes.params)
  count = sum(math.prod(x.shape) for x in leaves)
  shape = 'x'.join(str(n) for n in run.mesh.shape.values())
  n_trained = sum(
    math.prod(x.shape) for x in jax.tree.leaves(optim.part(run.shapes.params, run.trained)[0])
  )
  trained = '' if n_trained == count else f' ({n_trained:,} trained)'
  state_bytes = sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(run.shapes)
  )
  log(
    f'{workdir.name}: {config.objective.name} on {config.policy.name} {config.policy.size}, '
    f'{count:,} parameters{trained}, mesh {shape}, {state_bytes / 2**20:.1f} MiB of state a device, '
    f'steps {first} to {config.steps}'
  )
