"""Times rollout, decoding and update of an experiment's GRPO run, on random weights.

Utilisation is analytic FLOPs (block-causal attention counted, recomputation not) over the matmul peak
measured in the same process, so that it means the same on CPU, GPU and TPU.
"""
import time

import jax
import jax.numpy as jnp

from vargrl import chain
from vargrl.models import lora, var
from vargrl.run import Run
from vargrl.types import Experience


def timed(call, repeats):
  """(seconds of the fastest of `repeats` calls after a warm-up, the last result)."""
  out, best = jax.block_until_ready(call()), float('inf')
  for _ in range(repeats):
    began = time.perf_counter()
    out = jax.block_until_ready(call())
    best = min(best, time.perf_counter() - began)
  return best, out


def peak(dtype, repeats):
  """FLOP/s of the fastest of a few square matrix products on one device."""
  sizes = (512, 1024, 2048) if jax.default_backend() == 'cpu' else (4096, 8192, 16384)
  dot, best = jax.jit(jnp.dot), 0.
  for n in sizes:
    x = jax.random.normal(jax.random.key(0), (n, n)).astype(dtype)
    best = max(best, 2 * n ** 3 / timed(lambda x=x: dot(x, x), repeats)[0])
  return best


def main(flags):
  """Prints one line per piece."""
  _, config = chain.chosen(flags.config, flags.run)
  if config.objective.name != 'objectives.grpo':
    raise ValueError(f'bench: {config.objective.name} found, a run of objectives.grpo expected')
  config = config.copy_and_resolve_references()
  with config.unlocked(): config.init = {}
  run = Run(config, '.', lean=True)
  c, tokens = run.models.config, run.models.config.length
  P, R = config.data.prompts, config.objective.collect.rollouts
  with jax.set_mesh(run.mesh):
    best = peak(c.dtype, flags.repeats) * run.mesh.size
    print(f'{config.policy.name} {config.policy.size}: {P} prompts x {R}, {tokens} tokens, {c.dtype}, '
          f'{run.mesh.size} x {jax.devices()[0].device_kind}, matmul peak {best / 1e9:.0f} GFLOP/s')
    whole = any(jax.tree.leaves(lora.off(run.trained['policy'])))
    pieces(run, P, R, passes(config, whole), best, flags.repeats, var.flops(c))


def line(name, seconds, images, flops, best, more=''):
  print(f'{name:10} {seconds:9.3f} s   {images / seconds:9.2f} images/s   '
        f'{flops / seconds / 1e9:9.1f} GFLOP/s   {flops / seconds / best:6.1%} of peak{more}')


def passes(config, whole):
  """(forward passes of a rollout, of an update), per image; a backward pass counts as two, as one if the
  weights are not the `whole` that is trained but a few beside them."""
  pair = 2 if config.rollout.guidance else 1
  record = 1 if config.rollout.record == 'cond' else pair
  one = 3 if whole else 2
  policy = one + {'guided': one, 'guided_stopgrad': 1}[config.rollout.record] if record == 2 else one
  return pair, policy + record * config.reference


def pieces(run, P, R, passes, best, repeats, forward):
  """Rollout, decode and update, each timed alone."""
  models, (state, _), frozen = run.models, run.initial(), run.frozen(lambda _: None)
  label_P = jnp.arange(P, dtype=jnp.int32) % models.classes
  keys_PR = models.keys(jax.random.key(0), P, R)
  generate = jax.jit(models.generate)
  seconds, out = timed(lambda: generate(state.params['policy'], frozen, label_P, keys_PR), repeats)
  line('rollout', seconds, P * R, P * R * passes[0] * forward, best)

  t_BL = out.tokens.reshape(P * R, -1)
  decode = jax.jit(models.decode).lower(frozen, t_BL).compile()
  cost = (decode.cost_analysis() or {}).get('flops', 0)
  seconds, _ = timed(lambda: decode(frozen, t_BL), repeats)
  line('decode', seconds, P * R, cost, best)

  ones = jnp.ones((P, R))
  batch = Experience(label=label_P, tokens=out.tokens, old=out.logp, weight=ones,
                     advantage=jax.random.normal(jax.random.key(1), (P, R)))
  _, update = run.pieces()
  holder = [state]

  def step():
    holder[0], facts = update(holder[0], frozen, batch)
    return facts
  seconds, _ = timed(step, repeats)
  rate = f'   {P * R * models.config.length / seconds:9.0f} tokens/s'
  line('update', seconds, P * R, P * R * passes[1] * forward, best, rate)
