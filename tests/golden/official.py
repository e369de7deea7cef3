"""The stored numbers of the official implementation, and our model with the rule's weights.

Where the numbers come from: `source` in each json. The rule of weights and inputs: fill.py.
"""
import functools
import json
import pathlib
import types

import fill
import flax.linen as nn
import jax
import numpy as np

from vargrl.checkpoint import torch
from vargrl.models import var
from vargrl.tokenizers import vq

FOLDER = pathlib.Path(__file__).parent


@functools.lru_cache(None)
def stored(name):
  """(description, {name: array})"""
  return json.loads((FOLDER / f'{name}.json').read_text()), dict(np.load(FOLDER / f'{name}.npz'))


def vae_config(g):
  return vq.Config(vocab=g['vocab_size'], channels=g['z_channels'],
                   width=g.get('ch', g.get('vae_ch')),
                   mults=tuple(g.get('ch_mult', (1, 1, 2, 2, 4))),
                   scales=tuple(g['patch_nums']))


def var_config(g):
  return var.Config(g['depth'], g['width'], g['heads'], tuple(g['patch_nums']), g['vocab_size'],
                    g['z_channels'], g['num_classes'], shared_adaln=g['shared_aln'])


@functools.lru_cache(None)
def load(name, which):
  """'vae' or 'transformer' -> .file .c .model .params .state .shapes .keys .constants"""
  description, _ = stored(name)
  m, file = description['modules'][which], vq if which == 'vae' else var
  c = (vae_config if which == 'vae' else var_config)(description['config'])
  state = fill.fill_state(m['keys'], m['salt'], skip=m['constants'])
  model = file.Model(c)
  shapes = nn.unbox(jax.eval_shape(lambda key: file.init(model, key), jax.random.key(0)))
  params = torch.read(file.torch_table(c), state, shapes, m['constants'])
  return types.SimpleNamespace(file=file, c=c, model=model, params=params, state=state,
                               shapes=shapes, keys={k: tuple(s) for k, s in m['keys']},
                               constants=m['constants'])


def tokens(name):
  """The token maps of the teacher-forced numbers, int32 [B, L]."""
  description, arrays = stored(name)
  if 'indices' in arrays: return arrays['indices'].astype(np.int32)
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
  if tolerance == 'equal': np.testing.assert_array_equal(ours, theirs, err_msg=f'{name} {key}')
  else: np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=f'{name} {key}')
