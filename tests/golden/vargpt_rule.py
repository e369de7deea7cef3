"""The rule that the weights and inputs of vargpt.npz were made with, and the model with these
weights.
"""

import functools
import json
import pathlib
import tempfile
import types
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from vargrl.checkpoint import torch_format
from vargrl.data import patches
from vargrl.models import infinity, qwen2, unified, vit
from vargrl.tokenizers import bsq

FOLDER = pathlib.Path(__file__).parent
WRITTEN = tempfile.TemporaryDirectory(prefix='vargrl_vargpt')
SCALES = '0.06M'
SEEN, START, END, PAD = 306, 308, 309, 310  # tokens


@functools.lru_cache(None)
def stored():
  """(description, {name: array})"""
  return json.loads((FOLDER / 'vargpt.json').read_text()), dict(np.load(FOLDER / 'vargpt.npz'))


def part(name):
  """{key: array} of one of its parts."""
  return {
    key.removeprefix(f'{name}/'): x for key, x in stored()[1].items() if key.startswith(f'{name}/')
  }


def normal(name, shape):
  return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def fill(name, shape, salt=''):
  """float32 weights for a key of the official state dict."""
  noise, fan = normal(salt + name, shape), float(np.prod(shape[1:])) ** -0.5
  ends = name.endswith
  if ends('scale_mul_1H11'):
    out = np.log(12.0) + 0.1 * noise
  elif ends('word_embed.weight'):
    out = 8 * noise * fan
  elif name.startswith('image_gen_projector') and ends('mlp.2.weight'):
    out = 4 * noise * fan
  elif ends(('shared_ada_lin.1.weight', 'head_nm.ada_lin.1.weight', 'ca.proj.weight')):
    out = 0.4 * noise * fan
  elif ends('lvl_embed.weight'):
    out = 0.2 * noise
  elif ends(('embed_tokens.weight', 'sos_embedding.weight', 'cfg_uncond')):
    out = 0.5 * noise
  elif ends(('ada_gss', 'pos_start')) or (ends('mat_q') and len(shape) == 3):
    out = 0.3 * noise
  elif len(shape) == 1:
    out = 1 + 0.1 * noise if ends('.weight') else 0.1 * noise
  else:
    out = noise * fan
  return out.astype(np.float32)


def reference(name, shape):
  """Those of the reference of DPO."""
  out = fill(name, shape)
  if not name.startswith(('vargpt_gen.', 'image_gen_projector')):
    return out
  return (out.astype(np.float64) + 0.04 * fill(name, shape, 'ref/').astype(np.float64)).astype(
    np.float32
  )


def state(rule=fill):
  """{official key: array}, buffers as the official code has them."""
  about, buffers = (
    stored()[0],
    {
      'zero_k_bias': lambda n: np.zeros(n, np.float32),
      'mask': lambda n: 2 ** np.arange(n)[::-1].astype(np.int64),
    },
  )
  return {
    key: buffers[key.split('.')[-1]](shape[0])
    if key in about['buffers_not_filled']
    else rule(key, tuple(shape))
    for key, shape in about['keys']
  }


def config(image_pad_to=1):
  c = stored()[0]['config']
  l, v, d = c['llm'], c['vision'], c['decoder']
  text = qwen2.Config(
    l['num_hidden_layers'],
    l['hidden_size'],
    l['num_attention_heads'],
    l['num_key_value_heads'],
    l['intermediate_size'],
    l['vocab_size'],
    theta=l['rope_theta'],
    sections=tuple(c['rope_scaling']['mrope_section']),
  )
  drawer = infinity.Config(
    d['depth'],
    d['embed_dim'],
    d['num_heads'],
    SCALES,
    text=d['text_channels'],
    text_length=d['text_maxlen'],
    export_chunks=d['block_chunks'],
  )
  return unified.Config(
    text,
    vit.Config(v['depth'], v['embed_dim'], v['num_heads'], v['hidden_size']),
    drawer,
    image_tokens=(START, END, PAD),
    image_pad_to=image_pad_to,
  )


@functools.lru_cache(None)
def load(rule=fill):
  """.path of the official state dict, .model .params .layouts, .tokenizer .codes (its weights)."""
  path = pathlib.Path(WRITTEN.name) / f'{rule.__name__}.safetensors'
  safetensors.numpy.save_file(state(rule), path)
  c, v = config(), stored()[0]['config']['vae']
  t = bsq.Config(v['codebook_dim'], v['base_ch'], tuple(v['ch_mult']), scales=SCALES)
  shapes = lambda module, model: nn.unbox(
    jax.eval_shape(lambda key: module.init(model, key), jax.random.key(0))
  )
  read = lambda module, c: torch_format.load(
    path, module.torch_layouts(c), shapes(module, module.Model(c))
  )
  return types.SimpleNamespace(
    path=path,
    c=c,
    model=unified.Model(c),
    tokenizer=bsq.Model(t),
    params=read(unified, c),
    codes=read(bsq, t),
    layouts=unified.torch_layouts(c),
    tokens=bsq.torch_layouts(t),
  )


def bits(packed, rows):
  """int32 [rows, 521, 32] of np.packbits."""
  return np.unpackbits(packed)[: rows * 521 * 32].reshape(rows, 521, 32).astype(np.int32)


def flips(packed, rows):
  """The same of masks that were packed scale by scale."""
  found, at, out = np.unpackbits(packed), 0, []
  for n in (1, 4, 16, 36, 64, 144, 256):
    out.append(found[at : at + rows * n * 32].reshape(rows, n, 32))
    at += -(-rows * n * 32 // 8) * 8
  return np.concatenate(out, 1).astype(np.int32)


def seen(ids, grid, name):
  """The fields of a sequence [S] that shows one picture of h x w patches: those of
  models/unified.py and 'position'.
  """
  h, w = (int(n) for n in grid[0][1:])
  return {
    'position': patches.mrope_positions(ids, [(h, w)], pad=SEEN),
    'image_index': patches.image_index(ids, [(h, w)], pad=SEEN, length=h * w),
    'patches': normal(f'{name}/pixel_values', (h * w, 1176)).astype(np.float32),
    'patch_position': patches.patch_positions(h, w),
    'patch_segment': np.ones(h * w, np.int32),
  }


def row(ids, length, patch_room, grid=None, name=''):
  """A packed row of one official training sequence: positions 0, 1, 2 ..., its picture from the
  first PAD on.
  """
  S, slot = len(ids), int((ids == PAD).argmax())
  pad = lambda x, n, value=0: np.pad(
    x, [(0, 0)] * (x.ndim - 1) + [(0, n - x.shape[-1])], constant_values=value
  )
  shown = (
    seen(ids, grid, name)
    if grid is not None
    else {
      'image_index': np.full(S, -1),
      'patches': np.zeros((0, 1176), np.float32),
      'patch_position': np.zeros((2, 0)),
      'patch_segment': np.zeros(0),
    }
  )
  out = {
    'tokens': pad(ids, length),
    'position': np.broadcast_to(np.arange(length), (3, length)),
    'segment': pad(np.ones(S), length),
    'image_start': np.array([slot]),
    'context': pad(np.arange(slot - 1)[None], 40, -1),
    'image_index': pad(shown['image_index'], length, -1),
    'patch_position': pad(shown['patch_position'], patch_room),
    'patch_segment': pad(shown['patch_segment'], patch_room),
  }
  out = {key: jnp.asarray(x, jnp.int32) for key, x in out.items()}
  return out | {
    'patches': jnp.asarray(
      np.pad(shown['patches'], ((0, patch_room - len(shown['patches'])), (0, 0)))
    )
  }
