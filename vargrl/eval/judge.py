"""A judge that is no reward: a support vector machine on raw pixels, fitted on the real training
split.
"""

import numpy as np

from vargrl.eval import real, samples
from vargrl.reporting import images


def make(built, *, dataset, size, dir, per_class, seed):
  """The evaluator of `per_class` samples of every class, which yields `wrong`, the share that the
  judge takes for another class; `variance`, the variance of a pixel in [0, 1] within a class, mean
  over pixels and classes; `real`, the judge's accuracy on the real test split; `real_variance`, the
  variance of that split; and a `grid` of samples.

  dataset, dir: of TFDS, with splits 'train' and 'test'. size: of an image, in pixels."""
  if not per_class >= 1:
    raise ValueError(f'per_class: {per_class} found, at least 1 expected')
  draw, memory = samples.sampler(built), {}
  splits = [
    real.images(
      built,
      dataset=dataset,
      split=split,
      size=size,
      crop='none',
      dir=dir,
      limit=0,
      features=('image', 'label'),
    )
    for split in ('train', 'test')
  ]

  def judge():
    if not memory:
      from sklearn.svm import SVC

      train, test = (read() for read in splits)
      flat = lambda image: (np.asarray(image).reshape(len(image), -1) + 1) / 2
      memory['svc'] = SVC(C=10.0).fit(flat(train['image']), train['label'])
      memory['real'] = float(memory['svc'].score(flat(test['image']), test['label']))
      memory['variance'] = variance(flat(test['image']), test['label'])
    return memory['svc'], memory['real'], memory['variance']

  def evaluate(params, frozen, poll=None):
    svc, real, real_variance = judge()
    image_Byxc, label_B = draw(
      params, frozen, classes=built.policy.config.classes, per_class=per_class, seed=seed, poll=poll
    )
    flat = image_Byxc.reshape(len(image_Byxc), -1).astype(np.float32) / 255
    predicted_B = svc.predict(flat)
    yield 'wrong', float(np.mean(predicted_B != label_B))
    yield 'variance', variance(flat, label_B)
    yield 'real', real
    yield 'real_variance', real_variance
    shown = np.concatenate(
      [np.flatnonzero(label_B == k)[:10] for k in range(built.policy.config.classes)]
    )
    captions = ['' if predicted_B[i] == label_B[i] else f'seen as {predicted_B[i]}' for i in shown]
    yield 'grid', images.grid(image_Byxc[shown], captions, columns=10, cell=56)

  return evaluate


def variance(flat, label_B):
  """Mean over classes and pixels of the variance within a class; small if a policy collapsed."""
  return float(np.mean([flat[label_B == k].var(0).mean() for k in np.unique(label_B)]))
