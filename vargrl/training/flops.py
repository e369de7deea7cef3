"""How much arithmetic the programs of a run have to do and how many bytes have to travel, whatever
a compiler makes of them; and how many tokens and pictures a step learns from."""

import itertools
import math

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from vargrl import contracts
from vargrl.models.layers import lora
from vargrl.parallel import hlo
from vargrl.training import optim
from vargrl.training.stage import Stage
from vargrl.types import RowShape, sides


def step_passes(run):
  """{kind of step: {program: [types.Pass]}} of a run's objective, {} if it trains no policy.
  ValueError where it trains one and does not say its passes."""
  found = run.objective.passes(run.built.learner, run.config.objective.collect)
  if not found and run.policy.score is not None:
    raise ValueError(
      f'objective: {run.config.objective.name} says no passes, expected those of a step of '
      f'{run.config.policy.name}, see types.Pass'
    )
  return found


def check(run):
  """Raises ValueError where the passes of a step or their FLOPs cannot be said: at the start of a
  run, not when it times its first step."""
  for programs in step_passes(run).values():
    for p in itertools.chain(*programs.values()):
      pass_flops(run, p)


def program_flops(run, name, kind=''):
  """Of one program of a run, all devices together: block-causal attention counted, recomputation
  not; 0 for a program that makes no pass of a policy, such as decoding."""
  found = step_passes(run)
  if not found:
    return unlisted_update(run) if name == 'update' else 0
  passes = found[kind].get(name, [])
  total = sum(pass_flops(run, p) for p in passes)
  return total / run.config.minibatches if name == 'update' else total


def pass_flops(run, p):
  """Of one types.Pass over all prompts of a batch."""
  config = run.config
  if p.weights == 'reference' and not config.reference:
    return 0
  plan = run.built.plan
  guided = any(contracts.offers(s.c, 'guided') for s in plan)
  logp_guided = any(contracts.offers(s.c, 'logp_guided') for s in plan) and not run.built.packed
  python, shape = contracts.module(config.policy.name, 'policy'), row_shape(run, p)
  parts = python.flops(run.policy.config, shape)
  rows = p.rows * (config.data.prompts if 'prompts' in config.data else config.data.batch)
  if p.sampled:  # of a guidance pair the text is sampled once
    pictures = shape._replace(length=shape.length - shape.text, text=0)
    again = sum(python.flops(run.policy.config, pictures).values()) if guided else 0
    return rows * (sum(parts.values()) + again)
  if not p.learned:
    return rows * sum(parts.values()) * (2 if logp_guided else 1)
  trained, total = run.optimizer.trained['policy'], 0
  for part, count in parts.items():
    if part and part not in trained:
      raise ValueError(
        f'{config.policy.name}.flops: part {part!r} found, one of the weights {sorted(trained)} '
        "expected, or ''"
      )
    one = passes_of_learning(trained[part] if part else trained, part == 'vision')
    second = {'cond': 0, 'guided': one, 'guided_stopgrad': 1}
    logp_of = 'cond'
    if logp_guided:
      logp_of = next(s.c.logp_of for s in plan if contracts.offers(s.c, 'logp_guided'))
    total += count * (one + second[logp_of])
  return rows * total


def passes_of_learning(trained, first=False):
  """Cost of forward + backward in units of one forward pass: 3, or 2 with frozen weights, or 1
  where nothing is trained and nothing with a gradient comes in (first)."""
  if any(jax.tree.leaves(lora.base_params(trained))):
    return 3
  return 1 if first and not any(jax.tree.leaves(trained)) else 2


def row_shape(run, p):
  """The RowShape of a Pass of a run."""
  data, spans = run.config.data, run.built.learner.spans
  if run.built.packed:
    pictures = data.max_images if 'max_images' in data else 0
    L = run.policy.config.decoder.length if pictures else 0
    return RowShape(
      data.length, data.length - pictures * L, pictures, L, 0, data.max_context, data.max_patches
    )
  text = sum(s.stop - s.start for s in spans if not s.picture)
  images = [s.stop - s.start for s in spans if s.picture]
  L = (p.actions or spans[-1].stop) if images and not text else (images or [0])[0]
  prompt = data.length if 'length' in data else 0
  return RowShape(text + sum(images), text, len(images), L, p.skip, prompt + text, 0)


def unlisted_update(run):
  """Of the update of a tokenizer or classifier: the products of its program, by its jaxpr, that of
  the backward pass and of what is made again included."""
  rows = run.config.data.batch // run.config.minibatches
  image = jax.ShapeDtypeStruct((rows, *sides(run.config.data.size), 3), np.float32)
  batch = {'image': image, 'label': jax.ShapeDtypeStruct((rows,), np.int32)}
  key = jax.eval_shape(lambda: jax.random.key(0))
  frozen = {k: nn.unbox(jax.eval_shape(init, key)) for k, init in run.built.frozen.items()}
  collect, update = run.collect_and_update()

  def program(state, frozen, batch, key):
    experience = collect.run(Stage(0), state.params, frozen, batch, key).experience
    return update(state, frozen, experience)

  return jaxpr_flops(jax.make_jaxpr(program)(run.shapes, frozen, batch, key).jaxpr)


def jaxpr_flops(jaxpr):
  """Multiply-adds x 2 of all products of a jaxpr, loops of known length included."""
  total = 0
  for eqn in jaxpr.eqns:
    name, params = eqn.primitive.name, eqn.params
    if name == 'dot_general':
      (contract, _), _ = params['dimension_numbers']
      depth = math.prod(eqn.invars[0].aval.shape[i] for i in contract)
      total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)
    elif name == 'conv_general_dilated':
      kernel = eqn.invars[1].aval.shape
      out_features = params['dimension_numbers'].rhs_spec[0]
      depth = math.prod(kernel) // kernel[out_features]
      total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)
    times = params['length'] if name == 'scan' else 1
    total += times * sum(jaxpr_flops(inner) for inner in jax.extend.core.jaxprs_in_params(params))
  return total


def step_flops(run, kind=''):
  """Of all programs of a step."""
  found = step_passes(run)
  names = [name for name in found[kind] if name != 'update'] if found else []
  total = sum(program_flops(run, name, kind) for name in names)
  return total + run.updates_per_step * program_flops(run, 'update', kind)


def learning_counts(experience, spans):
  """(tokens, pictures), float32 scalars: what a step learns from, of rows with a verdict: actions
  that are in the loss, and pictures of which some action is; pictures alone where a tokenizer or
  classifier is trained."""
  if experience.data is None:
    return jnp.float32(0), jnp.float32(len(experience.image))
  lead = jax.tree.leaves(experience.data)[0]
  row_mask = jnp.ones(lead.shape[:2]) if experience.row_mask is None else experience.row_mask
  mask = experience.loss_mask
  if mask is None:
    mask = jnp.ones((1, 1, action_count(experience, spans)))
  counted = (jnp.broadcast_to(mask, (*row_mask.shape, mask.shape[-1])) > 0) * row_mask[..., None]
  pictures = 0.0
  for span in spans:
    if span.picture and not span.given:
      starts = span.start + np.flatnonzero(np.diff(span.part_A, prepend=1) < 0)
      ends = [*starts[1:], span.stop]
      for a, b in zip(starts, ends):
        pictures += (counted[..., a : min(b, counted.shape[-1])].max(-1) > 0).sum()
  return counted.sum(), jnp.float32(pictures)


def action_count(experience, spans):
  """Of a row: those of all spans, or of the first few scales of a picture."""
  if experience.old_logp is not None:
    return experience.old_logp.shape[-1]
  tokens = experience.data[spans[0].name].get('tokens')
  return spans[-1].stop if len(spans) > 1 or tokens is None else tokens.shape[2]


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
  if not step_passes(run) or mesh.shape['tensor'] > 1:
    return 0
  policy, itemsize = run.shapes.params['policy'], jnp.dtype(run.policy.config.dtype).itemsize
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
  trained, _ = optim.partition(run.shapes.params, run.optimizer.trained)
  held = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * itemsize
  scattered = sum(
    hlo.ring_bytes('reduce-scatter', held(x), parts(x))
    + hlo.ring_bytes('all-reduce', held(x), mesh.size // parts(x))
    for x in jax.tree.leaves(trained['policy'])
  )
  passes = next(iter(step_passes(run).values()))['update']
  reference = config.reference and any(p.weights == 'reference' for p in passes)
  return config.accum * ((3 if reference else 2) * gathered + scattered)
