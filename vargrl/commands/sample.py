"""The command `sample`: images of classes from a checkpoint; chat.py answers dialogues."""

from concurrent.futures import ThreadPoolExecutor
import difflib
import os
import zipfile

import jax
import numpy as np
from numpy.lib import format as npy

from vargrl.checkpoint import digest
from vargrl.commands import chat, inference
from vargrl.commands import experiment as experiments
from vargrl.commands import folder as folders
from vargrl.data import image, names
from vargrl.eval import samples
from vargrl.io import numbers
from vargrl.io import paths as io_paths
from vargrl.io import text as io_text
from vargrl.parallel import rows
from vargrl.reporting import images
from vargrl.training import assemble, chain

# Flags of the command that policies of classes take, and those that policies of text and images do.
CLASS_FLAGS = ('labels', 'per_class', 'preset', 'folder', 'npz')
DIALOGUE_FLAGS = ('prompts', 'max_text_tokens', 'begin')


def draw(experiment, workdir, *, labels=(), per_class=8, seed=0, run='', preset=''):
  """(image_Byxc uint8, label_B) of the last good checkpoint: `per_class` images of every class in
  `labels`.

  experiment: 'experiments/NAME.py[:variant]', trained in `workdir`, or its config. labels: classes,
  all (at most 10) if empty. run: of a chain; its last one if empty. preset: the sampler's settings,
  the run's own if ''."""
  config = (
    experiments.load(experiment) if isinstance(experiment, (str, os.PathLike)) else experiment
  )
  return draw_images(
    config, workdir, labels=labels, per_class=per_class, seed=seed, run=run, preset=preset
  )[:2]


def draw_images(config, workdir, *, labels, per_class, seed, run, preset):
  """(image_Byxc uint8, label_B, step of the checkpoint)."""
  run, folder, classes = prepare(config, workdir, labels=labels, per_class=per_class, run=run)
  draw = samples.sampler(run.built, preset)
  with jax.set_mesh(run.mesh):
    params, frozen, step = inference.restore(run, folder)
    image_Byxc, label_B = draw(params, frozen, classes=classes, per_class=per_class, seed=seed)
  return image_Byxc, label_B, step


def prepare(config, workdir, *, labels, per_class, run):
  """(the Run for inference, its folder, the classes of `labels`). Raises ValueError for a run
  without a policy, for labels that the model does not have, and for less than 1 image of each."""
  name, config = chain.select_run(config, run)
  root = io_paths.path(workdir)
  if 'rollout' not in config:
    raise ValueError(f'--run: {name or root.name} has no policy to sample from')
  numbers.check_number('--per_class', per_class, least=1, whole=True)
  classes = parse_labels(config, labels)
  return inference.build(config, root), root / name, classes


def to_folder(config, workdir, *, folder, labels, per_class, seed, run, preset):
  """(paths of the PNG files, how many of them were drawn now, step of the checkpoint); see
  `resume_folder`.
  """
  run, where, classes = prepare(config, workdir, labels=labels, per_class=per_class, run=run)
  samples.batch_sampler(run.built, preset)  # says what is wrong with the preset
  with jax.set_mesh(run.mesh):
    params, frozen, step = inference.restore(run, where)
    settings = {
      'step': step,
      'policy': digest.digest(params['policy']),
      'sampler': preset or run.config.rollout.to_json_best_effort(),
    }
    return *resume_folder(
      io_paths.path(folder),
      run.built,
      params,
      frozen,
      classes=classes,
      per_class=per_class,
      seed=seed,
      preset=preset,
      settings=settings,
    ), step


def resume_folder(
  folder, built, params, frozen, *, classes, per_class, seed, preset, settings, batch=64
):
  """(paths, how many were drawn now): FOLDER/CLASS_INDEX.png, `per_class` images of every class.

  Image r of a class is a function of seed, class and r. A file that is there is kept: the same call
  continues where it was cut, and ends with the same files, as batches are cut alike. settings: what
  else the images depend on. Raises ValueError for a folder of another seed or other settings.
  batch: images on a device at once."""
  folders.check_folder(folder, settings | {'seed': seed}, flag='--folder')
  draw_batch, new = samples.batch_sampler(built, preset), 0
  # By index first: a folder that is cut has about as many images of every class.
  label_B, index_B = np.tile(classes, per_class), np.repeat(np.arange(per_class), len(classes))
  paths = [folder / f'{k:04d}_{r:05d}.png' for k, r in zip(label_B, index_B)]
  count = built.policy.config.classes + 1
  _, keys = built.policy.keys(jax.random.key(seed), count, per_class)
  with ThreadPoolExecutor() as threads:
    for row_B, counts_B in rows.batches(len(paths), batch):
      missing = [i for i, row in enumerate(row_B) if counts_B[i] and not paths[row].exists()]
      if not missing:
        continue
      image_Byxc = np.asarray(
        draw_batch(params, frozen, label_B[row_B], keys[label_B[row_B], index_B[row_B]])
      )
      list(threads.map(lambda i: images.save_png(paths[row_B[i]], image_Byxc[i]), missing))
      new += len(missing)
  return paths, new


def to_npz(path, paths, seed=0):
  """All images as `arr_0` uint8 [N, y, x, 3], as OpenAI's evaluator reads them; one is held at a
  time.

  In random order: its Inception Score is a mean over parts, each of which must hold all classes.
  """
  path, order = io_paths.path(path), np.random.default_rng(seed).permutation(len(paths))
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
  """Draws images of classes, or answers dialogues, as the policy of the run does."""
  config = chain.select_run(flags.config, flags.run)[1]
  text = chat.answers_in_text(config)
  for flag in CLASS_FLAGS if text else DIALOGUE_FLAGS:
    if flags[flag].present:
      expected = (
        'which takes --prompts, --max_text_tokens and --begin'
        if text
        else 'a policy that answers in text expected'
      )
      raise ValueError(f'--{flag}: {config.policy.name} found, {expected}')
  return chat.main(flags) if text else draw_classes(flags)


def draw_classes(flags):
  """Writes OUT.png (one row per class) and OUT.npz (image uint8 [B, y, x, 3], label int32 [B]), or
  one PNG per image in a folder."""
  options = dict(
    labels=flags.labels,
    per_class=flags.per_class,
    seed=flags.seed,
    run=flags.run,
    preset=flags.preset,
  )
  if flags.npz and not flags.folder:
    raise ValueError('--npz: it is made of the images of --folder, which is missing')
  out = flags.out.removesuffix('.png') or str(io_paths.path(flags.workdir) / 'samples')
  check_outputs(flags, out)
  if flags.folder:
    paths, new, step = to_folder(flags.config, flags.workdir, folder=flags.folder, **options)
    print(f'step {step}: {len(paths)} images in {flags.folder}, {new} of them drawn now')
    if flags.npz:
      to_npz(flags.npz, paths)
      print(f'arr_0 of {len(paths)} images in {flags.npz}')
    return
  image_Byxc, label_B, step = draw_images(flags.config, flags.workdir, **options)
  captions = [f'class {k}' for k in label_B]
  images.save_png(f'{out}.png', images.grid(image_Byxc, captions, columns=flags.per_class))
  np.savez(f'{out}.npz', image=image_Byxc, label=label_B.astype(np.int32))
  print(f'step {step}: {len(image_Byxc)} images in {out}.png and {out}.npz')


def check_outputs(flags, out):
  """ValueError unless the images can be written, which is tried before they are drawn. out: without
  the ending."""
  if flags.folder:
    io_text.check_writable(flags.folder, '--folder', keep=False)
    if flags.npz:
      io_text.check_file_writable(flags.npz, '--npz')
    return
  for ending in ('.png', '.npz'):
    io_text.check_file_writable(out + ending, '--out')


def parse_labels(config, labels):
  """int array of the classes that `labels` names, by number or name. Raises ValueError for one that
  the model does not have, and for a policy that reads text."""
  c = assemble.module(config.policy, 'policy')[1].c
  if not hasattr(c, 'classes'):
    raise ValueError(
      f'sample: {config.policy.name} found, which reads text, one of labels expected; '
      'vargrl.commands.chat draws of dialogues, the evaluator eval.prompts of text features'
    )
  count = c.classes
  if not len(labels):
    return np.arange(min(count, 10))
  if list(labels) == ['all']:
    return np.arange(count)
  known = {
    name: k for k, name in reversed([*enumerate(names.for_count(count))])
  }  # the first of equal names
  classes = [
    known.get(label, int(label) if label.isdigit() else count + 1) for label in map(str, labels)
  ]
  if bad := [label for label, k in zip(labels, classes) if k > count]:
    near = difflib.get_close_matches(str(bad[0]), known, 1)
    raise ValueError(
      f"--labels: {bad[0]!r}, expected 'all' or classes 0 .. {count - 1} ({count}: unconditional)"
      + (f'; did you mean {near[0]!r}?' if near else '')
    )
  return np.array(classes)
