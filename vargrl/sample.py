"""Checkpoint + classes -> images."""
import pathlib

import jax
import numpy as np

from vargrl import build, chain, pictures
from vargrl import experiment as experiments
from vargrl.eval import samples


def draw(experiment, workdir, *, labels=(), each=8, seed=0, run=''):
  """(image_Byxc uint8, label_B) of the last good checkpoint: `each` images of every class in `labels`.

  experiment: 'experiments/NAME.py[:variant]', trained in `workdir`. labels: classes, all (at most 10)
  if empty. run: of a chain; its last one if empty.
  """
  return images(experiments.load(experiment), workdir, labels=labels, each=each, seed=seed, run=run)[:2]


def images(config, workdir, *, labels, each, seed, run):
  """(image_Byxc uint8, label_B, step of the checkpoint)."""
  name, config = chain.chosen(config, run)
  root = pathlib.Path(workdir)
  if 'rollout' not in config: raise ValueError(f'--run: {name or root.name} has no policy to sample from')
  if each < 1: raise ValueError(f'--each: {each}, expected at least 1')
  classes = classes_of(config, labels)
  run = chain.lean(config, root)
  with jax.set_mesh(run.mesh):
    params, frozen, step = chain.restored(run, root / name)
    image_Byxc, label_B = samples.sampler(run.models)(params, frozen, classes=classes, each=each, seed=seed)
  return image_Byxc, label_B, step


def main(flags):
  """Writes OUT.png (one row per class) and OUT.npz (image uint8 [B, y, x, 3], label int32 [B])."""
  image_Byxc, label_B, step = images(flags.config, flags.workdir, labels=flags.labels, each=flags.each,
                                     seed=flags.seed, run=flags.run)
  out = flags.out or str(pathlib.Path(flags.workdir) / 'samples')
  pictures.save_png(f'{out}.png', pictures.grid(image_Byxc, [f'class {k}' for k in label_B],
                                                columns=flags.each))
  np.savez(f'{out}.npz', image=image_Byxc, label=label_B.astype(np.int32))
  print(f'step {step}: {len(image_Byxc)} images in {out}.png and {out}.npz')


def classes_of(config, labels):
  """Labels as ints, checked against the model."""
  count = build.module(config.policy, 'policy')[1].c.classes
  if not len(labels): return np.arange(min(count, 10))
  if bad := [k for k in map(str, labels) if not (k.isdigit() and int(k) <= count)]:
    raise ValueError(f'--labels: {bad[0]!r}, expected classes 0 .. {count - 1} ({count}: unconditional)')
  return np.array([int(k) for k in labels])
