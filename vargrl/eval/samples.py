"""Images of given classes under fixed keys: the same noise at every step, so that grids compare."""

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.parallel import multihost, rows
from vargrl.reporting import images as pictures


def make(models, *, classes, per_class, seed, preset):
  """The evaluator of a grid with one row for each class, `per_class` images in it.

  classes: the first so many, or a list of them; the number after the last is the unconditional one.
  preset: '' samples as the run's own rollouts do; a name, such as 'var', with published settings.
  Raises ValueError for what the policy cannot sample."""
  draw, known = sampler(models, preset), models.classes
  if per_class < 1:
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


def sampler(models, preset=''):
  """The function draw(params, frozen, *, classes, per_class, seed, batch, poll) -> (uint8
  image_Byxc, label_B), which samples so many images of each class, sorted by class.

  Image r of class k is a function of seed, k's place in `classes` and r, whatever is sampled with
  it. batch: images on a device at once. poll: see Evaluator in eval/run.py."""
  refuse_text(models)
  some = batch_sampler(models, preset)

  def draw(params, frozen, *, classes, per_class, seed, batch=64, poll=None):
    label_P = labels(classes)
    label_B, images = np.repeat(label_P, per_class), []
    keys_B = models.keys(jax.random.key(seed), len(label_P), per_class).reshape(-1)
    for row_B, counts_B in rows.batches(len(label_B), batch, poll):
      images.append(
        multihost.to_numpy(some(params, frozen, label_B[row_B], keys_B[row_B]))[counts_B]
      )
    return np.concatenate(images), label_B

  return draw


def refuse_text(models):
  """ValueError for a policy that needs more than labels."""
  if models.given:
    raise ValueError(
      f'samples: a policy of {sorted(models.given)} found, one of labels expected; '
      'eval.prompts draws of text features'
    )


def batch_sampler(models, preset=''):
  """some(params, frozen, prompt_B, keys_B) -> uint8 image_Byxc on the devices: one call of
  rows.batches, so that any number of images fits in memory."""
  if models.generate is None:
    raise ValueError('samples: the run has no policy to sample from')
  if preset and preset not in models.presets:
    raise ValueError(
      f"preset: {preset!r} found, one of {sorted(models.presets)} expected, or '' for the "
      "run's own rollout"
    )
  generate = models.presets[preset] if preset else models.generate

  @jax.jit
  def some(policy, frozen, prompt_B, keys_B):
    out = generate(policy, frozen, prompt_B, keys_B[:, None])
    image_Byxc = models.decode(frozen, models.drawn(out.tokens, 2))
    return jnp.rint((image_Byxc + 1) * 127.5).astype(jnp.uint8)

  return lambda params, frozen, prompt_B, keys_B: some(
    params['policy'], frozen, jax.tree.map(jnp.asarray, prompt_B), keys_B
  )
