"""The command `bench`: times the pieces of a run on random weights: the rollout and what it is made
of, decoding, the gradient of its loss, and the update.

Utilisation is analytic FLOPs (block-causal attention counted, recomputation not; of the tokenizer's
programs what the compiler counts) over the matmul peak measured in the same process, so that it
means the same on CPU, GPU and TPU. On a CPU, XLA_FLAGS=
--xla_cpu_experimental_ynn_fusion_type=individual_dot decodes in two thirds of the time (jaxlib
0.10)."""

from functools import partial
import resource
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vargrl.io import numbers
from vargrl.parallel import rows as rows_of
from vargrl.rollout import sampling
from vargrl.training import chain, optim, update
from vargrl.training import flops as work
from vargrl.training.run import Run, bind_records
from vargrl.types import Experience, Pass, bounds

OBJECTIVES = ('objectives.grpo', 'objectives.sft')


class Timing(NamedTuple):
  """Of the fastest call: seconds on the clock, and of all the process's threads."""

  wall: float
  cpu: float
  result: Any


def clock():
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return time.perf_counter(), usage.ru_utime + usage.ru_stime


def time_call(call, repeats):
  out, best = jax.block_until_ready(call()), (float('inf'), float('inf'))
  for _ in range(repeats):
    out, began = None, clock()  # the last result is dropped first: two may not fit
    out = jax.block_until_ready(call())
    best = min(best, tuple(b - a for a, b in zip(began, clock())))
  return Timing(*best, out)


def matmul_peak(dtype, repeats):
  """FLOP/s of the fastest of a few square matrix products on one device."""
  sizes = (512, 1024, 2048) if jax.default_backend() == 'cpu' else (4096, 8192, 16384)
  dot, best = jax.jit(jnp.dot), 0.0
  for n in sizes:
    x = jax.random.normal(jax.random.key(0), (n, n)).astype(dtype)
    best = max(best, 2 * n**3 / time_call(lambda x=x: dot(x, x), repeats).wall)
  return best


def main(flags):
  """Prints one line per piece. Raises ValueError for a run that has no such pieces."""
  _, config = chain.select_run(flags.config, flags.run)
  if config.objective.name not in OBJECTIVES:
    raise ValueError(f'bench: {config.objective.name} found, a run of one of {OBJECTIVES} expected')
  if config.policy.name != 'models.var':
    raise ValueError(f'bench: {config.policy.name} found, models.var expected')
  numbers.check_number('--repeats', flags.repeats, least=1, whole=True)
  if 'rollout' not in config:
    raise ValueError('bench: a run without a rollout found, one with expected')
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.init = {}
  run = Run(config, '.', inference_only=True)
  c, tokens = run.policy.config, run.policy.config.length
  P = config.data.prompts if 'prompts' in config.data else config.data.batch
  R = config.objective.collect.get('rollouts', 1)
  with jax.set_mesh(run.mesh):
    best = matmul_peak(c.dtype, flags.repeats) * run.mesh.size
    print(
      f'{config.policy.name} {config.policy.size}: {P} prompts x {R}, {tokens} tokens, {c.dtype}, '
      f'{run.mesh.size} x {jax.devices()[0].device_kind}, matmul peak {best / 1e9:.0f} GFLOP/s'
    )
    how = dict(
      log=partial(print_line, best=best), images=P * R, repeats=flags.repeats, ways=run.mesh.size
    )
    (state, _), frozen = run.initial(lambda _: None), run.frozen(lambda _: None)
    label_P = jnp.arange(P, dtype=jnp.int32) % c.classes
    out = time_rollout(run, state.params['policy'], frozen, label_P, R, how)
    time_update(run, state, frozen, label_P, out, how)


def print_line(name, timing, flops, *, images, best, memory=0, tokens=0):
  cpu = f'{timing.cpu:9.2f} CPU-s' if jax.default_backend() == 'cpu' else ''
  speed = (
    f'   {flops / timing.wall / 1e9:9.1f} GFLOP/s   {flops / timing.wall / best:6.1%} of peak'
    if flops
    else ''
  )
  rate = f'   {tokens / timing.wall:9.0f} tokens/s' if tokens else ''
  space = f'   {memory / 2**30:7.2f} GiB of temporaries a device' if memory else ''
  print(
    f'{name:14} {timing.wall:9.3f} s {cpu}  {images / timing.wall:9.2f} '
    f'images/s{speed}{rate}{space}',
    flush=True,
  )


def measure(name, program, call, *, log, repeats, ways, images, flops=None, tokens=0):
  """Times a call of a compiled program, and logs that; returns its result. flops: None for those
  that the compiler counts."""
  timing = time_call(call, repeats)
  if flops is None:
    flops = (program.cost_analysis() or {}).get('flops', 0) * ways  # the compiler counts a device's
  memory = getattr(program.memory_analysis(), 'temp_size_in_bytes', 0)
  log(name, timing, flops, memory=memory, tokens=tokens, images=images)
  return timing.result


def measure_jitted(name, function, *args, **how):
  program = jax.jit(function).lower(*args).compile()
  return measure(name, program, lambda: program(*args), **how)


def time_rollout(run, policy, frozen, label_P, R, how):
  """The Rollout; times it, decoding, and its parts, each alone on numbers of the same shapes. The
  transformer alone computes the first scale for every row; the rollout once for each prompt."""
  functions, c, rows = run.policy, run.policy.config, len(label_P) * R
  (segment,) = run.built.plan
  pair = 2 if segment.c.guided else 1
  model, tokenizer = run.built.parts['policy'], run.built.parts['tokenizer']
  one = partial(measure_jitted, **how)
  key_P, keys_PR = functions.keys(jax.random.key(0), len(label_P), R)
  flops = work.pass_flops(run, Pass('policy', R, sampled=True))
  out = one('rollout', functions.generate, policy, frozen, label_P, key_P, keys_PR, flops=flops)
  t_BL = functions.latents(out.data, 2)

  def transformer(policy, label_B, inputs_BLC):
    label_B, inputs_BLC = rows_of.shard_rows((label_B, inputs_BLC))
    logits_BLV, cache = model.apply({'params': policy}, label_B, method='prefill')
    seen = [logits_BLV.max(-1)]
    for i, (a, b) in enumerate(bounds(c.scales)[1:], 1):
      logits_BLV, cache = model.apply(
        {'params': policy}, inputs_BLC[:, a - 1 : b - 1], cache, i, method='extend'
      )
      seen.append(logits_BLV.max(-1))  # or the compiler leaves out what nobody looks at
    return seen

  def sampler(keys_B, logits_V):
    draw = jax.vmap(partial(sampling.draw, top_k=segment.c.top_k, top_p=segment.c.top_p))
    some = lambda n: rows_of.shard_rows(jnp.broadcast_to(logits_V, (rows, n, c.vocab)))
    return [draw(keys_B, some(s * s)) for s in c.scales]

  embed = lambda frozen, t_BL: tokenizer.apply(
    {'params': frozen['tokenizer']}, t_BL, method='embed'
  )
  inputs_BLC = one('. tokenizer', embed, frozen, t_BL)
  one(
    '. transformer',
    transformer,
    policy,
    jnp.repeat(label_P, R * pair),
    inputs_BLC.repeat(pair, 0),
    flops=flops,
  )
  one(
    '. sampler',
    sampler,
    keys_PR.reshape(-1),
    jax.random.normal(jax.random.key(2), (c.vocab,)),
    flops=0,
  )
  decode = lambda frozen, t_BL: run.tokenizer.decode(frozen, t_BL, None, None)
  one('decode', decode, frozen, t_BL)
  return out


def time_update(run, state, frozen, label_P, out, how):
  """Times the gradient of the loss, and the update: the gradient and the optimizer's step."""
  P, R, L = out.logp.shape
  batch = Experience(prompt=label_P, data=out.data)
  if run.config.objective.name == 'objectives.grpo':
    batch = batch.replace(
      old_logp=out.logp,
      row_mask=jnp.ones((P, R)),
      advantage=jax.random.normal(jax.random.key(1), (P, R)),
    )
  # One update of one minibatch; the gradient is of one of the parts that it accumulates.
  parts, accum = run.config.minibatches, run.config.accum
  batch = jax.tree.map(lambda x: x[0], update.split(batch, parts))
  few = jax.tree.map(lambda x: x[0], update.split(batch, accum))
  more = lambda n: dict(
    flops=work.program_flops(run, 'update') * parts // n, tokens=P * R // n * L, images=P * R // n
  )

  loss_of = bind_records(run.objective.loss, run.built.records())

  def gradient(params, frozen, batch):
    trained_params, frozen_params = optim.partition(params, run.optimizer.trained)
    loss = lambda trained_params: (
      loss_of(
        optim.merge(trained_params, frozen_params),
        frozen,
        batch,
        **run.config.objective.loss,
      )[0].total
    )
    return jax.grad(loss)(trained_params)

  measure_jitted('gradient', gradient, state.params, frozen, few, **how | more(parts * accum))
  _, update_jit = run.collect_and_update()
  program, holder = (
    update_jit.lower(state, frozen, batch).compile(),
    [state],
  )  # the state is donated

  def step():
    holder[0], facts = program(holder[0], frozen, batch)
    return facts

  measure('update', program, step, **how | more(parts))
