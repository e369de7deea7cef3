"""One loop for pretraining, SFT, DPO, GRPO, tokenizers and classifiers: an objective is `collect` +
`loss`, two functions of objectives/NAME.py.

A step of a run, in order, as `run_steps` takes it:

1. Save (`make_save`, checkpoint/store.py). Where it is due, the state before the step and the place
   in the data are written, in the background. What evaluators look at is always saved first.
2. Evaluate (`make_evaluate`, eval/run.py). The evaluators that are due look at that state: at the
   moving average of its weights, if there is one.
3. Read (`next_batch`, data/; parallel/multihost.py). Each host reads its rows; together they are
   one batch, sharded over the mesh where it divides.
4. Collect (objectives/NAME.py, `collect`). Supervised data passes through. GRPO and its like sample
   rows with the present policy (rollout/), decode their pictures (tokenizers/), have them rewarded
   (rewards/mix.py: on the device, and by worker processes of the hosts), draw groups again whose
   rewards are all equal, score the rows once more where the ratio wants the trainer's own
   log-probabilities, and give them advantages.
   The result is an Experience, and the rest of the step is the same for all. Where they are due,
   pictures of the step are written.
5. Listen (parallel/preemption.py). Every part of 1 to 4 ends with `timer.phase`, which waits for
   the arrays that it is given and checks whether a SIGTERM or Ctrl-C has come, which is heard
   within a second; all hosts hear of it at the same point. The last one, `phase('prepare')`, is
   between reward and update. There the step is given up, and state and data are saved as they were
   before it: the run that continues takes this step again, with the same random keys. After this
   point a step is always finished.
6. Update (training/update.py). `epochs` passes over the Experience in `minibatches` parts; each
   part is one gradient of `loss`, in `accum` pieces, one update of the optimizer
   (training/optim.py) and one of the moving average. It takes the buffers of the old state.
7. Write (reporting/writer.py, training/timing.py). Metrics, times and speed are written one step
   late, so that the host never waits for the update that it has just dispatched.
"""

import contextlib
from functools import partial
import math
import time

import jax
import numpy as np
from tqdm import tqdm

from vargrl.checkpoint import store as stores
from vargrl.io import paths
from vargrl.io import text as io_text
from vargrl.parallel import multihost, preemption
from vargrl.reporting import images
from vargrl.reporting.writer import Writer
from vargrl.training import optim, timing, update
from vargrl.training.run import Run
from vargrl.training.stage import Stage

FINAL_EVAL_FILE = 'evaluated'  # the evaluators have run on the last state, saved before they did
MAX_SKIPPED_STEPS = 10  # in a row; a run without one good update would not recover


def train(config, workdir, *, root=None, run=None, log=print, on_save=lambda: None, wandb=''):
  """Runs or continues the run in `workdir`; returns its final State.

  root: the chain's workdir. run: the Run of config, if it is built already. log: receives lines for
  the user. on_save: called after every save has begun. wandb: a project of Weights & Biases, '' for
  none. Raises ValueError for what does not fit, FloatingPointError after MAX_SKIPPED_STEPS
  steps whose updates were all skipped, and preemption.Stop, with the last complete step saved, when
  the machine is taken away or a person has interrupted; what was saved before stays good."""
  workdir, began = paths.path(workdir), time.perf_counter()
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
    checkpoint = store.restore(run.stored_shapes)
    first, state, _, meta = checkpoint or (0, None, None, {})
    frozen = run.frozen(log)
    fingerprints = run.fingerprints(frozen)
    check_frozen(meta, fingerprints, workdir)
    if first == config.steps and is_evaluated(workdir, first, meta):
      log_config_diff(run, workdir, lambda text: log(f'{text}, without effect on what is finished'))
      log(f'{workdir.name}: finished, {config.steps} steps')
      return state
    state = start(run, checkpoint, fingerprints, log)
    meta = {'config': config.to_json_best_effort(), 'frozen': fingerprints}
    log_overview(run, workdir, first, log)
    writer = Writer(workdir, first=first, wandb=wandb)
    stack.callback(writer.close)
    bar = stack.enter_context(progress_bar(workdir.name, first, config.steps))
    timer = stack.enter_context(timing.timer(run, workdir, check, began))
    save = make_save(run, store, writer, meta, begin_save, on_save)
    evaluate = make_evaluate(run, frozen, workdir, writer, timer)
    return run_steps(run, state, frozen, first, writer, save, evaluate, bar, timer)


def is_evaluated(workdir, step, meta):
  """True if the evaluators have run on the state of the last step, which meta is of: it is saved
  before they do."""
  path = workdir / FINAL_EVAL_FILE
  mark = path.read_bytes().decode(errors='replace') if path.exists() else ''
  return not meta.get('unseen', False) or multihost.allgather_text(mark)[0] == str(step)


def start(run, checkpoint, fingerprints, log):
  """The State that a run goes on with: of its checkpoint, (step, state, data, meta), or, where that
  is None, its first one. Sets the data to the step."""
  if not checkpoint:
    state, source = run.initial(log)
    if has_changed(source, fingerprints, 'tokenizer'):
      log(
        f'init.policy: was trained with another tokenizer, {source["frozen"]["tokenizer"]}, than '
        f'init.tokenizer, {fingerprints["tokenizer"]}'
      )
    return state
  step, state, data, _ = checkpoint
  run.data.set_state(data)
  if run.config.optim.ema and state.ema is None:
    log(f'optim.ema: none in the checkpoint of step {step}, it starts from the parameters there')
    return state.replace(ema=run.initial_ema(state.params))
  if not run.config.optim.ema and state.ema is not None:
    log(f'optim.ema: 0, the moving average in the checkpoint of step {step} is left out')
    return state.replace(ema=None)
  return state


def progress_bar(name, first, steps):
  """A bar of steps on the first host."""
  return tqdm(
    total=steps,
    initial=first,
    desc=name,
    unit='step',
    dynamic_ncols=True,
    mininterval=1.0,
    disable=not multihost.is_first_host(),
  )


def due_evaluators(run, step):
  """The Evaluators that look at the state before this step, or after the last one."""
  always = step in (0, run.config.steps)
  return [e for e in run.evals if always or (e.every_steps and step % e.every_steps == 0)]


def make_save(run, store, writer, meta, begin_save, on_save):
  """save(step, state, data, stopped=False) -> {metric: number}: writes the state before a step if
  that is due. stopped: the run ends here, and saves whatever the step."""
  config = run.config

  def save(step, state, data, stopped=False):
    last = step == config.steps
    force = stopped or last or bool(due_evaluators(run, step))
    if stopped:
      begin_save()
    # It waits for the update; but a run that is resumed must find the rows up to here.
    if force or step % config.save_every == 0:
      writer.flush()
    saves = store.save(step, state, data, meta | {'unseen': last}, force=force)
    if saves and not stopped:
      on_save()
    seconds, store.save_seconds = store.save_seconds, None
    return {'time/save_whole': seconds} if seconds else {}

  return save


def make_evaluate(run, frozen, workdir, writer, timer):
  """evaluate(step, state): has the evaluators that are due write what they find."""

  def evaluate(step, state):
    for evaluator in due_evaluators(run, step):
      poll = partial(timer.phase, 'eval')
      values = evaluator.evaluate(optim.ema_params(state), frozen, poll)
      write_values(writer, step, evaluator.name, values)
      timer.phase('eval')
    if step == run.config.steps and multihost.is_first_host():
      io_text.write_text(workdir / FINAL_EVAL_FILE, str(step))

  return evaluate


def run_steps(run, state, frozen, first, writer, save, evaluate, bar, timer):
  """Steps first .. config.steps - 1, with save(step, state, data) and evaluate(step, state) before
  each and after the last; returns the last State. What evaluators look at is saved before: they
  may take longer than the machine is there. The numbers are those of the head of this file."""
  config, rng, n_skipped = run.config, jax.random.key(run.config.seed), 0
  collect, step_update = run.collect_and_update()
  split = jax.jit(partial(update.split, n=config.minibatches))
  for step in range(first, config.steps + 1):
    data = run.data.get_state()
    try:
      save_metrics = save(step, state, data)  # 1
      if step < config.steps:
        timer.phase('save')
      evaluate(step, state)  # 2
      if step == config.steps:
        return state
      timer.trace(step)
      if multihost.is_multihost():
        timer.phase('wait_for_update', state.params)  # the next line would, and be blamed
      batch = multihost.global_batch(  # 3
        multihost.on_all_hosts(partial(next_batch, run.data, timer.phase)), run.mesh, run.n_prompts
      )
      timer.phase('data')
      stage, key = Stage(step, timer.phase), jax.random.fold_in(rng, step)
      batch, metrics, show = collect.run(stage, state.params, frozen, batch, key)  # 4
      timer.phase('prepare')  # 5: the last point where a step is given up
    except preemption.Stop:  # the run that continues takes this step again
      save(step, state, data, stopped=True)
      raise
    if show and step % config.show_every == 0:  # before the update: it takes the state's buffers
      for name, (image_Byxc, captions) in show().items():
        writer.write_images(step, {name: images.grid(image_Byxc, captions, columns=8)})
    for _ in range(config.epochs):  # 6
      parts = split(batch)
      for i in range(config.minibatches):
        state, update_metrics = step_update(state, frozen, jax.tree.map(lambda x, i=i: x[i], parts))
        writer.add(step, update_metrics)
    # 7
    writer.add(step, metrics | {f'data/{k}': v for k, v in run.data.counts.items()})
    speed = timer.rates(batch, collect.kind(step))
    rate = run.optimizer.rate(step * run.updates_per_step)
    writer.add(step, {'lr': rate} | save_metrics | speed)
    timer.trace(step + 1, state)
    n_skipped = n_skipped + 1 if writer.row.get('skipped') == 1 else 0  # of the step before
    if n_skipped == MAX_SKIPPED_STEPS:
      raise FloatingPointError(
        f'{bar.desc}: no update of the {MAX_SKIPPED_STEPS} steps up to {writer.row["step"]} had a '
        'finite gradient and a row with a verdict'
      )
    bar.update()


def next_batch(data, phase):
  """The next batch of an iterator. A signal to all processes of a terminal or job ends the workers
  of the data first: where there has been one, this is no error but a notice."""
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
  checkpoint = stores.read_metadata(workdir / 'checkpoints', run.stored_shapes, item='')
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


def to_json(config) -> dict:
  """A run's config as JSON has it."""
  return io_text.parse_json(config.to_json_best_effort(), 'config', dict)


def log_config_diff(run, workdir, log):
  """Logs the keys that have changed since config.json was written, which is for people alone."""
  new = to_json(run.config)
  old = io_text.read_own_json(workdir / 'config.json') or new
  for key in sorted(set(old) | set(new)):
    if old.get(key) != new.get(key):
      log(f'config: {key} changed from {old.get(key)} to {new.get(key)}')


def log_overview(run, workdir, first, log):
  """Logs sizes and mesh once, at the start, and what has changed in the config; writes
  config.json."""
  config = run.config
  if first:
    log_config_diff(run, workdir, log)
  if multihost.is_first_host():
    io_text.write_json(workdir / 'config.json', to_json(config))
  leaves = jax.tree.leaves(run.shapes.params)
  count = sum(math.prod(x.shape) for x in leaves)
  shape = 'x'.join(str(n) for n in run.mesh.shape.values())
  trained_params, _ = optim.partition(run.shapes.params, run.optimizer.trained)
  n_trained = sum(math.prod(x.shape) for x in jax.tree.leaves(trained_params))
  trained = '' if n_trained == count else f' ({n_trained:,} trained)'
  state_bytes = sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(run.shapes)
  )
  log(
    f'{workdir.name}: {config.objective.name} on {config.policy.name} {config.policy.size}, '
    f'{count:,} parameters{trained}, mesh {shape}, {state_bytes / 2**20:.1f} MiB of state a '
    f'device, steps {first} to {config.steps}'
  )
