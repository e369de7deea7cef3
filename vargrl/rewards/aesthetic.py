"""LAION's aesthetic predictors: one affine map of CLIP's unit embedding; the prompt is not looked
at.
"""

from functools import partial

import jax.numpy as jnp
import numpy as np

from vargrl.checkpoint import files
from vargrl.io import downloads, paths
from vargrl.rewards import towers
from vargrl.rewards.judge import Judge

HOST = False
FILES = ('file', 'head')
LAYERS = (0, 2, 4, 6, 7)  # what lies between them was dropout
SITES = {
  'v1': 'https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth',
  'v2': 'https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/'
  'sac+logos+ava1-l14-linearMSE.pth',
}


def judge(*, file, size, dtype, head):
  """r about 4.5 .. 6.5 for ordinary pictures, on a scale of 1 to 10 that it is not bound to.

  file, size, dtype: of the CLIP, as in rewards/clip.py; l14 but for v1's head of b32. head: file of
  the v1 (one linear layer) or v2 (five, without activations) predictor; '' for random weights of
  size 'smoke'."""
  sizes = {size: towers.HUB[size] for size in ('l14', 'b32')}
  source = towers.source(file=file, size=size, dtype=dtype, download=sizes)
  key, tower = towers.image_tower(source, 'pil')
  w_E, b = affine(head, source)

  own = {'direction': w_E[None], 'scale': 1.0, 'bias': b}

  def score(own, features, samples):
    return towers.affine(own, features[key], jnp.zeros_like(samples.record['label']))

  return Judge(
    {key: tower}, partial(towers.replicate, own), score, partial(towers.abstract_replicated, own)
  )


def affine(head, source):
  """(w_E, b) in float64 of the head's file, checked against the embedding's width."""
  E = source.c.embed
  if not head:
    if source.path is None:
      return np.random.default_rng(0).standard_normal(E), 5.0
    raise ValueError(f'head: none given, the file of a predictor expected; {download_hint()}')
  path = paths.path(head)
  if not path.is_file():
    raise FileNotFoundError(f'head: there is no {path}; {download_hint()}')
  if 'relu' in path.name.lower():
    raise ValueError(
      f'head: {path.name} was trained with ReLUs between its layers, a linear one expected; '
      f'{download_hint()}'
    )
  w_E, b = compose_layers(files.open_tensors(path), path)
  if len(w_E) != E:
    raise ValueError(
      f'head: {path} is for embeddings of width {len(w_E)}, {E} in CLIP {source.size!r}'
    )
  return w_E, b


def compose_layers(state, path):
  """(w_E, b) of {key: array}: linear layers in a row are one."""
  names = [''] if 'weight' in state else [f'layers.{i}.' for i in LAYERS]
  expected = [name + part for name in names for part in ('weight', 'bias')]
  if sorted(map(str, state)) != sorted(expected):
    raise ValueError(
      f'head: keys {sorted(map(str, state))[:12]} in {path}, expected weight and bias (v1), or '
      'those of '
      f'layers.{{{",".join(map(str, LAYERS))}}} (v2)'
    )
  shapes = [getattr(state[name], 'shape', None) for name in expected]
  chained = all(
    w is not None and b is not None and len(w) == 2 and b == w[:1] and max(w) <= 8192
    for w, b in zip(shapes[::2], shapes[1::2])
  )
  if not chained or any(after[1] != before[0] for before, after in zip(shapes[::2], shapes[2::2])):
    raise ValueError(f'head: shapes {shapes} in {path}, expected those of linear layers in a row')
  w, b, *more = (np.asarray(state[name], np.float64) for name in expected)
  for weight, bias in zip(more[::2], more[1::2]):
    w, b = weight @ w, weight @ b + bias
  if len(w) != 1:
    raise ValueError(f'head: {len(w)} outputs in {path}, 1 expected')
  return w[0], b[0]


def download_hint():
  return ', '.join(f'{downloads.from_url(SITES[v])} brings {v}' for v in ('v2', 'v1'))
