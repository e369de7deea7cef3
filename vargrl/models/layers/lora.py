"""LoRA (https://arxiv.org/abs/2106.09685) as functions of trees of weights.

A tree is a base and, beside some weights `w` of it, their adapters `lora_a` and `lora_b`, which
Einsum makes and applies. A model applies a base alone too: that is the reference of a LoRA run,
which takes no memory, also where the run starts from trained adapters. With optim.scale =
(('/lora_', 1.0), ('.*', None)) only adapters are trained, and nothing frozen has a gradient or
moments."""

import dataclasses

from flax import traverse_util
import jax
import jax.numpy as jnp

ADAPTERS = ('lora_a', 'lora_b')


def split(params):
  """(base, adapters): two nested dictionaries, nothing copied; {} if there are no adapters."""
  flat = traverse_util.flatten_dict(params)
  part = lambda which: traverse_util.unflatten_dict(
    {path: x for path, x in flat.items() if (path[-1] in ADAPTERS) == which}
  )
  return part(False), part(True)


def join(base, adapters):
  """The tree that `split` made these of."""
  flat = traverse_util.flatten_dict
  return traverse_util.unflatten_dict(flat(base) | flat(adapters))


def base_params(params):
  """The base alone, which shares its arrays with params."""
  return split(params)[0]


def match_structure(params, names):
  """params, or its base alone if `names`, those of other weights ('a/b/w'), have no adapters."""
  return params if any(name.split('/')[-1] in ADAPTERS for name in names) else base_params(params)


def merge(params, *, alpha):
  """A base of the same function: w + alpha / r a b, in float32, wherever there are adapters."""
  base, adapters = (traverse_util.flatten_dict(tree) for tree in split(params))
  for path in [path for path in adapters if path[-1] == 'lora_a']:
    a, b, name = adapters[path], adapters[path[:-1] + ('lora_b',)], path[:-1] + ('w',)
    w, rank = base[name], a.shape[-1]
    layers = w.shape[
      : a.ndim + b.ndim - 2 - w.ndim
    ]  # (X,), or () outside of the scan over the layers
    product = jnp.matmul(
      a.reshape(*layers, -1, rank), b.reshape(*layers, rank, -1), precision='highest'
    )
    base[name] = w + alpha / rank * product.reshape(w.shape)
  return traverse_util.unflatten_dict(base)


def init_params(init, c, key):
  """init(config, key): boxed parameters. With adapters, the others are those that the key gives
  without.
  """
  if not c.lora_rank:
    return init(c, key)
  # In two draws: flax numbers the keys of a scan's parameters by how many there are.
  base = init(dataclasses.replace(c, lora_rank=0), key)
  return join(base, split(init(c, jax.random.fold_in(key, 1)))[1])
