"""Rewards on a fixed list of classes: of what is trained, and monitors that are not trained on."""

import numpy as np

from vargrl import contracts
from vargrl.eval import samples
from vargrl.parallel import mesh as meshes
from vargrl.parallel import rows
from vargrl.rewards import mix
from vargrl.types import Samples


def make(built, *, classes, per_class, seed, preset, batch, rewards, pool):
  """The evaluator that yields for every reward NAME its mean over the images as `NAME` and its
  standard deviation as `NAME/std`, and `masked`, the share of images for which some reward has no
  verdict.

  classes: the first so many, or a list of them, `per_class` images of each under keys of `seed`.
  preset: see eval/samples.py. batch: images on a device at once. rewards, pool: as in
  objective.collect; each is reported on its own, so weights have no effect."""
  policy, classes_known = built.policy, contracts.offers(built.policy.config, 'classes') or 0
  samples.refuse_text(policy)
  label_P = samples.labels(classes)
  if not per_class >= 1:
    raise ValueError(f'per_class: {per_class} found, at least 1 expected')
  if not len(label_P) or not 0 <= label_P.min() <= label_P.max() < classes_known:
    raise ValueError(f'classes: {classes} found, some of 0 .. {classes_known - 1} expected')
  some = samples.batch_sampler(built, preset)
  mixed, weights = open_mix(built, rewards, **pool)  # last: it starts processes

  def evaluate(params, frozen, poll=None):
    all_frozen = frozen | weights()
    label_B, found, masked = np.repeat(label_P, per_class), {}, []
    keys_B = samples.row_keys(policy, seed, len(label_P), per_class)
    for row_B, counts_B in rows.batches(len(label_B), batch, poll):
      image_Byxc = (
        some(params, frozen, label_B[row_B], keys_B[row_B]).astype(np.float32) / 127.5 - 1
      )
      r_B, each_B, _ = mixed.score(
        all_frozen, Samples(image_Byxc, {}, {'label': label_B[row_B]}), group_size=1
      )
      masked.append(~np.isfinite(r_B[counts_B]))
      for name, x_B in each_B.items():
        found.setdefault(name, []).append(x_B[counts_B])
    for name, parts in found.items():
      x_N = np.concatenate(parts).astype(np.float64)
      yield name, float(np.nanmean(x_N))
      yield f'{name}/std', float(np.nanstd(x_N))
    yield 'masked', float(np.concatenate(masked).mean())

  evaluate.close = mixed.close
  return evaluate


def open_mix(built, rewards, **options):
  """(the Mix of rewards of single rows, a call -> {'rewards': their weights}, read at the first
  one). options: of mix.make. ValueError for rewards that compare rows, or that the run lacks a
  network for."""
  if missing := [
    r['name'] for r in rewards.values() if r['name'] == 'rewards.classifier' and not built.bound
  ]:
    raise ValueError(f'rewards: {missing[0]} found, without a classifier in the config')
  mixed, memory = mix.make(rewards, bind=built.bound, **options), {}
  if mixed.groups:
    mixed.close()
    raise ValueError(
      f'rewards: {mixed.groups[0]} found, which compares the rows of a prompt (GROUPS = True); '
      'rewards of single rows expected'
    )

  def weights():
    if not memory:
      memory['rewards'] = mixed.load(meshes.current())
    return memory

  return mixed, weights
