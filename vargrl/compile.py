"""Compiles every program of an experiment for a TPU topology, without a TPU: what fits, what it costs, what travels.

The programs are those of the run itself, by the objective's own `programs` and the update, on abstract arrays.
"""
from functools import partial
import time

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from vargrl import chain, work
from vargrl.parallel import hlo, place, rules, topology
from vargrl.run import Run


class Unfit(RuntimeError):
  """A program that the compiler found too large for a device."""


def main(flags):
  """Prints one line per program of each run; ValueError, hence exit code 2, for what cannot be compiled."""
  found = chain.runs(flags.config) if not flags.run else [chain.chosen(flags.config, flags.run)]
  for name, config in found:
    where = flags.topology or config.get('pod', '')
    if not where: raise ValueError('--topology is missing, and the config names no pod')
    if not compiled(name, config, where): raise SystemExit(1)


def compiled(name, config, where):
  """Compiles all programs of one run; True if each fits."""
  devices = topology.devices(where)
  config = config.copy_and_resolve_references()
  with config.unlocked(): config.init = {}  # weights are not needed, and need not be there
  run = Run(config, '.', lean=True, devices=devices)
  call = Compiler(run, where)
  shape = 'x'.join(str(n) for n in run.mesh.shape.values())
  print(f'{name or config.policy.name}: {len(devices)} devices of {where}, mesh {shape}, '
        f'{topology.memory(where) / 2 ** 30:.0f} GiB each')
  with jax.set_mesh(run.mesh):
    frozen = {k: place.abstract(init, run.mesh) for k, init in run.built.frozen.items()}
    collect, update = run.pieces()
    key = jax.eval_shape(lambda: jax.random.key(0))
    for plan, batch in collect.programs(call, run.shapes.params, frozen, call.batch(), key):
      part = jax.tree.map(partial(cut, n=config.minibatches), batch)
      call(f'update ({plan})' if plan else 'update', update, run.shapes, frozen, part)
  return call.fits


def cut(x, n):
  """One of n minibatches of what leads with the rows."""
  return x if n == 1 else jax.ShapeDtypeStruct((x.shape[0] // n, *x.shape[1:]), x.dtype, sharding=x.sharding)


class Compiler:
  """call(name, function, *args) of types.Collect: compiles and tells; what it returns has shapes and shardings."""

  def __init__(self, run, where):
    self.run, self.capacity, self.fits = run, topology.memory(where), True

  def __call__(self, name, function, *args):
    began, lowered = time.perf_counter(), function.lower(*args)
    try:
      program = lowered.compile()
    except jax.errors.JaxRuntimeError as e:
      if 'RESOURCE_EXHAUSTED' not in str(e): raise
      self.fits = False
      print(f'{name:18} does not fit: {too_large(str(e))}')
      return self.whole(lowered.out_info)
    if name: self.tell(name, program, time.perf_counter() - began)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), lowered.out_info,
                        program.output_shardings)

  def tell(self, name, program, seconds):
    memory = program.memory_analysis()
    need = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes \
        + memory.temp_size_in_bytes
    cost, counted = program.cost_analysis() or {}, work.flops(self.run, name) / self.run.mesh.size
    ratio = f'{cost.get("flops", 0) / counted:5.2f} of analytic' if counted else ''
    print(f'{name:18} {need / 2 ** 30:6.2f} GiB ({need / self.capacity:4.0%})  {cost.get("flops", 0) / 1e12:8.3f} TFLOP '
          f'{ratio:18} compiled in {seconds:5.1f} s', flush=True)
    for kind, (count, size) in hlo.collectives(program.as_text()).items():
      print(f'{"":18} {kind:20} {count:6} x, {size / 2 ** 20:10.1f} MiB a device')
    if need > self.capacity:
      self.fits = False
      print(f'{"":18} does not fit into {self.capacity / 2 ** 30:.0f} GiB')

  def rows(self, shape, dtype):
    axes = rules.rows(self.run.mesh, *shape[:2]) if len(shape) > 1 else (self.spread(shape[0]),)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.run.mesh, PartitionSpec(*axes)))

  def spread(self, size):
    mesh = self.run.mesh
    return rules.ROWS if size % (mesh.shape['data'] * mesh.shape['fsdp']) == 0 else ()

  def whole(self, tree):
    here = NamedSharding(self.run.mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), tree)

  def batch(self):
    """What the data set gives a step: labels, and pictures or tokens."""
    data, models = self.run.config.data, self.run.models
    rows = data.prompts if 'prompts' in data else data.batch
    def one(feature):
      if feature == 'label': return (rows,), np.int32
      if 'size' in data: return (rows, data.size, data.size, 3), np.float32
      return (rows, sum(s * s for s in models.scales)), np.int32
    here = NamedSharding(self.run.mesh, PartitionSpec(self.spread(rows)))
    return {f: jax.ShapeDtypeStruct(*one(f), sharding=here) for f in self.run.objective.FEATURES}


def too_large(message):
  """The compiler's words about what it could not place: how much, and the largest buffers."""
  lines = [line.strip() for line in message.splitlines() if line.strip()]
  sizes = [line for line in lines if line.startswith('Size:') or 'hbm' in line.lower()]
  return ' '.join(lines[:1]) + ''.join(f'\n{"":20}{line}' for line in sizes[:8])
