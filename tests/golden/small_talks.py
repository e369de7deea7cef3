"""A folder with a small tokenizer as Qwen2-VL's, and with pictures and dialogues about them."""

import json
import types

import numpy as np
import pytest
import small_qwen

from vargrl.data import image, text
from vargrl.data.dialogue import encode

VISION = dict(patch=2, merge=2, frames=1, min_pixels=16, max_pixels=64)
SAID = [  # messages, pictures
  ([('user', '<image>hello'), ('assistant', 'a cat')], ['0.png']),
  ([('user', 'hello the dog'), ('assistant', 'the dog.<image_gen>')], ['1.png']),
  ([('user', 'make <image> a cat'), ('assistant', 'it is: <image_gen>')], ['0.png', '1.png']),
  (
    [
      ('system', 'a cat'),
      ('user', 'hello'),
      ('assistant', 'the world'),
      ('user', 'a dog'),
      ('assistant', 'hello'),
    ],
    [],
  ),
]


def record(said, pictures, **more):
  return {
    'messages': [{'role': role, 'content': content} for role, content in said],
    'images': pictures,
  } | more


@pytest.fixture(scope='session')
def talks(tmp_path_factory):
  """tokenizer: its folder. images: a folder with 0.png (12 x 8) to 3.png. path: a .json of
  SAID, with images below the folder. format(**changes) -> encode.DialogueFormat."""
  folder = tmp_path_factory.mktemp('talks')
  small_qwen.write(folder / 'tokenizer')
  tokenizer = text.add_image_tokens(text.load(folder / 'tokenizer'))
  (folder / 'tokenizer' / 'vocab.json').unlink()  # tokenizer.json is read in its place
  text.save(tokenizer, folder / 'tokenizer')
  for i, shape in enumerate([(12, 8, 3), (12, 8, 3), (8, 8, 3), (40, 30, 3)]):
    pixels = np.random.default_rng(i).integers(0, 256, shape).astype(np.uint8)
    (folder / f'{i}.png').write_bytes(image.encode_png(pixels))
  (folder / 'talks.json').write_text(json.dumps([record(*x) for x in SAID]))

  def format(**changes):
    return encode.make_format(
      **dict(tokenizer=str(folder / 'tokenizer'), vision=VISION, size=(8, 8), crop='cover')
      | changes
    )

  return types.SimpleNamespace(
    tokenizer=str(folder / 'tokenizer'),
    images=folder,
    path=str(folder / 'talks.json'),
    format=format,
    vision=VISION,
    record=record,
  )


@pytest.fixture(scope='session')
def encode_talk(talks):
  """(messages, names of pictures, **options) -> encode.EncodedDialogue."""

  def call(said, images=(), format=None, seed=0, **changes):
    dialogue = encode.Dialogue(tuple(said), tuple(str(talks.images / name) for name in images))
    options = (
      dict(image_tokens=5, loss_on='assistant', positions='mrope', prompt_drop=0.0) | changes
    )
    return encode.encode(format or talks.format(), dialogue, np.random.default_rng(seed), **options)

  return call
