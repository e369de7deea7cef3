"""The command `export`: a checkpoint in the layout of the reference implementation, which loads it
strictly; one file, or a folder."""

import dataclasses
import math

import jax

from vargrl.checkpoint import files, peft, torch_format
from vargrl.commands import inference
from vargrl.contracts import offers
from vargrl.data import text
from vargrl.data.dialogue import tokenizer as tokenizers
from vargrl.io import paths
from vargrl.io import text as io_text
from vargrl.models.layers import lora
from vargrl.training import assemble, chain, loop, weights

# What ends so is a file, also if it is of a kind that is not written: that is told. All else, such
# as VARGPT-v1.1, is a folder.
ENDINGS = (*files.SUFFIXES, '.npz', '.npy', '.ckpt', '.h5', '.onnx', '.gguf', '.pkl', '.zip')
ENDINGS += ('.json', '.msgpack', '.tar')


def main(flags):
  """Writes the policy of the last good checkpoint of a run to --out. Raises ValueError for a path,
  a model or a checkpoint that cannot be exported.

  A .pth needs torch (pip install -e '.[torch]'). A policy that is published as a folder takes a
  path without an ending: the weights of its image tokenizer, if it has one, its config and the
  files of its text tokenizer are written there too. The adapters of a LoRA run are merged into a
  file; to a path without an ending they are written alone, as PEFT's folder."""
  (name, config), root = chain.select_run(flags.config, flags.run), paths.path(flags.workdir)
  python, model = assemble.module(config.policy, 'policy')
  has_adapters, bundled = bool(offers(model.c, 'lora_rank')), offers(python, 'BUNDLED') or {}
  layouts = offers(python, 'torch_layouts')
  folder = not paths.known_ending(flags.out, ENDINGS)
  layout = layouts(model.c)[0] if layouts else None
  has_config = bool(layout and layout.config)  # as models that are published as a folder
  try:
    if not folder or not (has_adapters or has_config):
      files.check_suffix(flags.out)
  except ValueError as e:
    more = ', or a folder' if has_config else ''
    more = ', or a folder for the adapters alone' if has_adapters else more
    raise ValueError(f'--out: {e}{more}') from e
  if not layout:
    raise ValueError(
      f'--run: {name or root.name} trains {config.policy.name}, which has no reference layout'
    )
  check_output(flags.out, folder, adapters=has_adapters)
  tokenizer = (
    tokenizers.load(config.data.tokenizer, images=tokenizers.has_images(config.data))
    if folder and has_config and 'tokenizer' in config.data
    else None
  )
  run = inference.build(config, root, tuple(bundled))
  step, params, meta = weights.load_trained(
    root / name / 'checkpoints', run.shapes.params['policy'], item='params/policy'
  )
  if has_adapters and folder:
    peft.save(flags.out, layout.table, params, alpha=model.c.lora_alpha)
    params = lora.split(params)[1]
  else:
    if has_adapters:
      params = lora.merge(params, alpha=model.c.lora_alpha)
    frozen = run.frozen(only=tuple(bundled)) if bundled else {}
    loop.check_frozen(meta, run.fingerprints(frozen), root / name)
    torch_format.save(flags.out, *bundle_weights(config, layout, params, frozen, bundled))
    if tokenizer:
      text.copy_files(tokenizer, flags.out)
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  print(
    f'step {step}: {count:,} parameters of {config.policy.name} {config.policy.size} in {flags.out}'
    + (f', with its {" and ".join(bundled)}' if bundled and not (has_adapters and folder) else '')
  )


def check_output(out, folder, *, adapters):
  """ValueError unless --out can be written, which is tried before the weights are read. folder:
  whether it is one. adapters: they are written alone, in the place of older ones."""
  if not folder:
    io_text.check_file_writable(out, '--out')
    return
  if files.is_checkpoint(out) and not adapters:
    raise ValueError(f'--out: {out}: a folder with weights found, one without them expected')
  io_text.check_writable(out, '--out', keep=False)


def bundle_weights(config, layout, params, frozen, bundled):
  """(TorchLayout, weights) of a policy with the sections bundled with it, {name: prefix of its
  tensors}."""
  if not bundled:
    return layout, params
  under = lambda name, table: {f'{name}/{ours}': row for ours, row in table.items()}
  table, constants = under('policy', layout.table), dict(layout.constants)
  for name, prefix in bundled.items():
    own = next(
      x
      for x in weights.torch_layouts(config, name)
      if all(key.startswith(prefix) for key, _ in x.table.values())
    )
    table |= under(name, own.table)
    constants |= own.constants
  return dataclasses.replace(layout, table=table, constants=constants), {'policy': params, **frozen}
