"""How published checkpoints of Infinity (vargrl/models/infinity.py) name their weights."""

import numpy as np

from vargrl.models import decoder
from vargrl.types import TorchLayout


def torch_layouts(c):
  """The official state dict, its blocks in chunks or not, alone or in a checkpoint of the official
  trainer; see types.TorchLayout. The temperatures are [1, H, 1, 1], or [1, 1, H, 1] where another
  attention was built."""
  size = c.depth // c.export_chunks
  chunked = (
    f'block_chunks.{{X/{size}}}.module.{{X%{size}}}',
    lambda i: f'block_chunks.{i // size}.module.{i % size}',
  )
  plain = 'blocks.{X}', lambda i: f'blocks.{i}'
  return tuple(
    TorchLayout(
      torch_table(c, block, shape),
      torch_constants(c, numbered),
      ignored=('lvl_1L', 'attn_bias_for_masking'),
      nested_at=('trainer/gpt_fsdp', 'trainer/gpt_ema_fsdp'),
      resized=('cfg_uncond',),
    )
    for block, numbered in (chunked, plain)
    for shape in ('1 N 1 1', '1 1 N 1')
  )


def torch_table(c, block, shape):
  cross, pool = f'{block}.ca', 'text_proj_for_sos.ca'
  return (
    decoder.TORCH
    | decoder.SHARED_ADALN
    | decoder.torch_block('blocks/core', block, 'sa')
    | {
      'uncond': ('cfg_uncond', 's D -> s D'),
      'memory1/w': ('text_proj_for_ca.0.weight', 'F D -> D F'),
      'memory1/b': ('text_proj_for_ca.0.bias', 'F -> F'),
      'memory2/w': ('text_proj_for_ca.2.weight', 'D F -> F D'),
      'memory2/b': ('text_proj_for_ca.2.bias', 'D -> D'),
      'text_norm': ('text_norm.weight', 'D -> D'),
      'pool_q': (f'{pool}.mat_q', '1 N H -> N H'),
      'pool_{k,v}/w': (f'{pool}.mat_kv.weight', '(g N H) D -> g D N H'),
      'pool_v/b': (f'{pool}.v_bias', '(N H) -> N H'),
      'pool_o/w': (f'{pool}.proj.weight', 'D (N H) -> N H D'),
      'pool_o/b': (f'{pool}.proj.bias', 'D -> D'),
      'blocks/core/ada': (f'{block}.ada_gss', '1 1 c D -> c D'),
      'blocks/core/temperature': (f'{block}.sa.scale_mul_1H11', f'{shape} -> N'),
      'blocks/cross/scale': (f'{block}.ca_norm.weight', 'D -> D'),
      'blocks/cross/bias': (f'{block}.ca_norm.bias', 'D -> D'),
      'blocks/cross/q/w': (f'{cross}.mat_q.weight', '(N H) D -> D N H'),
      'blocks/cross/q/b': (f'{cross}.mat_q.bias', '(N H) -> N H'),
      'blocks/cross/{k,v}/w': (f'{cross}.mat_kv.weight', '(g N H) D -> g D N H'),
      'blocks/cross/v/b': (f'{cross}.v_bias', '(N H) -> N H'),
      'blocks/cross/o/w': (f'{cross}.proj.weight', 'D (N H) -> N H D'),
      'blocks/cross/o/b': (f'{cross}.proj.bias', 'D -> D'),
    }
  )


def torch_constants(c, numbered):
  """Buffers of the official state dict: the biases that keys do not have."""
  names = ['text_proj_for_sos.ca'] + [
    f'{numbered(i)}.{part}' for i in range(c.depth) for part in ('sa', 'ca')
  ]
  return {f'{name}.zero_k_bias': np.zeros(c.width, np.float32) for name in names}
