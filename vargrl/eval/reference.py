"""What generated images are compared with: a published .npz, or a split of real images."""

from functools import partial
import math
from typing import Callable, NamedTuple

import numpy as np

from vargrl.data import source
from vargrl.eval import real
from vargrl.io import arrays, downloads, paths
from vargrl.parallel import rows

URL = 'https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/'
NAME = 'VIRTUAL_imagenet256_labeled.npz'


class Reference(NamedTuple):
  """Real images, or their moments.

  moments: () -> (mean [D], covariance [D, D]) of their features; None: compute them. images: how
  many images there are. batches: (batch size, poll) -> iterator of (uint8 image_Byxc, counts_B), as
  rows.batches cuts them; None without images."""

  moments: Callable | None
  images: int
  batches: Callable | None


def npz(path, *, features):
  """The Reference in a file: `arr_0` uint8 [N, y, x, 3], `mu` [features] and `sigma` [features,
  features], as in OpenAI's reference batches,
  https://github.com/openai/guided-diffusion/tree/main/evaluations, or only the first, or only the
  others, as pytorch-fid saves them.

  Headers alone are read; raises FileNotFoundError, ValueError.
  """
  path = paths.path(path)
  if not path.exists():
    raise FileNotFoundError(
      f'reference: there is no {path}; {downloads.from_url(URL + NAME, path)} brings that of '
      'ImageNet 256'
    )
  found = headers(path)
  wanted = {'mu': (features,), 'sigma': (features, features)}
  if not ('arr_0' in found or wanted.keys() <= found.keys()):
    raise ValueError(
      f'reference: arrays {sorted(found)} in {path}, arr_0, or mu and sigma, expected'
    )
  for name, shape in wanted.items():
    if name in found and found[name].shape != shape:
      raise ValueError(
        f'reference: {name} {list(found[name].shape)} in {path}, {list(shape)} expected'
      )
  if 'arr_0' in found:
    shape, dtype = found['arr_0'][:2]
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or not math.prod(shape):
      raise ValueError(
        f'reference: arr_0 {dtype} {list(shape)} in {path}, uint8 [N, y, x, 3] expected'
      )

  def moments():
    with arrays.open_archive(path) as file:
      return tuple(arrays.read(file, name, found[name]) for name in ('mu', 'sigma'))

  return Reference(
    moments if wanted.keys() <= found.keys() else None,
    found['arr_0'].shape[0] if 'arr_0' in found else 0,
    partial(image_batches, path, found['arr_0']) if 'arr_0' in found else None,
  )


def headers(path):
  """{name: arrays.Array} of an .npz; ValueError where it is none, or has arrays that would take
  many times its size of memory."""
  try:
    found = arrays.headers(path)
    if bad := [x.dtype for x in found.values() if x.dtype.hasobject]:
      raise ValueError(f'{bad[0]} found')
    if 'arr_0' in found and found['arr_0'].fortran:
      raise ValueError('arr_0 in Fortran order found')
    arrays.check_cost(sum(x.size for x in found.values()), path)
    return found
  except (ValueError, OSError) as e:
    raise ValueError(f'reference: {path} is no .npz of numpy ({e})') from e


def image_batches(path, header, batch, poll=None):
  """Yields (uint8 image_Byxc, counts_B) of arr_0, of which one batch is in memory at once."""
  count, *shape = header.shape
  with arrays.open_archive(path) as file, file.open('arr_0.npy') as array:
    array.read(header.begin)
    for row_B, counts_B in rows.batches(count, batch, poll):
      n, size = int(counts_B.sum()), math.prod(shape)
      data = array.read(n * size)
      if len(data) < n * size:
        raise ValueError(f'reference: {path} ends after image {int(row_B[0])} of {count}')
      image_Nyxc = np.frombuffer(data, np.uint8).reshape(n, *shape)
      yield image_Nyxc[np.minimum(np.arange(len(row_B)), n - 1)], counts_B


def split(models, *, dataset, split, size, crop, dir, limit):
  """The Reference of the first `limit` images of a TFDS split (0: all).

  Checked now, ValueError for what does not fit; read when they are needed."""
  options = dict(dataset=dataset, split=split, size=size, crop=crop, dir=dir, limit=limit)
  real.images(models, features=('image',), **options)  # says what is wrong
  have = source.count(dataset=dataset, split=split, dir=dir)

  def batches(batch, poll=None):
    one = source.iterate(**options)
    for row_B, counts_B in rows.batches(min(limit or have, have), batch, poll):
      whole = lambda x: np.rint((x + 1) * 127.5).astype(np.uint8)
      images = [whole(row['image'][0]) for _, row in zip(row_B[counts_B], one)]
      if not images:
        return
      n = len(images)  # fewer than asked for where records are unreadable
      yield np.stack(images)[np.minimum(np.arange(len(row_B)), n - 1)], np.arange(len(row_B)) < n

  return Reference(None, min(limit or have, have), batches)
