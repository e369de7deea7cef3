"""Checkpoint -> one file in the layout of the reference implementation, which loads it strictly."""
from functools import partial
import math
import pathlib

import jax

from vargrl import build, chain
from vargrl.checkpoint import files, store, torch
from vargrl.parallel import mesh as meshes


def main(flags):
  """Writes --out from the last good checkpoint of a run: its policy, or what was the policy of that run."""
  (name, config), root = chain.chosen(flags.config, flags.run), pathlib.Path(flags.workdir)
  try:
    files.check_ending(flags.out)
  except ValueError as e:
    raise ValueError(f'--out: {e}') from e
  python, model = build.module(config.policy, 'policy')
  if not hasattr(python, 'torch_layouts'):
    raise ValueError(f'--run: {name or root.name} trains {config.policy.name}, which has no reference layout')
  shapes = build.abstract(partial(python.init, model), meshes.make(config.mesh))
  step, params, _ = store.load(root / name / 'checkpoints', shapes, item='params/policy')
  torch.save(flags.out, python.torch_layouts(model.c)[0], params)
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  print(f'step {step}: {count:,} parameters of {config.policy.name} {config.policy.size} in {flags.out}')
