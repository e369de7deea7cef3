"""Images of given classes under fixed keys: the same noise at every step, so that grids compare."""

import jax
import numpy as np

from vargrl.parallel import multihost, rows
from vargrl.reporting import images as pictures
from vargrl.rollout.sampler import make_sampler


def make(built, *, classes, per_class, seed, preset):
  """The evaluator of a grid with one row for each class, `per_class` images in it.

  classes: the first so many, or a list of them; the number after the last is the unconditional one.
  preset: '' samples as the run's own rollouts do; a name, such as 'var', with published settings.
  Raises ValueError for what the policy cannot sample."""
  draw, known = sampler(built, preset), built.policy.config.classes
  if not per_class >= 1:
    raise ValueError(f'per_class: {per_class} found, at least 1 expected')
  label_P = labels(classes)
  if not len(label_P) or not 0 <= label_P.min() <= label_P.max() <= known:
    raise ValueError(
      f'classes: {classes} found, some of 0 .. {known - 1} ({known}: unconditional) expected'
    )

  def evaluate(params, frozen, poll=None):
    image_Byxc, _ = draw(params, frozen, classes=label_P, per_class=per_class, seed=seed, poll=poll)
    yield 'grid', pictures.grid(image_Byxc, columns=per_class, cell=48)

  return evaluate


def labels(classes):
  """A number of classes, or the classes themselves -> label_P."""
  return np.arange(classes) if np.isscalar(classes) else np.asarray(classes)


def sampler(built, preset=''):
  """The function draw(params, frozen, *, classes, per_class, seed, batch, poll) -> (uint8
  image_Byxc, label_B), which samples so many images of each class, sorted by class.

  Image r of class k is a function of seed, k's place in `classes` and r, whatever is sampled with
  it. batch: images on a device at once. poll: see Evaluator in eval/run.py."""
  refuse_text(built.policy)
  some = batch_sampler(built, preset)

  def draw(params, frozen, *, classes, per_class, seed, batch=64, poll=None):
    label_P = labels(classes)
    label_B, images = np.repeat(label_P, per_class), []
    keys_B = row_keys(built.policy, seed, len(label_P), per_class)
    for row_B, counts_B in rows.batches(len(label_B), batch, poll):
      images.append(
        multihost.to_numpy(some(params, frozen, label_B[row_B], keys_B[row_B]))[counts_B]
      )
    return np.concatenate(images), label_B

  return draw


def refuse_text(policy):
  """ValueError for a policy that needs more than labels."""
  if policy.features:
    raise ValueError(
      f'samples: a policy of {sorted(policy.features)} found, one of labels expected; '
      'eval.prompts draws of text features'
    )


def row_keys(policy, seed, P, R):
  """keys_B of R rows of each of P prompts, those of a prompt adjacent."""
  return policy.keys(jax.random.key(seed), P, R)[1].reshape(-1)


def batch_sampler(built, preset=''):
  """sample(params, frozen, prompt_B, keys_B) -> uint8 image_Byxc on the devices: one call of
  rows.batches. See rollout/sampler.py."""
  sample = make_sampler(built.policy, built.tokenizer, preset)
  return lambda *arguments: sample(*arguments)[1]
