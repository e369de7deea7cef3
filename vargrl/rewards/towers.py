"""What the rewards on CLIP share: their checkpoint, the image tower, embeddings of prompts, and the
affine map from an image's embedding to the reward.

Rewards on one CLIP file share its tower, which runs once a batch. The prompts of all classes are
embedded once, at the start, with the tokenizer files of the checkpoint; of several templates the
embeddings are averaged."""

from functools import partial
import pathlib
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vargrl.checkpoint import files, torch_format
from vargrl.data import clip_bpe
from vargrl.data import names as class_names
from vargrl.io import downloads, paths
from vargrl.models.judges import clip
from vargrl.models.layers import norms
from vargrl.parallel import multihost, place, rows
from vargrl.rewards import preprocess
from vargrl.rewards.judge import Judge, Tower

HUB = {
  'l14': 'openai/clip-vit-large-patch14',
  'b32': 'openai/clip-vit-base-patch32',
  'h14': 'laion/CLIP-ViT-H-14-laion2B-s32B-b79K',
}
CHUNK = 128  # texts in one call, on each device


class Source(NamedTuple):
  """Where a CLIP's weights are. path: a file or a folder; None: random ones."""

  path: pathlib.Path | None
  size: str
  c: clip.Config


def source(*, file, size, dtype, download):
  """The Source of these options, checked against the file's header.

  file: '' for random weights of size 'smoke', None where only shapes count. download: {size: what
  downloads.from_hub takes to bring it}; other sizes than these and 'smoke' are refused. Raises
  FileNotFoundError, ValueError."""
  if size not in (known := [*download, 'smoke']):
    raise ValueError(f'size: {size!r} found, expected one of {known}')
  c = clip.Config(**{**vars(clip.SIZES[size]), 'dtype': dtype})
  if file is None:
    return Source(None, size, c)
  if not file:
    if size == 'smoke':
      return Source(None, size, c)
    raise ValueError(
      f'file: none given, the weights of size {size!r} expected; '
      f'{download_hint(download[size], "DIR")}'
    )
  path = paths.path(file)
  if not path.exists():
    raise FileNotFoundError(f'file: there is no {path}; {download_hint(download.get(size), path)}')
  try:
    torch_format.check(
      path, clip.torch_layouts(c), nn.unbox(jax.eval_shape(init(c), jax.random.key(0)))
    )
  except FileNotFoundError as e:  # an empty folder
    raise FileNotFoundError(f'file: {e}; {download_hint(download.get(size), path)}') from e
  except ValueError as e:
    raise ValueError(f'file: {e}') from e
  return Source(path.resolve(), size, c)


def download_hint(what, path):
  """The command that downloads `what` from the hub to `path`; None: nothing is published."""
  if not what:
    return 'a checkpoint expected'
  folder = path
  if paths.known_ending(path, files.SUFFIXES):
    folder = paths.path(path).parent
  return f'{downloads.from_hub(what, folder)} brings it'


def init(c):
  return partial(clip.init, clip.Model(c))


def abstract_params(source, mesh):
  """The whole CLIP's abstract weights; large ones in the dtype of their products."""

  def cast(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    dtype = source.c.dtype if '/blocks/' in name and name.endswith('/w') else x.dtype
    return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)

  return jax.tree_util.tree_map_with_path(cast, place.abstract_params(init(source.c), mesh))


def load_params(source, part, mesh):
  """The weights of one part, 'image', 'text' or 'logit_scale', on the mesh."""
  shapes = abstract_params(source, mesh)
  if source.path:
    return torch_format.load(source.path, clip.torch_layouts(source.c), shapes, subtree=part)
  print(f'reward tower {source.size} {part}: no file, random weights')
  return place.init_sharded(init(source.c), jax.random.key(0), shapes)[part]


def image_tower(source, how):
  """(key, Tower); features are unit embeddings e_BE, float32. how: of preprocess.clip_input."""
  c, model = source.c, clip.Image(source.c)

  def apply(params, image_Byxc):
    x_Byxc = preprocess.clip_input(image_Byxc, c.image_size, how=how)
    # What is float32 is so on every device; bfloat16 stays fast.
    with jax.default_matmul_precision('highest'):
      return norms.l2_normalize(model.apply({'params': params}, x_Byxc))

  key = f'{source.path or "random"} {source.size} {c.dtype} {how}'
  return key, Tower(
    lambda mesh: load_params(source, 'image', mesh),
    apply,
    lambda mesh: abstract_params(source, mesh)['image'],
  )


def prompts(template, names):
  """[[every template with the name in the place of {class}], for every name]; template: one or
  several.
  """
  templates = (template,) if isinstance(template, str) else tuple(template)
  if not templates:
    raise ValueError('template: none found, at least one expected')
  for t in templates:
    if any(brace in t.replace('{class}', '') for brace in '{}'):
      raise ValueError(f'template: {t!r} found, {{class}} expected as its only braces')
  return [[t.replace('{class}', name) for t in templates] for name in class_names.load(names)]


def encode_texts(source, tokenizer, texts):
  """t_BL of texts, cut after the longest. tokenizer: file or folder; '' is where the weights
  are.
  """
  c = source.c
  if source.path is None and not tokenizer:  # letters will do for random weights
    ids = [
      [c.start, *(min(ord(letter), c.start - 1) for letter in text)][: c.context - 1]
      for text in texts
    ]
    t_BL = np.array([row + [c.end] * (c.context - len(row)) for row in ids], np.int32)
  else:
    folder = source.path if source.path is None or source.path.is_dir() else source.path.parent
    where = paths.path(tokenizer or folder)
    try:
      t_BL = clip_bpe.encode(where, texts, length=c.context)
    except FileNotFoundError as e:
      raise FileNotFoundError(
        f'tokenizer: {e}; {download_hint(HUB["l14"] + " tokenizer.json", where)}'
      ) from e
    if (t_BL == c.end).any(1).sum() < len(texts) or t_BL.max() > c.end:
      raise ValueError(
        f'tokenizer: end token {t_BL.max()} in {where}, {c.end} in size {source.size!r}'
      )
  return t_BL[:, : int(np.argmax(t_BL == c.end, 1).max()) + 1]


def text_judge(source, *, tokenizer, template, names, how, scale):
  """The Judge r = scale * cosine of the image and the prompt of its class. scale: mesh -> a
  number.
  """
  texts = prompts(template, names)
  t_BL = encode_texts(source, tokenizer, [text for row in texts for text in row])
  key, tower = image_tower(source, how)

  def load(mesh):
    e_VTE = embed_texts(source, t_BL, mesh).reshape(len(texts), len(texts[0]), -1)
    # As https://arxiv.org/abs/2103.00020 ensembles templates.
    direction_VE = normalize(normalize(e_VTE).mean(1))
    return replicate({'direction': direction_VE, 'scale': scale(mesh), 'bias': 0.0}, mesh)

  def shapes(mesh):
    return abstract_replicated(
      {'direction': np.zeros((len(texts), source.c.embed)), 'scale': 0.0, 'bias': 0.0}, mesh
    )

  return Judge(
    {key: tower},
    load,
    lambda own, features, samples: affine(own, features[key], samples.record['label']),
    shapes,
  )


def embed_texts(source, t_BL, mesh):
  """Embeddings of texts, float32 numpy [B, E]; the text tower is loaded for this alone."""
  params, model = load_params(source, 'text', mesh), clip.Text(source.c)
  with jax.set_mesh(mesh), jax.default_matmul_precision('highest'):
    run = jax.jit(lambda params, t_BL: model.apply({'params': params}, rows.shard_rows(t_BL)))
    calls = rows.batches(len(t_BL), CHUNK)
    return np.concatenate(
      [multihost.to_numpy(run(params, t_BL[row_B]))[counts_B] for row_B, counts_B in calls]
    )


def normalize(x):
  """numpy vectors divided by their lengths, in float64."""
  x = np.asarray(x, np.float64)
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def replicate(tree, mesh):
  """A tree of numpy -> float32 arrays that every device has whole."""
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return jax.tree.map(lambda x: jax.device_put(np.asarray(x, np.float32), whole), tree)


def abstract_replicated(tree, mesh):
  """What `replicate` would return, as shapes."""
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.float32, sharding=whole), tree)


def affine(own, e_BE, label_B):
  """r_B = scale * <e, direction[label]> + bias, float32: bfloat16 would not tell a group's images
  apart.

  A label that is no class is NaN: clamping would reward some other class.
  """
  V = len(own['direction'])
  label_B = jnp.where(label_B < 0, V, label_B)  # -1 is not the last class
  direction_BE = jnp.take(own['direction'], label_B, axis=0, mode='fill', fill_value=jnp.nan)
  return own['scale'] * jnp.sum(e_BE * direction_BE, -1) + own['bias']
