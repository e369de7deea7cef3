"""Checkpoint + classes -> images."""

from concurrent.futures import ThreadPoolExecutor
import difflib
import json
import os
import pathlib
import zipfile

import jax
import numpy as np
from numpy.lib import format as npy

from vargrl.checkpoint import digest
from vargrl.commands import experiment as experiments
from vargrl.data import image, names
from vargrl.eval import samples
from vargrl.parallel import rows
from vargrl.reporting import images as pictures
from vargrl.training import assemble, chain

ABOUT = '.samples.json'  # in a folder of images: what they were drawn from


def draw(experiment, workdir, *, labels=(), each=8, seed=0, run='', preset=''):
  """(image_Byxc uint8, label_B) of the last good checkpoint: `each` images of every class in
  `labels`.

  experiment: 'experiments/NAME.py[:variant]', trained in `workdir`, or its config. labels: classes,
  all (at most 10) if empty. run: of a chain; its last one if empty. preset: the sampler's settings,
  the run's own if ''."""
  config = (
    experiments.load(experiment) if isinstance(experiment, (str, os.PathLike)) else experiment
  )
  return images(config, workdir, labels=labels, each=each, seed=seed, run=run, preset=preset)[:2]


def images(config, workdir, *, labels, each, seed, run, preset):
  """(image_Byxc uint8, label_B, step of the checkpoint)."""
  run, folder, classes = prepared(config, workdir, labels=labels, each=each, run=run)
  draw = samples.sampler(run.models, preset)
  with jax.set_mesh(run.mesh):
    params, frozen, step = chain.restored(run, folder)
    image_Byxc, label_B = draw(params, frozen, classes=classes, each=each, seed=seed)
  return image_Byxc, label_B, step


def prepared(config, workdir, *, labels, each, run):
  """(the Run without what only training needs, its folder, the classes of `labels`)."""
  name, config = chain.chosen(config, run)
  root = pathlib.Path(workdir)
  if 'rollout' not in config:
    raise ValueError(f'--run: {name or root.name} has no policy to sample from')
  if each < 1:
    raise ValueError(f'--each: {each}, expected at least 1')
  classes = classes_of(config, labels)
  return chain.lean(config, root), root / name, classes


def to_folder(config, workdir, *, folder, labels, each, seed, run, preset):
  """(paths of the PNG files, how many of them were drawn now, step of the checkpoint); see
  `fill`.
  """
  run, where, classes = prepared(config, workdir, labels=labels, each=each, run=run)
  samples.batch_sampler(run.models, preset)  # says what is wrong with the preset
  with jax.set_mesh(run.mesh):
    params, frozen, step = chain.restored(run, where)
    about = {
      'step': step,
      'policy': digest.digest(params['policy']),
      'sampler': preset or run.config.rollout.to_json_best_effort(),
    }
    return *fill(
      pathlib.Path(folder),
      run.models,
      params,
      frozen,
      classes=classes,
      each=each,
      seed=seed,
      preset=preset,
      about=about,
    ), step


def fill(folder, models, params, frozen, *, classes, each, seed, preset, about, batch=64):
  """(paths, how many were drawn now): FOLDER/CLASS_INDEX.png, `each` of every class, one file per
  image.

  Image r of a class is a function of seed, class and r. A file that is there is kept: the same call
  goes on where it was cut, and ends with the same files, as batches are cut alike. about: what else
  the images depend on; a folder of another seed or `about` is refused. batch: images on a device at
  once."""
  settle(folder, about | {'seed': seed})
  some, new = samples.batch_sampler(models, preset), 0
  # By index first: a folder that is cut has about as many images of every class.
  label_B, index_B = np.tile(classes, each), np.repeat(np.arange(each), len(classes))
  paths = [folder / f'{k:04d}_{r:05d}.png' for k, r in zip(label_B, index_B)]
  keys = models.keys(jax.random.key(seed), models.classes + 1, each)
  with ThreadPoolExecutor() as threads:
    for row_B, counts_B in rows.batches(len(paths), batch):
      missing = [i for i, row in enumerate(row_B) if counts_B[i] and not paths[row].exists()]
      if not missing:
        continue
      image_Byxc = np.asarray(
        some(params, frozen, label_B[row_B], keys[label_B[row_B], index_B[row_B]])
      )
      list(threads.map(lambda i: pictures.save_png(paths[row_B[i]], image_Byxc[i]), missing))
      new += len(missing)
  return paths, new


def settle(folder, about, flag='--folder'):
  """Writes down what the images of a folder are drawn from; ValueError if it has others. flag:
  which names it.
  """
  path = folder / ABOUT
  if folder.exists() and not folder.is_dir():
    raise ValueError(f'{flag}: {folder} found, a folder expected')
  names = [x.name for x in folder.iterdir()] if folder.exists() else []
  if names and ABOUT not in names:
    raise ValueError(
      f'{flag}: {folder} holds files that were not drawn by this command, expected a new folder'
    )
  if set(names) <= {ABOUT}:
    pictures.save_bytes(path, json.dumps(about, indent=2).encode())  # nothing is drawn yet
  differs(
    json.loads(path.read_text()), json.loads(json.dumps(about)), f'{flag}: {folder} was begun with'
  )


def differs(old, new, begun):
  """ValueError where a value is not the same, of dictionaries the innermost."""
  for key, value in new.items():
    was = old.get(key)
    if isinstance(was, dict) and isinstance(value, dict):
      differs(was, value, f'{begun} {key}')
    elif was != value:
      raise ValueError(f'{begun} {key} {was}, {value} found; choose another folder')


def to_npz(path, paths, seed=0):
  """All images as `arr_0` uint8 [N, y, x, 3], as OpenAI's evaluator reads them; one is held at a
  time.

  In random order: its Inception Score is a mean over parts, each of which must hold all classes.
  """
  path, order = pathlib.Path(path), np.random.default_rng(seed).permutation(len(paths))
  read = lambda i: image.decode(paths[i].read_bytes())
  head = {'descr': '|u1', 'fortran_order': False, 'shape': (len(paths), *read(0).shape)}
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'.{path.name}.part')
  try:
    with zipfile.ZipFile(part, 'w') as file, file.open('arr_0.npy', 'w', force_zip64=True) as array:
      npy.write_array_header_1_0(array, head)
      for i in order:
        array.write(np.ascontiguousarray(read(i)).tobytes())
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def main(flags):
  """Writes OUT.png (one row per class) and OUT.npz (image uint8 [B, y, x, 3], label int32 [B]), or
  a folder.
  """
  options = dict(
    labels=flags.labels, each=flags.each, seed=flags.seed, run=flags.run, preset=flags.preset
  )
  if flags.npz and not flags.folder:
    raise ValueError('--npz: it is made of the images of --folder, which is missing')
  if flags.folder:
    paths, new, step = to_folder(flags.config, flags.workdir, folder=flags.folder, **options)
    print(f'step {step}: {len(paths)} images in {flags.folder}, {new} of them drawn now')
    if flags.npz:
      to_npz(flags.npz, paths)
      print(f'arr_0 of {len(paths)} images in {flags.npz}')
    return
  image_Byxc, label_B, step = images(flags.config, flags.workdir, **options)
  out = flags.out or str(pathlib.Path(flags.workdir) / 'samples')
  pictures.save_png(
    f'{out}.png', pictures.grid(image_Byxc, [f'class {k}' for k in label_B], columns=flags.each)
  )
  np.savez(f'{out}.npz', image=image_Byxc, label=label_B.astype(np.int32))
  print(f'step {step}: {len(image_Byxc)} images in {out}.png and {out}.npz')


def classes_of(config, labels):
  """Labels, numbers or names, as ints, checked against the model."""
  c = assemble.module(config.policy, 'policy')[1].c
  if not hasattr(c, 'classes'):
    raise ValueError(
      f'sample: {config.policy.name} found, which reads text, one of labels expected; vargrl.commands.chat '
      'draws of dialogues, the evaluator eval.prompts of text features'
    )
  count = c.classes
  if not len(labels):
    return np.arange(min(count, 10))
  if list(labels) == ['all']:
    return np.arange(count)
  known = {
    name: k for k, name in reversed([*enumerate(names.known(count))])
  }  # the first of equal names
  found = [
    known.get(label, int(label) if label.isdigit() else count + 1) for label in map(str, labels)
  ]
  if bad := [label for label, k in zip(labels, found) if k > count]:
    near = difflib.get_close_matches(str(bad[0]), known, 1)
    raise ValueError(
      f"--labels: {bad[0]!r}, expected 'all' or classes 0 .. {count - 1} ({count}: unconditional)"
      + (f'; did you mean {near[0]!r}?' if near else '')
    )
  return np.array(found)
