"""Checkpoint -> one file in the layout of the reference implementation, which loads it strictly."""
from functools import partial
import math
import pathlib

import jax

from vargrl import build, chain
from vargrl.checkpoint import files, peft, store, torch
from vargrl.models import lora
from vargrl.parallel import mesh as meshes
from vargrl.parallel import place


def main(flags):
  """Writes --out from the last good checkpoint of a run: its policy, or what was the policy of that run.

  The adapters of a LoRA run are merged into a file; a path without an ending gets them alone, as PEFT's folder.
  """
  (name, config), root = chain.chosen(flags.config, flags.run), pathlib.Path(flags.workdir)
  python, model = build.module(config.policy, 'policy')
  adapted = bool(getattr(model.c, 'lora_rank', 0))
  alone = adapted and not pathlib.Path(flags.out).suffix
  try:
    if not alone: files.check_ending(flags.out)
  except ValueError as e:
    raise ValueError(f'--out: {e}' + (', or a folder for the adapters alone' if adapted else '')) from e
  if not hasattr(python, 'torch_layouts'):
    raise ValueError(f'--run: {name or root.name} trains {config.policy.name}, which has no reference layout')
  shapes = place.abstract(partial(python.init, model), meshes.make(config.mesh))
  step, params, _ = store.load(root / name / 'checkpoints', shapes, item='params/policy')
  layout = python.torch_layouts(model.c)[0]
  if alone: peft.write(flags.out, layout.table, params, alpha=model.c.lora_alpha)
  else: torch.save(flags.out, layout, lora.merge(params, alpha=model.c.lora_alpha) if adapted else params)
  if alone: params = lora.split(params)[1]
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  print(f'step {step}: {count:,} parameters of {config.policy.name} {config.policy.size} in {flags.out}')
