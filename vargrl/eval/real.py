"""The real images of an evaluator: checked when it is made, read when it is first used."""

from vargrl import contracts
from vargrl.data import source


def images(built, *, dataset, split, size, crop, dir, limit, features):
  """The function () -> {feature: array [N, ...]} that reads a split.

  crop: 'none' or 'center'. limit: the first so many images, 0 for all. Raises ValueError now,
  before anything compiles, for a split that does not exist or does not fit the policy; the function
  does for a label that is none of the policy's classes.
  """
  if crop not in ('none', 'center'):
    raise ValueError(
      f"crop: {crop!r} found, 'none' or 'center' expected: an evaluation draws nothing"
    )
  if not limit >= 0:
    raise ValueError(f'limit: {limit} found, 0 (all) or a number of images expected')
  wanted = contracts.offers(built.policy.config, 'image_size') or size
  if size != wanted:
    raise ValueError(f'size: {size} pixels found, {wanted} expected by the model')
  check(built, open_split(dataset, split, size, crop, dir), f'{dataset}/{split}', features)
  options = dict(dataset=dataset, split=split, size=size, crop=crop, dir=dir, limit=limit)
  classes = (contracts.offers(built.policy.config, 'classes') or 0) if 'label' in features else 0

  def read():
    found = source.load(**options, classes=classes)
    return {name: found[name] for name in features}

  return read


def open_split(dataset, split, size, crop, dir):
  """The split as a Stream from which nothing is read: it knows its features and classes."""
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


def check(built, found, name, features):
  """Raises ValueError unless the split has these features, and no class that the model lacks."""
  if missing := [f for f in features if f not in found.features]:
    raise ValueError(f'{name}: features {list(found.features)} found, {missing} expected too')
  classes = contracts.offers(built.policy.config, 'classes') or 0
  if 'label' in features and found.classes and found.classes > classes:
    raise ValueError(f'{name}: {found.classes} classes found, {classes} in the model')
