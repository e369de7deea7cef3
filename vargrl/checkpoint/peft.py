"""Adapters of a LoRA run -> a folder that PEFT (https://github.com/huggingface/peft) loads.

A reference model may fuse weights that have adapters of their own, as VAR does with q, k and v.
Theirs are one adapter: the A's stacked, [3 r, in], and the B's on the diagonal of a [3 out, 3 r],
with rank and alpha three times as large. The official VAR reads mat_qkv.weight and never calls the
module, so that PEFT has no effect there before `merge_and_unload()`."""

import json
import pathlib
import re

import einops
from flax import traverse_util
import numpy as np
from safetensors.numpy import save_file

from vargrl.checkpoint import torch

PREFIX = 'base_model.model.'


def adapter(table, params, *, alpha):
  """({PEFT's key: float32 array}, the dictionary of adapter_config.json) of a tree with adapters.

  table: of the model's base, see vargrl/checkpoint/torch.py; alpha: the model's lora_alpha.
  ValueError if there are no adapters."""
  flat, arrays, ranks, lone = traverse_util.flatten_dict(params, sep='/'), {}, {}, 0
  for names, layer, key, pattern in torch.rows(table, flat):
    pairs = [
      [flat.get(f'{name.removesuffix("/w")}/lora_{side}') for side in 'ab'] for name in names
    ]
    if not any(part is not None for pair in pairs for part in pair):
      continue
    pairs = [
      [np.asarray(x if layer is None else x[layer], np.float32) for x in pair] for pair in pairs
    ]
    lone = pairs[0][0].shape[-1]
    module = key.removesuffix('.weight')
    A, B = matrices(pairs, pattern)
    arrays |= {f'{PREFIX}{module}.lora_A.weight': A, f'{PREFIX}{module}.lora_B.weight': B}
    ranks[module if layer is None else re.sub(r'^.*\.\d+\.', '', module)] = len(
      A
    )  # without the number of its layer
  if not arrays:
    raise ValueError(
      'adapter: no lora_a in the weights, expected those of a run with lora_rank > 0'
    )
  fused = {module: rank for module, rank in ranks.items() if rank != lone}
  return arrays, {
    'peft_type': 'LORA',
    'task_type': None,
    'base_model_name_or_path': None,
    'inference_mode': True,
    'r': lone,
    'lora_alpha': alpha,
    'lora_dropout': 0.0,
    'bias': 'none',
    'fan_in_fan_out': False,
    'use_rslora': False,
    'target_modules': sorted(ranks),
    'rank_pattern': fused,
    'alpha_pattern': {module: alpha * rank / lone for module, rank in fused.items()},
  }


def matrices(pairs, pattern):
  """[(a, b)] of the parts of one of their weights [out, in] -> its A [r, in] and B [out, r]; r of
  all parts.
  """
  theirs, ours = pattern.split('->')
  outs, ins = (side.strip('()').split() for side in re.findall(r'\(.*?\)|\S+', theirs))
  group, axes = (outs[:1], outs[1:]) if len(pairs) > 1 else ([], outs)
  assert ours.split() == [*group, *ins, *axes], pattern
  A = [einops.rearrange(a, f'{" ".join(ins)} r -> r ({" ".join(ins)})') for a, _ in pairs]
  B = [einops.rearrange(b, f'r {" ".join(axes)} -> ({" ".join(axes)}) r') for _, b in pairs]
  out, rank = B[0].shape
  diagonal = np.zeros((len(B) * out, len(B) * rank), np.float32)
  for i, b in enumerate(B):
    diagonal[i * out : (i + 1) * out, i * rank : (i + 1) * rank] = b
  return np.ascontiguousarray(
    np.concatenate(A)
  ), diagonal  # safetensors writes the memory as it lies


def write(folder, table, params, *, alpha):
  """Writes adapter_model.safetensors and adapter_config.json; what is there is replaced."""
  arrays, config = adapter(table, params, alpha=alpha)
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  save_file(arrays, folder / 'adapter_model.safetensors', metadata={'format': 'pt'})
  (folder / 'adapter_config.json').write_text(json.dumps(config, indent=2))
