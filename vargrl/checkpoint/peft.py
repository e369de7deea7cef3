"""Writes the adapters of a LoRA run as a folder of PEFT (https://github.com/huggingface/peft).

A reference model may fuse weights that have separate adapters here, as VAR fuses q, k and v. They
become one adapter: its A stacks the A's, [3 r, in], and its B has the B's on the diagonal of a
[3 out, 3 r]; rank and alpha are three times as large. The official VAR reads mat_qkv.weight and
never calls the module, so that PEFT has no effect there before `merge_and_unload()`.
"""

import re

import einops
from flax import traverse_util
import numpy as np
from safetensors.numpy import save_file

from vargrl.checkpoint import torch_format
from vargrl.io import paths, text

PREFIX = 'base_model.model.'


def peft_adapter(table, params, *, alpha):
  """Returns ({PEFT's key: float32 array}, the dictionary of adapter_config.json).

  table: the table of the base model's TorchLayout. params: with adapters; ValueError if there are
  none. alpha: the model's lora_alpha.
  """
  flat, arrays, ranks, rank_of_one = traverse_util.flatten_dict(params, sep='/'), {}, {}, 0
  for names, layer, key, pattern in torch_format.entries(table, flat):
    pairs = [
      [flat.get(f'{name.removesuffix("/w")}/lora_{side}') for side in 'ab'] for name in names
    ]
    if not any(part is not None for pair in pairs for part in pair):
      continue
    pairs = [
      [np.asarray(x if layer is None else x[layer], np.float32) for x in pair] for pair in pairs
    ]
    rank_of_one = pairs[0][0].shape[-1]
    module = key.removesuffix('.weight')
    A, B = adapter_matrices(pairs, pattern)
    arrays |= {f'{PREFIX}{module}.lora_A.weight': A, f'{PREFIX}{module}.lora_B.weight': B}
    ranks[module if layer is None else re.sub(r'^.*\.\d+\.', '', module)] = len(
      A
    )  # without the number of its layer
  if not arrays:
    raise ValueError(
      'adapter: no lora_a in the weights, expected those of a run with lora_rank > 0'
    )
  fused = {module: rank for module, rank in ranks.items() if rank != rank_of_one}
  return arrays, {
    'peft_type': 'LORA',
    'task_type': None,
    'base_model_name_or_path': None,
    'inference_mode': True,
    'r': rank_of_one,
    'lora_alpha': alpha,
    'lora_dropout': 0.0,
    'bias': 'none',
    'fan_in_fan_out': False,
    'use_rslora': False,
    'target_modules': sorted(ranks),
    'rank_pattern': fused,
    'alpha_pattern': {module: alpha * rank / rank_of_one for module, rank in fused.items()},
  }


def adapter_matrices(pairs, pattern):
  """Returns A [r, in] and B [out, r] of one of their weights [out, in].

  pairs: our [(a, b)] of the parts that the weight fuses; r is the sum of their ranks. pattern: the
  weight's einops pattern.
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


def save(folder, table, params, *, alpha):
  """Writes adapter_model.safetensors and adapter_config.json; existing files are replaced."""
  arrays, config = peft_adapter(table, params, alpha=alpha)
  folder = paths.path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  save_file(arrays, folder / 'adapter_model.safetensors', metadata={'format': 'pt'})
  text.write_json(folder / 'adapter_config.json', config)
