"""Where a run's weights come from, checkpoints that config.init names or the seed, and the checks
of these before anything is compiled.
"""

import dataclasses
import shlex
from typing import Any
import zlib

from flax import traverse_util
import flax.linen as nn
import jax

from vargrl import contracts
from vargrl.checkpoint import files, torch_format
from vargrl.checkpoint import store as stores
from vargrl.io import downloads, paths
from vargrl.models.layers import lora
from vargrl.parallel import place
from vargrl.training import assemble


@dataclasses.dataclass(frozen=True)
class PartCheckpoint:
  """A reference checkpoint of one part of a model. path: the file or folder. hub: the Hugging Face
  repository that published ones come from. layouts: how the part may lie in it. shapes: the part's
  abstract weights."""

  path: str
  hub: str
  layouts: tuple
  shapes: Any


def key_of(seed, name):
  """The key that the weights `name` of a run with this seed are drawn with. Names that are
  anagrams have different ones, in every process the same."""
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def per_part_checkpoints(config, name, shapes):
  """{part: PartCheckpoint} where config.init has a checkpoint for each of some parts of a model,
  {'lm': ..., 'drawer': ...}; {} where it has one for all, or none. shapes: the abstract weights
  `name`. ValueError for a part that the policy does not have."""
  found = config.init.get(name, '')
  if not hasattr(found, 'items'):
    return {}
  python, model = assemble.module(config.policy, 'policy')
  parts = python.parts(model.c) if contracts.offers(python, 'parts') else {}
  for part in found:
    if part not in parts:
      raise ValueError(f'init.{name}.{part}: {config.policy.name} has the parts {sorted(parts)}')

  def checkpoint(part, path):
    python, c = parts[part]
    return PartCheckpoint(str(path), python.HUB, python.torch_layouts(c), shapes[part])

  return {part: checkpoint(part, path) for part, path in found.items()}


def checkpoint_path(config, name, root):
  """What config.init names for `name`, or None: a checkpoint folder of ours, or a reference
  checkpoint (a file, or a folder with one). A run of the chain is a folder below the chain's
  workdir `root`."""
  if name not in config.init or not config.init[name] or hasattr(config.init[name], 'items'):
    return None
  path = str(config.init[name])
  if '://' in path:
    return path
  if '/' in path or path.endswith(files.SUFFIXES):
    return str(paths.path(path))
  return str(paths.path(root) / path / 'checkpoints')


def checkpoint_name(config, name):
  """The weights whose entry in config.init counts for `name`: a reference without a checkpoint of
  its own is a copy of what the policy starts from."""
  return 'policy' if name == 'reference' and not config.init.get(name) else name


def checkpoint_item(name):
  """What of a checkpoint becomes the weights `name`: all but a critic were the policy of their
  run.
  """
  return 'params/critic' if name == 'critic' else 'params/policy'


def torch_layouts(config, name):
  """How the weights `name` may lie in reference checkpoints; ValueError if there are none of this
  model.
  """
  section = 'policy' if name == 'reference' else name
  python, model = assemble.module(config[section], section)
  if not contracts.offers(python, 'torch_layouts'):
    raise ValueError(
      f'init.{name}: {config.init[name]} found, but {config[section].name} has no reference '
      'layout; expected a checkpoint folder of a run'
    )
  return python.torch_layouts(model.c)


def load_or_init(config, name, init, mesh, root, say=print):
  """(frozen or initial weights, meta of our checkpoint that they come from): loaded where
  config.init says so, drawn from the seed otherwise; no meta comes with these, nor with reference
  checkpoints. init: key -> boxed parameters. root: the chain's workdir."""
  shapes, name = place.abstract_params(init, mesh), checkpoint_name(config, name)
  path, key, meta = checkpoint_path(config, name, root), key_of(config.seed, name), {}
  parts = per_part_checkpoints(config, name, shapes)
  if not parts and not path:
    if name != 'critic' and (name != 'policy' or config.reference):
      say(f'{name}: no checkpoint in init, random weights')
    return place.init_sharded(init, key, shapes), meta
  if parts:
    tree = load_parts(parts, name, init, key, shapes, say)
  elif files.is_checkpoint(path):
    tree = torch_format.load(path, torch_layouts(config, name), shapes)
  else:
    item = checkpoint_item(name)
    stored = lora.match_structure(shapes, stores.leaf_names(path, item=item))
    _, tree, meta = load_trained(path, stored, item=item)
  return (add_adapters(tree, init, key, shapes) if name == 'policy' else tree), meta


def load_trained(folder, shapes, *, item):
  """(step, weights, meta) of the newest good checkpoint of a run: of the policy the moving average,
  if the run has one, which is what is evaluated, sampled and exported too.

  shapes: abstract weights. item: 'params', or a part of it as of checkpoint_item. FileNotFoundError
  where there is no checkpoint, ValueError for one of another model."""
  return stores.load(folder, shapes, item=item, instead=item.replace('params', 'ema', 1))


def load_parts(parts, name, init, key, shapes, say):
  """A base of which `parts`, {part: PartCheckpoint}, are loaded and the others drawn with `key`."""
  rest = lora.base_params({part: x for part, x in shapes.items() if part not in parts})
  say(f'{name}: random weights of {", ".join(sorted(rest))}')
  random = place.init_sharded(
    lambda key: lora.base_params({part: nn.unbox(init(key)[part]) for part in rest}), key, rest
  )
  return {
    part: torch_format.load(x.path, x.layouts, x.shapes) for part, x in parts.items()
  } | random


def add_adapters(tree, init, key, shapes):
  """Weights as loaded -> those of the run: adapters that a base does not have are drawn from the
  seed.
  """
  _, adapters = lora.split(shapes)
  if not adapters or lora.split(tree)[1]:
    return tree
  new = place.init_sharded(lambda key: lora.split(nn.unbox(init(key)))[1], key, adapters)
  return lora.join(tree, new)


def check_sources(config, built, mesh, root, upstream):
  """Raises for missing checkpoints and those of other models, before anything is compiled.

  upstream: {run: abstract params} of the chain's earlier runs, which may have no checkpoint yet.
  """
  for name, init in (built.trained | built.frozen).items():
    shapes = place.abstract_params(init, mesh)
    for part, x in per_part_checkpoints(config, name, shapes).items():
      check_reference_file(f'init.{name}.{part}', x.path, x.hub, x.layouts, x.shapes)
    path, item = checkpoint_path(config, name, root), checkpoint_item(name)
    if not path:
      continue
    if files.is_checkpoint(path):
      layouts = torch_layouts(config, name)  # first: a model without any has no HUB either
      hub = assemble.module(config['policy' if name == 'reference' else name], name)[0].HUB
      check_reference_file(f'init.{name}', path, hub, layouts, shapes)
    elif config.init[name] in upstream:
      have = upstream[config.init[name]].get(item.removeprefix('params/'), {})
      shapes = lora.match_structure(shapes, traverse_util.flatten_dict(have, sep='/'))
      stores.check_same_leaves(f'init.{name}: run {config.init[name]!r}', have, shapes)
    else:
      shapes = lora.match_structure(shapes, stores.leaf_names(path, item=item))
      if not stores.read_metadata(path, shapes, item=item):
        raise FileNotFoundError(f'init.{name}: no checkpoint in {path}')


def check_reference_file(key, path, hub, layouts, shapes):
  """Raises what torch.load would, without reading an array. key: the config's, which the error
  names. hub: where a published checkpoint can be downloaded."""
  try:
    torch_format.check(path, layouts, shapes)
  except FileNotFoundError as e:
    what, path = hub, paths.path(path)
    if paths.known_ending(path, files.SUFFIXES):
      what, path = f'{hub} {shlex.quote(path.name)}', path.parent
    command = downloads.from_hub(what, path)
    raise FileNotFoundError(f'{key}: {e}; {command} brings it, if it is a published one') from e
  except ValueError as e:
    raise ValueError(f'{key}: {e}') from e
