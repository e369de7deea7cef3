"""A folder with a small tokenizer as Qwen2-VL's, and with pictures and dialogues about them."""

import json
import types

import numpy as np
import pytest
import small_qwen

from vargrl.data import image, text
from vargrl.data.dialogue import encode

LOOK = dict(patch=2, merge=2, frames=1, least=16, most=64)
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
  """words: a tokenizer's folder. pictures: a folder with 0.png (12 x 8) to 3.png. path: a .json of
  SAID, with pictures below the folder. form(**changes) -> encode.Form."""
  folder = tmp_path_factory.mktemp('talks')
  small_qwen.write(folder / 'words')
  words = text.with_drawing(text.read(folder / 'words'))
  (folder / 'words' / 'vocab.json').unlink()  # tokenizer.json is read in its place
  text.write(words, folder / 'words')
  for i, shape in enumerate([(12, 8, 3), (12, 8, 3), (8, 8, 3), (40, 30, 3)]):
    pixels = np.random.default_rng(i).integers(0, 256, shape).astype(np.uint8)
    (folder / f'{i}.png').write_bytes(image.png(pixels))
  (folder / 'talks.json').write_text(json.dumps([record(*x) for x in SAID]))

  def form(**changes):
    return encode.form(
      **dict(tokenizer=str(folder / 'words'), look=LOOK, size=(8, 8), crop='cover') | changes
    )

  return types.SimpleNamespace(
    words=str(folder / 'words'),
    pictures=folder,
    path=str(folder / 'talks.json'),
    form=form,
    look=LOOK,
    record=record,
  )


@pytest.fixture(scope='session')
def tell(talks):
  """(messages, names of pictures, **options) -> encode.Told."""

  def call(said, pictures=(), form=None, seed=0, **changes):
    dialogue = encode.Dialogue(tuple(said), tuple(str(talks.pictures / name) for name in pictures))
    options = dict(drawn=5, wanted='assistant', positions='mrope', prompt_drop=0.0) | changes
    return encode.whole(form or talks.form(), dialogue, np.random.default_rng(seed), **options)

  return call
