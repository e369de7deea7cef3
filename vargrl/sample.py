"""Checkpoint + classes -> images."""
import pathlib

import jax
import numpy as np

from vargrl import chain, pictures
from vargrl.eval import samples


def main(flags):
  """Writes OUT.png (one row per class) and OUT.npz (image uint8 [B, y, x, 3], label int32 [B])."""
  name, config = chain.chosen(flags.config, flags.run)
  root = pathlib.Path(flags.workdir)
  if 'rollout' not in config: raise ValueError(f'--run: {name or root.name} has no policy to sample from')
  if flags.each < 1: raise ValueError(f'--each: {flags.each}, expected at least 1')
  classes = classes_of(config, flags.labels)
  run, params, frozen, step = chain.restored(config, root / name, root)
  with jax.set_mesh(run.mesh):
    image_Byxc, label_B = samples.sampler(run.models)(
        params, frozen, classes=classes, each=flags.each, seed=flags.seed)
  run.models.close()
  out = flags.out or str(root / 'samples')
  pictures.save_png(f'{out}.png', pictures.grid(image_Byxc, [f'class {k}' for k in label_B],
                                                columns=flags.each))
  np.savez(f'{out}.npz', image=image_Byxc, label=label_B.astype(np.int32))
  print(f'step {step}: {len(image_Byxc)} images in {out}.png and {out}.npz')


def classes_of(config, labels):
  """--labels as ints, checked against the model."""
  from vargrl import build
  count = build.module(config.policy, 'policy')[1].c.classes
  if not labels: return np.arange(min(count, 10))
  if bad := [k for k in labels if not (k.isdigit() and int(k) <= count)]:
    raise ValueError(f'--labels: {bad[0]!r}, expected classes 0 .. {count - 1} ({count}: unconditional)')
  return np.array([int(k) for k in labels])
