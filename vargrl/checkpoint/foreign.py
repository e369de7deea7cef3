"""Folders of weights that cannot be read: what lies there, and how it becomes readable."""

import itertools
import re

from vargrl.io import paths

MOST = 10_000  # files that are looked at
SHARD = re.compile(r'.+-\d{5}-of-(\d{5})\.(safetensors|bin)')


def describe(folder) -> str:
  """A clause that says what weights lie in a folder and what to do with them; '' for none.

  Of: a distributed checkpoint of torch, PEFT's adapters, parts without the index that names them.
  """
  folder = paths.path(folder)
  try:
    names = sorted(path.name for path in itertools.islice(folder.iterdir(), MOST))
  except OSError:
    return ''
  if any(name.endswith('.distcp') for name in names):
    return (
      'a distributed checkpoint of torch (.distcp) lies there; make one file of it: '
      'torch.distributed.checkpoint.format_utils.dcp_to_torch_save(FOLDER, FILE)'
    )
  if 'adapter_model.safetensors' in names or 'adapter_model.bin' in names:
    return (
      'adapters of PEFT lie there, without the weights that they change; merge and save them: '
      'model.merge_and_unload().save_pretrained(OTHER)'
    )
  if shards := [name for name in names if SHARD.fullmatch(name)]:
    count, ending = SHARD.fullmatch(shards[0]).groups()
    index = f'{"model" if ending == "safetensors" else "pytorch_model"}.{ending}.index.json'
    return f'{len(shards)} of {int(count)} parts lie there, but not {index}; download it too'
  return ''
