"""The command `pairs`: preference pairs for DPO from groups that a policy draws itself, the best of
each against the worst.

A data set of tokens, not of images: encoding a decoded image again would not give its tokens back.
"""

import io
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from vargrl.io import numbers, paths
from vargrl.io import text as io_text
from vargrl.objectives import collect as groups_of
from vargrl.objectives import scoring
from vargrl.reporting import images
from vargrl.training import chain, weights
from vargrl.training.run import Run

NAME = 'best_of_group'  # of the data set, in the folder --out


def main(flags):
  """Draws and scores --groups groups with the weights that the GRPO run --config would start
  from, and writes the data set. Interrupted, the same command continues. Raises ValueError for a
  run of another objective or policy, and for groups that have no pair."""
  out = paths.path(flags.out)
  _, config = chain.select_run(flags.config, flags.run)
  if config.objective.name not in ('objectives.grpo', 'objectives.vmr'):
    raise ValueError(
      f'pairs: {config.objective.name} found, a run of objectives.grpo expected: it says what to '
      'draw and how to score it'
    )
  if config.policy.name != 'models.var':
    raise ValueError(f'pairs: {config.policy.name} found, models.var expected')
  numbers.check_number('--groups', flags.groups, least=1, whole=True)
  if [*out.glob(f'{NAME}/*/dataset_info.json')]:
    raise ValueError(f'--out: {out / NAME} exists already; choose another folder')
  io_text.check_writable(out, '--out', keep=False)
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.evals = {}  # nothing is evaluated: their files are not needed
  run, began = Run(config, out), time.time()
  try:
    with jax.set_mesh(run.mesh):
      found = draw(run, out / 'parts', flags.groups, flags.seed)
  finally:
    run.close()
  if not len(found['label']):
    raise ValueError(
      f'pairs: none of {flags.groups} groups has two different rewards, at least 1 expected'
    )
  tfds.disable_progress_bar()
  shutil.rmtree(out / NAME, ignore_errors=True)  # what a command that was cut left of it
  dataset_builder(out, found, run.policy.config.classes).download_and_prepare(
    file_format='array_record', download_dir=str(out / 'parts' / 'downloads')
  )
  shutil.rmtree(out / 'parts')
  gap = found['reward_chosen'] - found['reward_rejected']
  print(
    f'{len(gap)} pairs of {flags.groups} groups in {out / NAME}, mean reward '
    f'{found["reward_chosen"].mean():.4g} '
    f'against {found["reward_rejected"].mean():.4g}; preview in {out / "pairs.png"}; '
    f'{time.time() - began:.0f} s'
  )


def draw(run, folder, groups, seed):
  """{feature: array [n_pairs, ...]}; each batch is saved in a file of its own, and drawn once."""
  policy, config = run.policy, run.config
  collect = config.objective.collect
  P, R = config.data.prompts, collect.rollouts
  folder.mkdir(parents=True, exist_ok=True)
  check_config(folder, f'{config.to_json_best_effort()} seed {seed}')
  params, _ = weights.load_or_init(
    config, 'policy', run.built.trained['policy'], run.mesh, run.root
  )
  frozen = run.frozen(only={*run.built.frozen, 'rewards'} - {'reference'})
  (span,) = policy.spans
  generate = jax.jit(policy.generate)
  decode = groups_of.decode_images(policy, run.tokenizer)
  parts = []
  for i in tqdm(range(-(-groups // P)), unit='batch', desc='pairs', dynamic_ncols=True):
    labels, path = next(run.data)['label'], folder / f'{i:06d}.npz'
    part = read_part(path)
    if part is None:
      key = jax.random.fold_in(jax.random.key(seed), i)
      prompt_P, keys = jnp.asarray(labels), policy.keys(key, P, R)
      out = generate(params, frozen, prompt_P, *keys)
      tokens_PRL = out.data[span.name]['tokens']
      image_Byxc = decode(frozen, policy.latents(out.data, 2), prompt_P, key)
      shape = P, R, 1
      r_B, each, _ = scoring.judge(policy, run.rewards, frozen, image_Byxc, out, labels, shape)
      # As the run's own groups are judged, several rewards normalised or not.
      r_PRK = scoring.mix_rewards(
        r_B, each, shape, collect.reward_mix, collect.rewards, collect.eps
      )
      part, rows = best_and_worst(labels, np.asarray(tokens_PRL), np.asarray(r_PRK)[..., 0])
      if i == 0:
        save_preview(folder.parent / 'pairs.png', part, np.asarray(image_Byxc), rows)
      save_part(path, part)
    parts.append(part)
  used = np.concatenate(
    [np.arange(i * P, (i + 1) * P)[part['group']] < groups for i, part in enumerate(parts)]
  )
  return {k: np.concatenate([part[k] for part in parts])[used] for k in parts[0] if k != 'group'}


def best_and_worst(label_P, tokens_PRL, r_PR):
  """({feature: array}, (best, worst) row of each pair). Groups with fewer than two different
  rewards have no pair.
  """
  known = np.isfinite(r_PR)
  best_P = np.where(known, r_PR, -np.inf).argmax(1)
  worst_P = np.where(known, r_PR, np.inf).argmin(1)
  chosen = np.flatnonzero(
    known.any(1) & (r_PR[np.arange(len(r_PR)), best_P] > r_PR[np.arange(len(r_PR)), worst_P])
  )
  best, worst = best_P[chosen], worst_P[chosen]
  part = {
    'label': label_P[chosen],
    'chosen': tokens_PRL[chosen, best],
    'rejected': tokens_PRL[chosen, worst],
    'reward_chosen': r_PR[chosen, best],
    'reward_rejected': r_PR[chosen, worst],
    'group': chosen,
  }
  R = r_PR.shape[1]
  return part, (chosen * R + best, chosen * R + worst)


def read_part(path):
  """What `save_part` wrote; None if there is no such file, or what a crash has left of one: then it
  is drawn again."""
  try:
    with np.load(path) as part:
      return {k: part[k] for k in part.files}
  except Exception:  # zipfile, zlib and numpy raise what they like
    return None


def save_part(path, part):
  """Writes a whole file or none."""
  file = io.BytesIO()
  np.savez(file, **part)
  io_text.write_bytes(path, file.getvalue())


def check_config(folder, text):
  """Raises ValueError for a folder with parts of another config or seed: parts of other weights,
  prompts or rewards must not end up in one data set."""
  path = folder / 'config.txt'
  if [*folder.glob('*.npz')] and path.exists() and path.read_bytes() != text.encode():
    raise ValueError(
      f'--out: {folder} holds pairs of another config or seed; choose another folder'
    )
  io_text.write_text(path, text)


def save_preview(path, part, image_Byxc, rows):
  """Writes the first pairs as an image: chosen beside rejected."""
  n = min(8, len(part['label']))
  if not n:
    return
  both = np.stack([rows[0][:n], rows[1][:n]], 1).reshape(-1)
  captions = [
    f'class {part["label"][i]}\n{part[f"reward_{kind}"][i]:.3g}'
    for i in range(n)
    for kind in ('chosen', 'rejected')
  ]
  images.save_png(path, images.grid(image_Byxc[both].astype(np.float32), captions, columns=4))


def dataset_builder(out, found, classes):
  """The TFDS builder of the pairs: label, tokens of chosen and rejected, and both rewards."""
  L = found['chosen'].shape[1]

  class BestOfGroup(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Preferences between images that a policy drew of the same prompt, as tokens."""

    VERSION = tfds.core.Version('1.0.0')
    name, url_infos = NAME, None

    def _info(self):
      tokens = lambda doc: tfds.features.Tensor(shape=(L,), dtype=np.int32, doc=doc)
      number = tfds.features.Scalar(np.float32)
      return tfds.core.DatasetInfo(
        builder=self,
        description=self.__doc__,
        homepage='https://arxiv.org/abs/2305.18290',
        features=tfds.features.FeaturesDict(
          {
            'label': tfds.features.ClassLabel(num_classes=classes),
            'chosen': tokens('best of its group'),
            'rejected': tokens('worst of its group'),
            'reward_chosen': number,
            'reward_rejected': number,
          }
        ),
      )

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i in range(len(found['label'])):
        yield i, {k: x[i] for k, x in found.items()}

  return BestOfGroup(data_dir=str(out))
