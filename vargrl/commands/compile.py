"""The command `compile`: all programs of an experiment for a TPU topology, without one: what fits,
what it costs, what travels.

The programs are those of the run itself, by the objective's own `collect` and the update, on
abstract arrays. With twice its images (--config.data.prompts=16 --config.accum=16 --effort=-1),
grpo_var_aesthetic.py:d30 on v5e:4x4 says, in short:

  weights, moments   1.94 GiB   policy 0.47  moments 0.94  tokenizer 0.03  reference 0.47  ..
  rollout           16.83 GiB (107%), its own 14.88   60.131 TFLOP 1.00 of analytic
                   all-gather               19 x,     3599.1 MiB sent by a device
                   1.00 of the 3592.9 MiB of all weights, gathered once in each pass
                     1.45 GiB  bf16[1,16,30,2,30,423,64] jit(sample)/.../concatenate
  rollout          does not fit into 15.75 GiB: it needs fewer data.prompts or ..
  decode             4.98 GiB ( 32%), its own 3.04   6.202 TFLOP
  rewards            2.25 GiB ( 14%), its own 0.30   2.595 TFLOP
  logprobs           3.23 GiB ( 20%), its own 1.28   61.531 TFLOP 1.02 of analytic
  update             4.83 GiB ( 31%), its own 2.88   216.122 TFLOP 1.20 of analytic (0.17 again)
                   all-gather             9768 x,   133094.2 MiB sent by a device
                   all-reduce             2673 x,     5606.1 MiB sent by a device
                   collective-permute    49232 x,    43033.2 MiB sent by a device
                   0.79 of the 229988.5 MiB of all weights, gathered once in each pass

GiB: all that lies on a device while the program runs (weights, optimizer, reference, reward
networks), its inputs, and its own: results, temporaries, code. A state that is replaced counts
once. TFLOP: the products of the compiled program, loops and remat included, against those that the
model needs (block-causal attention, nothing twice). What is above 1.00 and not made again is
attention that is computed and masked; products of Pallas kernels (policy.attention='splash') are
missing, and the line says so. The last line divides the bytes of all collectives by those of
gathering the weights once in each forward and backward pass and scattering the gradients once.
Where a device has few rows it may be below 1: what is multiplied with a weight is sent instead.

--effort=-1 compiles three to five times as fast. FLOPs stay as they are, bytes and memory may
differ: confirm a close fit without it. So compiled, GiB of 95.7, FLOPs of analytic, made again,
bytes of gathering once:

  vargpt_7b.py (10.5B), v5p:4x4x4      sft512, update     22.4   1.35   0.35   1.06
                                       dpo512, update     25.6   1.39   0.35   1.36
  grpo_vargpt_7b.py, v5p:4x4x4         rollout            34.9   1.05          0.95
                                       update             16.7   1.23   0.20   1.61
  vargpt_7b.py:1024, v5p:4x4x8         sft1024, update    22.4   1.15   0.30   1.06
"""

import dataclasses
from functools import partial
import math
import os
import re
import time

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from vargrl.io import text as io_text
from vargrl.parallel import hlo, place, rows, rules, topology
from vargrl.training import assemble, chain, flops
from vargrl.training.run import Run
from vargrl.types import offsets, sides

ADVICE = {
  'rollout': "fewer data.prompts or objective.collect.rollouts, rollout.weights='sharded', or more "
  'devices on the '
  "mesh's axes fsdp and tensor",
  'update': "a larger accum, policy.remat='blocks', or more devices on the mesh's axes fsdp and "
  'tensor',
  '': 'fewer data.prompts and objective.collect.rollouts (or data.batch), or more devices on the '
  "mesh's axes fsdp and "
  'tensor',
}


def main(flags):
  """Prints some lines for each program of each run. Returns the exit code, 1 if one does not fit;
  ValueError for what cannot be compiled. The process is left as it was: in a notebook, a TPU may be
  used after it."""
  found = chain.runs(flags.config) if not flags.run else [chain.select_run(flags.config, flags.run)]
  where = {name: flags.topology or config.get('pod', '') for name, config in found}
  if not all(where.values()):
    raise ValueError('compile: neither --topology nor a pod in the config found, one expected')
  fits, before = (
    True,
    (jax.config.jax_enable_compilation_cache, jax.config.jax_platforms, dict(os.environ)),
  )
  jax.config.update('jax_platforms', 'cpu')  # no TPU is asked for, there may be none
  enable_cache(False)
  try:
    for name, config in found:
      fits &= compile_run(name, config, where[name], flags.effort)
  finally:
    enable_cache(before[0])
    jax.config.update('jax_platforms', before[1])
    for name in os.environ.keys() - before[2].keys():
      del os.environ[name]
    os.environ.update(before[2])
  return 0 if fits else 1


def enable_cache(on):
  """Turns the cache of compiled programs on disk on or off. Without a TPU, programs for one are
  written but cannot be read back."""
  jax.config.update('jax_enable_compilation_cache', on)
  compilation_cache.reset_cache()  # or what was decided at the first compilation stays


def compile_run(name, config, where, effort):
  """Compiles all programs of one run; True if each fits."""
  devices = topology.devices(where)
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.init = {}  # weights are not needed, and need not be there
  run = Run(config, '.', inference_only=True, devices=devices)
  flops.check(run)
  run.rewards = assemble.rewards(config, run.built, abstract=True)
  shape = 'x'.join(str(n) for n in run.mesh.shape.values())
  print(
    f'{name or config.policy.name}: {len(devices)} devices of {where}, mesh {shape}, '
    f'{topology.memory_bytes(where) / 2**30:.4g} GiB each' + f', effort {effort:g}' * bool(effort)
  )
  with jax.set_mesh(run.mesh):
    frozen = {k: place.abstract_params(init, run.mesh) for k, init in run.built.frozen.items()}
    if run.rewards and run.rewards.weights:
      frozen['rewards'] = run.rewards.weights(run.mesh)
    call = Compiler(
      run,
      frozen,
      topology.memory_bytes(where),
      {'exec_time_optimization_effort': effort} if effort else {},
    )
    print(
      f'{"weights, moments":18} {gib(sum(call.held.values()))}   '
      + '  '.join(f'{k} {v / 2**30:.2f}' for k, v in call.held.items())
    )
    collect, update = run.collect_and_update()
    key = jax.eval_shape(lambda: jax.random.key(0))
    for kind, step in collect.variants.items():
      stage = LoweringStage(call, kind, step)
      batch = collect.run(stage, run.shapes.params, frozen, call.batch(), key).experience
      part = jax.tree.map(partial(minibatch, n=config.minibatches), batch)
      stage.call('update', update, run.shapes, frozen, part)
  return call.fits


def minibatch(x, n):
  """One of n minibatches of what leads with the rows."""
  return (
    x
    if n == 1
    else jax.ShapeDtypeStruct((x.shape[0] // n, *x.shape[1:]), x.dtype, sharding=x.sharding)
  )


def gib(size):
  return f'{size / 2**30:6.2f} GiB'


def device_bytes(x):
  """Bytes of an abstract array on each device."""
  shape = x.sharding.shard_shape(x.shape) if getattr(x, 'sharding', None) else x.shape
  return math.prod(shape) * getattr(x.dtype, 'itemsize', 8)


@dataclasses.dataclass(frozen=True)
class LoweringStage:
  """A step of training/stage.py without any device: every program is compiled and told, nothing
  runs. compiler: a Compiler. kind: of the step. number: a step of this kind."""

  compiler: 'Compiler'
  kind: str
  number: int
  abstract = True

  def call(self, name, function, *args):
    label = f'{name} ({self.kind})' if name and self.kind else name
    function = function if hasattr(function, 'lower') else jax.jit(function)
    return self.compiler(label, function, *args)

  lower = call

  def host(self, function, *like):
    """Abstract arrays of these (shape, dtype); None for what has none."""
    found = [self.compiler.rows(*one) for one in like]
    return found[0] if len(found) == 1 else tuple(found) or None

  def abstract_rows(self, shape, dtype):
    return self.compiler.rows(shape, dtype)

  def phase(self, name, x=None):
    """Nothing has run."""


class Compiler:
  """call(name, function, *args): compiles and tells; what it returns has shapes and shardings.

  held: {what: bytes} on each device, of all that is there whatever program runs.
  """

  def __init__(self, run, frozen, capacity, options):
    self.run, self.capacity, self.options, self.fits = run, capacity, options, True
    trees = run.shapes.params | {'moments': run.shapes.opt} | frozen
    self.held = {
      name: sum(map(device_bytes, jax.tree.leaves(tree))) for name, tree in trees.items()
    }
    self.known = {id(x) for x in jax.tree.leaves(trees)}

  def __call__(self, name, function, *args):
    began, lowered = time.perf_counter(), function.lower(*args)
    # What one program leaves for the next is there too; the state and the frozen weights always
    # are.
    more = sum(device_bytes(x) for x in jax.tree.leaves(args) if id(x) not in self.known)
    try:
      program = lowered.compile(compiler_options=self.options)
    except jax.errors.JaxRuntimeError as e:
      if 'RESOURCE_EXHAUSTED' not in str(e):
        raise
      print(f'{name:18} {memory_summary(str(e))}')
      self.print_misfit(
        name,
        hlo.parse(lowered.as_text('hlo', debug_info=True)),
        ', on all devices together',
        hlo.UNFUSED_KINDS,
      )
      return self.whole(lowered.out_info)
    if name:
      self.print_costs(name, program, more, time.perf_counter() - began)
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      lowered.out_info,
      program.output_shardings,
    )

  def print_costs(self, name, program, more, seconds):
    memory, source = program.memory_analysis(), program.as_text()
    text = hlo.parse(source)
    own = (
      memory.temp_size_in_bytes
      + memory.generated_code_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
    )  # the state is donated: the new one takes its place
    need = sum(self.held.values()) + more + own
    counted = hlo.flops(text, lambda scope: 'again' if 'rematted_computation' in scope else 'once')
    total, wanted = (
      sum(counted.values()),
      flops.program_flops(self.run, *split_name(name)) / self.run.mesh.size,
    )
    ratio = f'{total / wanted:.2f} of analytic' if wanted else ''
    again = (
      f' ({counted["again"] / (wanted or total):.2f} made again)' if counted.get('again') else ''
    )
    if hlo.SPLASH_KERNEL in source:
      again += ', without those of the splash kernel'
    print(
      f'{name:18} {gib(need)} ({need / self.capacity:4.0%}), its own {own / 2**30:.2f}   '
      f'{total / 1e12:.3f} TFLOP '
      f'{ratio}{again}   compiled in {seconds:.1f} s',
      flush=True,
    )
    sent = hlo.collectives(text)
    for kind, (count, travels) in sent.items():
      print(f'{"":18} {kind:20} {count:6} x, {travels / 2**20:10.1f} MiB sent by a device')
    least, travels = (
      flops.traffic(self.run, name.partition(' (')[0]),
      sum(t for _, t in sent.values()),
    )
    if least:
      print(
        f'{"":18} {travels / least:.2f} of the {least / 2**20:.1f} MiB of all weights, gathered '
        'once in each pass'
      )
    if need > self.capacity:
      self.print_misfit(name, text)

  def print_misfit(self, name, program, where='', kinds=None):
    """Names the largest buffers, and what would help."""
    self.fits = False
    for what, held in sorted(self.held.items(), key=lambda kv: -kv[1])[:4]:
      print(f'{"":18} {gib(held)}  {what}')
    for made, what in hlo.largest_arrays(program, 6, kinds):
      print(f'{"":18} {gib(made)}  {what}{where}')
    advice = ADVICE.get(name.partition(' (')[0], ADVICE[''])
    print(
      f'{name:18} does not fit into {self.capacity / 2**30:.4g} GiB: it needs {advice}', flush=True
    )

  def rows(self, shape, dtype):
    axes = (
      rows.mesh_axes(self.run.mesh, *shape[:2]) if len(shape) > 1 else (self.row_axes(shape[0]),)
    )
    return jax.ShapeDtypeStruct(
      shape, dtype, sharding=NamedSharding(self.run.mesh, PartitionSpec(*axes))
    )

  def row_axes(self, size):
    mesh = self.run.mesh
    return rules.ROW_AXES if size % (mesh.shape['data'] * mesh.shape['fsdp']) == 0 else ()

  def whole(self, tree):
    here = NamedSharding(self.run.mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)

  def batch(self):
    """What the data set gives a step: labels, and pictures or tokens."""
    data, policy = self.run.config.data, self.run.built.learner
    rows, known = data.prompts if 'prompts' in data else data.batch, {}
    if hasattr(self.run.data_module, 'shapes'):
      known = self.run.data_module.shapes(data)

    def one(feature):
      if feature == 'label':
        return (rows,), np.int32
      if feature in known or feature in policy.features:
        shape, dtype = (known or policy.features)[feature]
        return (rows, *shape), np.dtype(dtype)
      if 'size' in data:
        return (rows, *sides(data.size), 3), np.float32
      return (rows, offsets(policy.config.scales)[-1]), np.int32

    here = NamedSharding(self.run.mesh, PartitionSpec(self.row_axes(rows)))
    return {f: jax.ShapeDtypeStruct(*one(f), sharding=here) for f in self.run.features()}


def split_name(name):
  """'update (prefix)' -> ('update', 'prefix')."""
  program, _, kind = name.partition(' (')
  return program, kind.rstrip(')')


def memory_summary(message):
  """The compiler's words about what it could not place: how much, and the largest buffers."""
  lines = [line.strip() for line in io_text.split_lines(message) if line.strip()]
  used = next((line for line in lines if 'Exceeded' in line or 'exceeds' in line), lines[0])
  used = re.sub(r'^.*?(?=Used |Ran out)', '', used)
  found, buffers = re.compile(r'(?:\d+\. )?Size: (.*)'), []
  for i, line in enumerate(lines):
    if not (size := found.fullmatch(line)):
      continue
    about = dict(x.partition(': ')[::2] for x in lines[i + 1 : i + 6] if ': ' in x)
    name = re.search(r'op_name="([^"]*)"', about.get('Operator', ''))
    buffers.append(
      f'{size[1]:>8}  {about.get("Shape", "").split("{")[0]}  {name[1] if name else ""}'
    )
  return used + ''.join(f'\n{"":18} {line}' for line in buffers[:6])
