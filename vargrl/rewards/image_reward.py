"""ImageReward (https://arxiv.org/abs/2304.05977): what people prefer, given the prompt of the
image's class.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vargrl.checkpoint import torch_format
from vargrl.data import names as class_names
from vargrl.data import tokenizer_files
from vargrl.io import downloads, paths
from vargrl.io import text as io_text
from vargrl.models.judges import blip
from vargrl.parallel import place
from vargrl.rewards import preprocess
from vargrl.rewards.judge import Judge, Tower

HOST = False
FILES = ('file', 'vocab')
LENGTH = 35  # tokens of a prompt; what is longer is cut, its end token kept
# Of the scores that the head was trained to give, https://github.com/THUDM/ImageReward.
MEAN, STD = 0.16717362830052426, 1.0333394966054072
PUBLISHED = {
  'file': 'THUDM/ImageReward ImageReward.pt',
  'vocab': 'google-bert/bert-base-uncased vocab.txt',
}


def judge(*, file, size, dtype, vocab, template, names):
  """r about -2 .. 2, the mean of ImageReward's training pairs at 0; it depends on the prompt's
  offset too.

  file: ImageReward.pt; '' for random weights of size 'smoke'. size: large, smoke. dtype: of the
  blocks' products. vocab: BERT's vocab.txt or tokenizer.json, or a folder with one of them; '' is
  the folder of `file`. template: a prompt with {class} in it. names: see data/names.py. Raises
  FileNotFoundError, ValueError; compiles nothing."""
  if size not in blip.SIZES:
    raise ValueError(f'size: {size!r} found, one of {sorted(blip.SIZES)} expected')
  c = blip.Config(**{**vars(blip.SIZES[size]), 'dtype': dtype})
  if file == '' and size != 'smoke':
    raise ValueError(
      f"file: '' found, the weights of size {size!r} expected; {download_hint('file', 'DIR')}"
    )
  path = paths.path(file).resolve() if file else None
  if path and not path.exists():
    raise FileNotFoundError(f'file: there is no {path}; {download_hint("file", path.parent)}')
  if path:
    torch_format.check(
      path, blip.torch_layouts(c), nn.unbox(jax.eval_shape(init(c), jax.random.key(0)))
    )
  texts = prompts(template, names)
  where = paths.path(vocab) if vocab else path and path.parent
  t_VL = encode_texts(where, texts, c.vocab) if where else encode_letters(texts, c.vocab)
  key = f'{path or "random"} {size} {dtype} blip'
  tower = Tower(
    lambda mesh: load_params(path, c, 'image', mesh),
    partial(image_features, c),
    lambda mesh: place.abstract_params(init(c), mesh)['image'],
  )
  return Judge(
    {key: tower},
    partial(load_own, path, c, t_VL),
    lambda own, features, samples: score(c, own, features[key], samples.record['label']),
    partial(abstract_own, c, t_VL),
  )


def download_hint(option, folder):
  """The end of a sentence: what brings the file of an option."""
  return f'{downloads.from_hub(PUBLISHED[option], folder)} brings it'


def init(c):
  return partial(blip.init, blip.Model(c))


def load_params(path, c, part, mesh):
  """One part of the network, 'image', 'text' or 'head', on the mesh."""
  shapes = place.abstract_params(init(c), mesh)
  if path:
    return torch_format.load(path, blip.torch_layouts(c), shapes, subtree=f'{part}/')
  print(f'reward ImageReward {part}: no file, random weights')
  # Of this part alone: the rest is not compiled.
  return place.init_sharded(lambda key: init(c)(key)[part], jax.random.key(0), shapes[part])


def image_features(c, params, image_Byxc):
  """image_Byxc in [-1, 1] -> the ViT's tokens x_BSD."""
  x_Byxc = preprocess.clip_input(image_Byxc, c.image_size, how='pil')
  return blip.Image(c).apply({'params': params}, x_Byxc)


def load_own(path, c, t_VL, mesh):
  """The Judge's own weights: the text encoder, the prompts' tokens, and the head as one affine
  map.
  """
  w_D, b = affine(jax.device_get(load_params(path, c, 'head', mesh)))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  small = {'tokens': t_VL, 'w': ((w_D / STD).astype(np.float32)), 'b': np.float32((b - MEAN) / STD)}
  return {'text': load_params(path, c, 'text', mesh)} | jax.tree.map(
    lambda x: jax.device_put(x, whole), small
  )


def abstract_own(c, t_VL, mesh):
  """What `load_own` would return, as shapes."""
  whole, shapes = (
    jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
    place.abstract_params(init(c), mesh),
  )
  small = {
    'tokens': (t_VL.shape, np.int32),
    'w': ((c.text_width,), np.float32),
    'b': ((), np.float32),
  }
  return {'text': shapes['text']} | {
    k: jax.ShapeDtypeStruct(*x, sharding=whole) for k, x in small.items()
  }


def affine(head):
  """(w_D, b) of the five affine layers after each other, float64."""
  w, b = None, None
  for layer in blip.HEAD:
    next_w, next_b = (np.asarray(head[str(layer)][name], np.float64) for name in 'wb')
    w, b = (next_w, next_b) if w is None else (w @ next_w, b @ next_w + next_b)
  return w[:, 0], b[0]


def score(c, own, image_BSD, label_B):
  """r_B, float32; NaN for a label that is no class: clamping would reward some other class."""
  known_B = (label_B >= 0) & (label_B < len(own['tokens']))
  t_BL = own['tokens'][jnp.where(known_B, label_B, 0)]
  x_BD = blip.Text(c).apply({'params': own['text']}, t_BL, t_BL >= 0, image_BSD)
  r_B = jnp.sum(x_BD * own['w'][None], -1) + own['b']
  return jnp.where(known_B, r_B, jnp.nan)


def prompts(template, names):
  """[the template with the name in the place of {class}, for every name]"""
  if not isinstance(template, str) or any(
    brace in template.replace('{class}', '') for brace in '{}'
  ):
    raise ValueError(
      f'template: {template!r} found, one text with {{class}} as its only braces expected'
    )
  return [template.replace('{class}', name) for name in class_names.load(names)]


def encode_texts(path, texts, vocab):
  """t_VL int32, -1 after the end: [CLS], word pieces, [SEP]; as transformers' BertTokenizer,
  uncased.
  """
  files = [path] if path.is_file() else [path / name for name in ('vocab.txt', 'tokenizer.json')]
  if not (found := [f for f in files if f.is_file()]):
    raise FileNotFoundError(
      f'vocab: no vocab.txt or tokenizer.json in {path}; {download_hint("vocab", path)}'
    )
  with tokenizer_files.told(f'vocab: {found[0]}', 'no vocabulary of BERT'):
    tokenizer = load_tokenizer(found[0])
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTH)
    rows = [tokenizer.encode(text).ids for text in texts]
    ends = [tokenizer.token_to_id(token) for token in ('[CLS]', '[SEP]')]
  if any([row[0], row[-1]] != ends for row in rows) or max(map(max, rows)) >= vocab:
    raise ValueError(
      f'vocab: {found[0]} gives {rows[0]}, tokens below {vocab} from [CLS] to [SEP] expected'
    )
  return pad_rows(rows)


def load_tokenizer(path):
  """The tokenizer of vocab.txt, a token in each line, or of tokenizer.json."""
  import tokenizers

  if paths.known_ending(path, ('.json',)):
    return tokenizer_files.load_json(path)
  lines = io_text.split_lines(io_text.read_text(path, max_bytes=tokenizer_files.MAX_BYTES))
  vocab = {line.rstrip(): i for i, line in enumerate(lines)}
  return tokenizers.BertWordPieceTokenizer(vocab, lowercase=True)


def encode_letters(texts, vocab):
  """Tokens of random weights: letters will do."""
  return pad_rows(
    [[1, *(2 + ord(letter) % (vocab - 2) for letter in text)][:LENGTH] for text in texts]
  )


def pad_rows(rows):
  """[V, the longest row], -1 at the ends: a padding that is masked, and no class pays for more of
  it.
  """
  out = np.full((len(rows), max(map(len, rows))), -1, np.int32)
  for line, row in zip(out, rows):
    line[: len(row)] = row
  return out
