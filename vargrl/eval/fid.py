"""FID, Inception Score, precision and recall of samples, as class-conditional ImageNet models are
compared.
"""

import jax
import numpy as np

from vargrl.eval import inception, reference, samples, statistics
from vargrl.parallel import rows

NEIGHBOURHOODS = (
  10_000  # real images that precision and recall look at: as many as OpenAI's references hold
)


def make(
  models,
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
  """Yields `fid`, `inception_score`, `precision`, `recall`, and the numbers of images that were
  compared, `images` and `real_images`: FID falls with the first, so compare equal ones (papers have
  50,000).

  weights, size: the Inception network's file and 'fid'. images: in equal shares of every class,
  under keys of `seed`. preset: '' or published settings, see eval/samples.py. batch: images on a
  device at once. npz: the real images or their moments, see eval/reference.py; '' for the first
  `limit` images (0: all) of `dataset`/`split`. Moments alone give no precision and recall. Only
  features are kept."""
  if models.generate is None:
    raise ValueError('fid: the run has no policy to sample from')
  samples.refuse_text(models)
  if images < models.classes or images % models.classes:
    raise ValueError(f'images: {images} found, a multiple of the {models.classes} classes expected')
  if batch < 1:
    raise ValueError(f'batch: {batch} found, at least 1 expected')
  some = samples.batch_sampler(models, preset)
  load, features = inception.network(weights=weights, size=size)
  if npz and dataset:
    raise ValueError(f"npz: {npz!r} and dataset {dataset!r} found, one of them '' expected")
  if npz:
    real = reference.npz(npz, features=inception.width(size))
  else:
    real = reference.split(
      models, dataset=dataset, split=split, size=pixels, crop=crop, dir=dir, limit=limit
    )
  memory = {}

  def known(poll):
    """The network's weights; the moments and the features of real images, or None."""
    if not memory:
      params, pool_ND, count = load(), None, 0
      if real.batches:
        pool_ND, _ = inception.stacked(features, params, real.batches(batch, poll))
      moments = real.moments() if real.moments else statistics.moments(pool_ND)
      if pool_ND is not None:  # evenly: a split may be sorted by class
        count = len(pool_ND)
        pool_ND = pool_ND[
          np.linspace(0, len(pool_ND) - 1, min(len(pool_ND), NEIGHBOURHOODS)).astype(int)
        ]
      memory.update(params=params, moments=moments, pool=pool_ND, count=count)
    return memory

  def drawn(params, frozen, poll):
    each = images // models.classes
    label_B = np.repeat(np.arange(models.classes), each)
    keys_B = models.keys(jax.random.key(seed), models.classes, each).reshape(-1)
    for row_B, counts_B in rows.batches(images, batch, poll):
      yield some(params, frozen, label_B[row_B], keys_B[row_B]), counts_B

  def evaluate(params, frozen, poll=None):
    found = known(poll)
    pool_ND, logits_NV = inception.stacked(features, found['params'], drawn(params, frozen, poll))
    order = np.random.default_rng(0).permutation(images)  # they are sorted by class
    yield 'fid', statistics.frechet(statistics.moments(pool_ND), found['moments'])
    yield 'inception_score', statistics.inception_score(logits_NV[order])
    if found['pool'] is not None:
      precision, recall = statistics.precision_recall(found['pool'], pool_ND)
      yield 'precision', precision
      yield 'recall', recall
      yield 'real_images', found['count']
    yield 'images', images

  return evaluate
