"""Layers in a scan, and the options that all of them share."""

import flax.linen as nn
import jax

from vargrl.io import numbers
from vargrl.models.layers.attention import KERNELS


def check_options(c):
  """ValueError unless the knobs that many models share, and this one has, mean something."""
  for name, known in (('dtype', DTYPES), ('attention', KERNELS), ('remat', tuple(sorted(REMAT)))):
    if hasattr(c, name) and getattr(c, name) not in known:
      raise ValueError(f'policy.{name}: {getattr(c, name)!r}, expected one of {known}')
  if not hasattr(c, 'lora_rank'):
    return
  numbers.check_number('policy.lora_rank', c.lora_rank, least=0, whole=True)
  if c.lora_rank:
    numbers.check_number('policy.lora_alpha', c.lora_alpha, above=0)


def scan_layers(block, c, length, in_axes, static=(), name=None):
  """A scan of block(c) over `length` layers, letter X of its weights. in_axes: of the arguments
  after the carry. static: numbers of arguments, from 1, that are Python values."""
  if c.remat != 'none':
    block = nn.remat(block, prevent_cse=False, static_argnums=static, policy=REMAT[c.remat])
  return nn.scan(
    block,
    variable_axes={'params': 0},
    split_rngs={'params': True},
    length=length,
    in_axes=in_axes,
    out_axes=0,
    metadata_params={nn.PARTITION_NAME: 'X'},
  )(c, name=name)


DTYPES = ('float32', 'bfloat16', 'float16')


# What is kept for the backward pass: everything, nothing, or the products with weights. Not those
# of queries with keys and their softmax, which are L x L. The gradient of VAR-d16 for 4 rows holds
# 9.7 GiB of temporaries with 'none', 0.8 with 'blocks' and 2.2 with 'dots'.
REMAT = {
  'none': None,
  'blocks': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
