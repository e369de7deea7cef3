"""The Inception network of evaluations: its weights file, and features of any number of images."""

import functools
import math

import flax.linen as nn
import jax
import numpy as np

from vargrl.checkpoint import torch_format
from vargrl.io import downloads, paths
from vargrl.models.judges import inception
from vargrl.parallel import mesh as meshes
from vargrl.parallel import multihost, rows

NAME = 'pt_inception-2015-12-05-6726825d.pth'
URL = f'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}'


def network(*, weights, size):
  """(load, features): load() -> weights on the present mesh; features(weights, uint8 image_Byxc) ->
  (pool_BD, logits_BV without the head's bias, by which the Inception Score is defined).

  weights: the file; '' for random ones of size 'smoke'. Raises FileNotFoundError, ValueError,
  compiles nothing."""
  if size not in inception.SIZES:
    raise ValueError(f'size: {size!r} found, one of {sorted(inception.SIZES)} expected')
  path, (shapes, layouts, features) = paths.path(weights), shared_parts(size)
  if not weights and size == 'fid':
    command = downloads.from_url(URL)
    raise ValueError(f"weights: '' found, the file {NAME} expected; {command} brings it")
  if weights and not path.exists():
    command = downloads.from_url(URL, path)
    raise FileNotFoundError(f'weights: there is no {path}; {command} brings it')
  if weights:
    torch_format.check(path, layouts, shapes)

  def load():
    mesh = meshes.current()
    here = (
      jax.sharding.SingleDeviceSharding(jax.devices()[0])
      if mesh.empty
      else jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )  # 95 MB: whole on every device
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    return (
      torch_format.load(path, layouts, placed)
      if weights
      else jax.device_put(random_params(shapes), here)
    )

  return load, features


@functools.cache
def shared_parts(size):
  """(abstract weights, layouts, the jitted features) of a size.

  All evaluators share them: 94 convolutions compile slowly."""
  c = inception.SIZES[size]
  model = inception.Model(c)

  @jax.jit
  def features(params, image_Byxc):
    pool_BD, logits_BV = model.apply({'params': params}, rows.shard_rows(image_Byxc))
    return pool_BD, logits_BV - params['fc.b'][None]

  shapes = nn.unbox(jax.eval_shape(lambda: inception.init(model, jax.random.key(0))))
  return shapes, inception.torch_layouts(c), features


def random_params(shapes):
  """Random numpy weights of the initializers' scale; nothing is compiled."""
  rng = np.random.default_rng(0)

  def one(path, x):
    if x.ndim > 1:
      return (rng.standard_normal(x.shape) * (2 / math.prod(x.shape[:-1])) ** 0.5).astype(
        np.float32
      )
    return np.full(x.shape, path[-1].key in ('scale', 'var'), np.float32)

  return jax.tree_util.tree_map_with_path(one, shapes)


def feature_width(size):
  """How many numbers a feature has."""
  return inception.SIZES[size].features


def compute_features(features, params, batches):
  """(pool_ND, logits_NV) numpy float32 of batches (image_Byxc, counts_B) of one size."""
  pools, logits = [], []
  for image_Byxc, counts_B in batches:
    pool_BD, logits_BV = map(multihost.to_numpy, features(params, image_Byxc))
    pools.append(pool_BD[counts_B])
    logits.append(logits_BV[counts_B])
  return np.concatenate(pools), np.concatenate(logits)
