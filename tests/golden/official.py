"""The stored numbers of the official implementation, and our model with the rule's weights.

Where the numbers come from: `source` in each json. The rule of weights and inputs: fill.py.
"""

import functools
import json
import pathlib
import tempfile
import types

import fill
import flax.linen as nn
import jax
import numpy as np
import safetensors.numpy

from vargrl.checkpoint import torch_format
from vargrl.models import infinity, var
from vargrl.tokenizers import bsq, vq

FOLDER = pathlib.Path(__file__).parent
WRITTEN = tempfile.TemporaryDirectory(prefix='vargrl_golden')


@functools.lru_cache(None)
def stored(name):
  """(description, {name: array})"""
  return json.loads((FOLDER / f'{name}.json').read_text()), dict(np.load(FOLDER / f'{name}.npz'))


def vae_config(g):
  return vq.Config(
    vocab=g['vocab_size'],
    channels=g['z_channels'],
    width=g.get('ch', g.get('vae_ch')),
    mults=tuple(g.get('ch_mult', (1, 1, 2, 2, 4))),
    scales=tuple(g['patch_nums']),
  )


def var_config(g):
  return var.Config(
    g['depth'],
    g['width'],
    g['heads'],
    tuple(g['patch_nums']),
    g['vocab_size'],
    g['z_channels'],
    g['num_classes'],
    shared_adaln=g['shared_aln'],
  )


def bsq_config(g):
  name = 'vae_' if 'bits_per_token' in g else ''  # in the description of a transformer
  return bsq.Config(
    g.get('codebook_dim', g.get('d_vae')),
    g[f'{name}base_ch'],
    tuple(g[f'{name}ch_mult']),
    scales=g['scales'],
  )


def infinity_config(g):
  return infinity.Config(
    g['depth'],
    g['width'],
    g['heads'],
    g['scales'],
    g['bits_per_token'],
    g['text_channels'],
    g['text_maxlen'],
    export_chunks=g['block_chunks'],
  )


def kind(name, which):
  """(module, description's config -> Config)"""
  if name.startswith('infinity'):
    return (bsq, bsq_config) if which == 'vae' else (infinity, infinity_config)
  return (vq, vae_config) if which == 'vae' else (var, var_config)


def constant(what, shape, scales):
  """A buffer of the official module, from its description."""
  if what.startswith('powers of two'):
    return 2 ** np.arange(shape[0])[::-1]
  if what == 'zeros':
    return np.zeros(shape, np.float32)
  level_L = np.repeat(np.arange(len(scales)), np.square(scales))
  if what.startswith('number of the scale'):
    return level_L[None].astype(np.int64)
  assert what == '0 where the query scale is not below the key scale, -inf elsewhere', what
  return np.where(level_L[:, None] >= level_L, 0, -np.inf).astype(np.float32)[None, None]


def file(name, which):
  """The checkpoint file of a module: stored, or written with the rule's weights."""
  if name == 'var_tiny':
    return FOLDER / {'vae': 'vae_tiny.pth', 'transformer': 'var_tiny.pth'}[which]
  path = pathlib.Path(WRITTEN.name) / f'{name}_{which}.safetensors'
  if not path.exists():
    m, scales = stored(name)[0]['modules'][which], stored(name)[0]['config'].get('patch_nums', ())
    buffers = {
      key: constant(what, dict(m['keys'])[key], scales) for key, what in m['constants'].items()
    }
    safetensors.numpy.save_file(
      fill.fill_state(m['keys'], m['salt'], skip=m['constants']) | buffers, path
    )
  return path


def abstract(module, c):
  """Shapes of the weights of a model's or tokenizer's module."""
  return nn.unbox(jax.eval_shape(lambda key: module.init(module.Model(c), key), jax.random.key(0)))


@functools.lru_cache(None)
def load(name, which):
  """'vae' or 'transformer' -> .module .c .model .layouts .path .params .state .shapes .keys
  .constants
  """
  description, _ = stored(name)
  m, (module, config) = description['modules'][which], kind(name, which)
  c = config(description['config'])
  shapes, layouts, path = abstract(module, c), module.torch_layouts(c), file(name, which)
  return types.SimpleNamespace(
    module=module,
    c=c,
    model=module.Model(c),
    layouts=layouts,
    path=path,
    shapes=shapes,
    params=torch_format.load(path, layouts, shapes),
    keys={k: tuple(s) for k, s in m['keys']},
    state=fill.fill_state(m['keys'], m['salt'], skip=m['constants']),
    constants=m['constants'],
  )


def tokens(name):
  """The token maps of the teacher-forced numbers, int32 [B, L]."""
  description, arrays = stored(name)
  if 'indices' in arrays:
    return arrays['indices'].astype(np.int32)
  names = {'indices': fill.indices, 'patch_nums': description['config']['patch_nums']}
  return np.concatenate(eval(description['inputs']['indices'], names), 1).astype(np.int32)


def images(name):
  """NHWC, in [-1, 1]."""
  x = eval(stored(name)[0]['inputs']['images'], {'np': np, 'image': fill.image})
  return x.transpose(0, 2, 3, 1)


def check(name, key, ours, tolerance=None):
  """ours within the stored tolerance of array `key`; images and latents may be channels last."""
  description, arrays = stored(name)
  theirs = arrays[key]
  tolerance = tolerance or description['tolerances'][key]
  if tolerance == 'equal':
    np.testing.assert_array_equal(ours, theirs, err_msg=f'{name} {key}')
  else:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=f'{name} {key}')
