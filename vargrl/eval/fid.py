"""FID, Inception Score, precision and recall of samples, as class-conditional ImageNet models are
compared.
"""

from typing import NamedTuple

import numpy as np

from vargrl import contracts
from vargrl.eval import inception, reference, samples, statistics
from vargrl.parallel import rows

# Real images that precision and recall look at: as many as OpenAI's references hold.
NEIGHBOURHOODS = 10_000


def make(
  built,
  *,
  weights,
  size,
  images,
  seed,
  preset,
  batch,
  npz,
  dataset,
  split,
  pixels,
  crop,
  dir,
  limit,
):
  """The evaluator that yields `fid`, `inception_score`, `precision`, `recall`, and the numbers of
  images that are compared, `images` and `real_images`. FID falls with the first, so compare equal
  ones (papers have 50,000).

  weights, size: the Inception network's file and 'fid'. images: in equal shares of every class,
  under keys of `seed`. preset: see eval/samples.py. batch: images on a device at once. npz: the
  real images or their moments, see eval/reference.py; '' for the first `limit` images (0: all) of
  `dataset`/`split`. Moments alone give no precision and recall. Of all images, features alone are
  kept. Raises ValueError and FileNotFoundError for what does not fit."""
  check(built, images, batch, npz, dataset)
  some = samples.batch_sampler(built, preset)
  load, features = inception.network(weights=weights, size=size)
  if npz:
    real = reference.npz(npz, features=inception.feature_width(size))
  else:
    real = reference.split(
      built, dataset=dataset, split=split, size=pixels, crop=crop, dir=dir, limit=limit
    )
  check_counts(images, real)
  memory = {}

  def evaluate(params, frozen, poll=None):
    if not memory:
      memory['params'] = load()
      memory['real'] = real_features(real, features, memory['params'], batch, poll)
    generated = sample_batches(built, some, params, frozen, images, seed, batch, poll)
    yield from compare(
      memory['real'], *inception.compute_features(features, memory['params'], generated)
    )

  return evaluate


def check(built, images, batch, npz, dataset):
  """Raises ValueError for what `make` cannot compare."""
  policy, classes = built.policy, contracts.offers(built.policy.config, 'classes') or 1
  if policy.generate is None:
    raise ValueError('fid: the run has no policy to sample from')
  samples.refuse_text(policy)
  if not images >= classes or images % classes:
    raise ValueError(f'images: {images} found, a multiple of the {classes} classes expected')
  if not batch >= 1:
    raise ValueError(f'batch: {batch} found, at least 1 expected')
  if npz and dataset:
    raise ValueError(f"npz: {npz!r} and dataset {dataset!r} found, one of them '' expected")


def check_counts(images, real):
  """Raises ValueError for too few images to compare with a reference.Reference: a covariance is of
  2, precision and recall look at more than NEIGHBOURS others."""
  least = statistics.NEIGHBOURS + 1 if real.batches else 2
  for name, found in (('images', images), ('real images', real.images)):
    if found < least and (name == 'images' or real.batches):
      raise ValueError(f'{name}: {found} found, at least {least} expected, which can be compared')


class Real(NamedTuple):
  """What is known of the real images. moments: (mean [D], covariance [D, D]) of all of them.
  pool_ND: the features of some of them, None if there are moments alone. count: how many images."""

  moments: tuple
  pool_ND: np.ndarray | None
  count: int


def real_features(real, features, params, batch, poll):
  """The Real of a reference.Reference."""
  if not real.batches:
    return Real(real.moments(), None, 0)
  pool_ND, _ = inception.compute_features(features, params, real.batches(batch, poll))
  moments = real.moments() if real.moments else statistics.moments(pool_ND)
  count = len(pool_ND)
  # Evenly: a split may be sorted by class.
  some_N = np.linspace(0, count - 1, min(count, NEIGHBOURHOODS)).astype(int)
  return Real(moments, pool_ND[some_N], count)


def sample_batches(built, some, params, frozen, images, seed, batch, poll):
  """Yields (uint8 image_Byxc, counts_B) of so many images, sorted by class; some: see
  samples.batch_sampler."""
  classes = built.policy.config.classes
  per_class = images // classes
  label_B = np.repeat(np.arange(classes), per_class)
  keys_B = samples.row_keys(built.policy, seed, classes, per_class)
  for row_B, counts_B in rows.batches(images, batch, poll):
    yield some(params, frozen, label_B[row_B], keys_B[row_B]), counts_B


def compare(real, pool_ND, logits_NV):
  """Yields the names and values of the numbers that compare generated images with a Real."""
  images = len(pool_ND)
  order = np.random.default_rng(0).permutation(images)  # they are sorted by class
  yield 'fid', statistics.frechet(statistics.moments(pool_ND), real.moments)
  yield 'inception_score', statistics.inception_score(logits_NV[order])
  if real.pool_ND is not None:
    precision, recall = statistics.precision_recall(real.pool_ND, pool_ND)
    yield 'precision', precision
    yield 'recall', recall
    yield 'real_images', real.count
  yield 'images', images
