"""The real images that an evaluator measures on: checked when it is made, read when it is first
used.
"""

from vargrl.data import source


def images(models, *, dataset, split, size, crop, dir, limit, features):
  """A function () -> {feature: array [N, ...]} that reads the split.

  What does not exist, or does not fit the models, is told now, before anything compiles.
  """
  if crop not in ('none', 'center'):
    raise ValueError(
      f"crop: {crop!r} found, 'none' or 'center' expected: an evaluation draws nothing"
    )
  if limit < 0:
    raise ValueError(f'limit: {limit} found, 0 (all) or a number of images expected')
  wanted = getattr(models.config, 'image_size', size)
  if size != wanted:
    raise ValueError(f'size: {size} pixels found, {wanted} expected by the model')
  check(models, opened(dataset, split, size, crop, dir), f'{dataset}/{split}', features)

  def read():
    found = source.load(dataset=dataset, split=split, size=size, crop=crop, dir=dir, limit=limit)
    return {name: found[name] for name in features}

  return read


def opened(dataset, split, size, crop, dir):
  """The split as a Stream from which nothing is decoded: it knows its features and classes."""
  return source.make(
    dataset=dataset,
    split=split,
    size=size,
    crop=crop,
    dir=dir,
    batch=1,
    flip=False,
    shuffle=False,
    max_unreadable=0.0,
    threads=0,
    workers=0,
    seed=0,
    rows=range(1),
  )


def check(models, found, name, features):
  """The split has these features, and no class that the model lacks."""
  if missing := [f for f in features if f not in found.features]:
    raise ValueError(f'{name}: features {list(found.features)} found, {missing} expected too')
  classes = models.classes or getattr(models.config, 'classes', 0)
  if 'label' in features and found.classes and found.classes > classes:
    raise ValueError(f'{name}: {found.classes} classes found, {classes} in the model')
