"""How much arithmetic the programs of a run have to do and how many bytes have to travel, whatever
a compiler makes of them."""

import math

import jax
import jax.numpy as jnp

from vargrl.models.layers import lora
from vargrl.parallel import hlo
from vargrl.training import assemble, optim
from vargrl.types import lookup

COUNTED = (
  'objectives.grpo',
  'objectives.sft',
  'objectives.sft_bits',
  'objectives.sft_unified',
  'objectives.dpo',
  'objectives.dpo_unified',
)


def passes(config, one):
  """(forward passes of a rollout, of an update), per image. one: those that a forward pass and its
  backward pass are, see `learning`."""
  sampler = assemble.sampler(config)
  pair = 2 if sampler.paired else 1
  record = 2 if sampler.records_pair else 1
  policy = one + {'guided': one, 'guided_stopgrad': 1}[sampler.record] if record == 2 else one
  return pair, policy + record * (config.reference and config.objective.name == 'objectives.grpo')


def learning(trained, first=False):
  """Passes that a forward pass and its backward pass are: the gradient of what comes in is one,
  that of the weights another. first: nothing comes in that has a gradient."""
  if any(jax.tree.leaves(lora.base_params(trained))):
    return 3
  return 1 if first and not any(jax.tree.leaves(trained)) else 2


def flops(run, name):
  """Of one program of a run, all devices together: block-causal attention counted, recomputation
  not; 0 if it is not counted here."""
  config = run.config
  if config.objective.name not in COUNTED or 'rollout' not in config:
    return 0
  parts, trained = row(run), run.optimizer.trained['policy']
  rows = config.data.prompts if 'prompts' in config.data else config.data.batch
  rows *= getattr(run.objective, 'ROWS', 0) or config.objective.collect.get('rollouts', 1)
  if name == 'update':
    # What reads pictures is the first of a unified policy's parts.
    one = {part: learning(trained[part] if part else trained, part == 'vision') for part in parts}
    return (
      rows
      * sum(passes(config, one[part])[1] * count for part, count in parts.items())
      / config.minibatches
    )
  record = 2 if assemble.sampler(config).records_pair else 1
  count = {'rollout': passes(config, 3)[0], 'logprobs': record}.get(name, 0)
  return rows * count * sum(parts.values())


def row(run):
  """{part: of one forward pass over one row}: a picture, or words and pictures. A policy that is
  one has the part ''.
  """
  config, count, plan = run.config, lookup(run.config.policy.name, 'flops').flops, run.models.plan
  if run.models.packed is None:
    return {'': count(run.models.config)}
  if 'batch' in config.data:
    return count(
      run.models.config,
      config.data.length,
      config.data.max_patches,
      config.data.max_images,
      config.data.max_context,
    )
  total, pictures = sum(length for _, length in plan), sum(kind == 'bits' for kind, _ in plan)
  return count(
    run.models.config,
    total,
    0,
    pictures,
    config.data.length + sum(n for kind, n in plan if kind == 'words'),
  )


def step(run):
  """Of all programs of a step that are counted; 0 if none is."""
  collect = run.config.objective.collect
  names = ['rollout'] if 'rollouts' in collect else []
  if 'old' in collect and (collect.old == 'trainer' or collect.kl_reward):
    names += ['logprobs'] * (2 if collect.kl_reward else 1)  # that of the reference too
  return sum(flops(run, name) for name in names) + run.updates_per_step * flops(run, 'update')


# bfloat16 FLOP/s of a device, from the makers' pages. A v4 or v5p chip is one device, a tpu7x chip
# two.
PEAKS = {
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5': 459e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
  'TPU v6e': 918e12,
  'TPU7x': 1154e12,
  'NVIDIA A100': 312e12,
  'NVIDIA H100': 989e12,
  'NVIDIA H100 PCIe': 756e12,
  'NVIDIA H100 NVL': 835e12,
  'NVIDIA H200': 989e12,
}


def peak(kind):
  """FLOP/s of the device kind with the longest name that fits, None if it is not known."""
  return next(
    (PEAKS[name] for name in sorted(PEAKS, key=len, reverse=True) if kind.startswith(name)), None
  )


def traffic(run, name):
  """The least bytes that each device sends in a program that holds the policy's weights in parts
  (FSDP) and spreads the rows: the weights gathered once in a forward pass of policy or reference
  and once in a backward pass, the gradients scattered once. 0 if that is not counted here; where
  weights are on the axis `tensor`, much else travels."""
  config, mesh = run.config, run.mesh
  if 'rollout' not in config or mesh.shape['tensor'] > 1:
    return 0
  policy, itemsize = run.shapes.params['policy'], jnp.dtype(run.models.config.dtype).itemsize
  parts = lambda x: math.prod(x.shape) // math.prod(x.sharding.shard_shape(x.shape))
  gathered = sum(
    hlo.ring_bytes('all-gather', math.prod(x.shape) * itemsize, parts(x))
    for x in jax.tree.leaves(policy)
  )
  if name == 'rollout':
    return gathered
  if name == 'logprobs':
    return gathered * (2 if config.objective.collect.get('kl_reward', 0) else 1)
  if name != 'update':
    return 0
  learned = jax.tree.leaves(optim.partition(run.shapes.params, run.optimizer.trained)[0]['policy'])
  held = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * itemsize
  scattered = sum(
    hlo.ring_bytes('reduce-scatter', held(x), parts(x))
    + hlo.ring_bytes('all-reduce', held(x), mesh.size // parts(x))
    for x in learned
  )
  reference = config.reference and config.objective.name in ('objectives.grpo', 'objectives.vmr')
  return config.accum * ((3 if reference else 2) * gathered + scattered)
