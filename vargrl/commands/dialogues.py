"""Dialogues that a user gives, as prompts of a policy: parsed, checked and encoded; and, with their
answers, as the records of a file."""

import logging
import os

import numpy as np

from vargrl.data.dialogue import encode, files, pack
from vargrl.data.dialogue import train as training_rows
from vargrl.data.dialogue.encode import DialogueFormat
from vargrl.data.dialogue.messages import (
  IMAGE,
  IMAGE_GEN,
  IMAGE_PATTERN,
  PLACES,
  Dialogue,
  from_file,
  image_placeholders,
  mark,
  to_file,
  unmark,
)
from vargrl.io import text
from vargrl.reporting import images

# Prompts are padded to the longest of them, up to a multiple of so many tokens, and embeddings.
MULTIPLE = 16


def parse(dialogue, where: str) -> Dialogue:
  """A Dialogue from a text, from messages [{'role', 'content'}], or from {'messages', 'images'};
  see chat.draw. Raises ValueError, which begins with `where`."""
  if isinstance(dialogue, str):
    dialogue = [{'role': 'user', 'content': dialogue}]
  record = dict(dialogue) if isinstance(dialogue, dict) else {'messages': dialogue}
  listed, rest = files.messages_and_images(record, where)
  messages, images = [], []
  for message in listed:
    content = message.get('content') if isinstance(message, dict) else None
    several = isinstance(content, (list, tuple))
    parts = list(content) if several else [content or '']
    for i, part in enumerate(parts):
      if isinstance(part, str):
        count = len(IMAGE_PATTERN.findall(part))
      elif isinstance(part, dict):  # as in a data file
        count = int(part.get('type') == 'image')
      else:
        images.append(part)
        parts[i], count = IMAGE, 0
      images += rest[:count]
      rest = rest[count:]
    messages.append(message | {'content': parts} if several else message)
  images += rest
  parts, images = files.check_record({'messages': messages, 'images': images}, where, 'prompt')
  sources = [image_source(image, where) for image in images]
  return check_prompt(files.to_dialogue(parts, sources, files.metadata(record)), where)


def image_source(image, where: str):
  """An image as a Dialogue has it: bytes, a path, or uint8 [y, x, 3]. Raises ValueError."""
  if isinstance(image, bytes):
    return image
  if isinstance(image, (str, os.PathLike)):
    return files.home(os.fspath(image))
  image = np.asarray(image)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
    raise ValueError(
      f'{where}: image {image.dtype} {list(image.shape)} found, uint8 [y, x, 3], bytes or a path '
      'expected'
    )
  return image


def check_prompt(dialogue: Dialogue, where: str) -> Dialogue:
  """The dialogue itself. Raises ValueError where there is nothing to answer, and for a generated
  image before the last answer."""
  *before, (_, last), _ = dialogue.messages
  if not last.strip():
    raise ValueError(f'{where}: an empty message to answer found, text or {IMAGE} expected')
  if IMAGE_GEN in ''.join(content for _, content in before):
    raise ValueError(
      f'{where}: {IMAGE_GEN} before the last answer found, which no prompt can hold; show that '
      f"image as {IMAGE} in the user's message"
    )
  return dialogue


def read(path):
  """([Dialogue], [name of each for errors]) of a file, see data/dialogue/files.py. Raises
  ValueError for what is wrong with it."""
  path = str(path)
  if not path.endswith(files.FILES):
    raise ValueError(
      f'--prompts: {path} found, a file that ends with {" or ".join(files.FILES)} expected'
    )
  load, count = files.open_source(path, '', '', role='prompt')
  names = [f'{path}: record {i}' for i in range(count)]
  return [check_prompt(load(i), name) for i, name in enumerate(names)], names


def begin_image(dialogue: Dialogue, begin: str) -> Dialogue:
  """The dialogue with an answer that has an image, after the text `begin` unless its own answer has
  one."""
  *before, (role, answer) = dialogue.messages
  if IMAGE_GEN in answer:
    return dialogue
  return dialogue._replace(messages=(*before, (role, begin + IMAGE_GEN)))


def encode_prompts(
  format: DialogueFormat, dialogues, names, *, generate, length, patches, trained_length
):
  """{feature: array [n, ...]} of prompts, all padded alike.

  generate: the answer begins with its text up to its first image. length: tokens of a padded
  prompt; 0: of the longest, which may have `trained_length` at most. patches: of its shown images;
  0: of the longest. Raises ValueError, which begins with the name of a dialogue."""
  encoded = encode_all(
    lambda x: encode.encode_prompt(format, x, prefill_image=generate), dialogues, names
  )
  for name, prompt in zip(names, encoded):
    if not length and len(prompt.tokens) > trained_length:
      raise ValueError(
        f'{name}: {len(prompt.tokens)} tokens found, at most {trained_length} (data.length, what '
        'was trained) expected'
      )
  warn_unknown(format, encoded, names)
  round_up = lambda sizes, multiple: -(-max(sizes) // multiple) * multiple
  length = length or round_up([len(x.tokens) for x in encoded], MULTIPLE)
  patches = patches or round_up(
    [len(x.vision.patches) for x in encoded], MULTIPLE * format.merge**2
  )
  pack.check_budget(pack.RowBudget(length, patches, 0, 1), format)
  row = lambda x: pack.prompt_row(x, format, length=length, max_patches=patches)
  rows = encode_all(row, encoded, names)
  return {key: np.stack([row[key] for row in rows]) for key in pack.PROMPT_FEATURES}


def encode_all(encode_one, items, names):
  """[encode_one(item)]. Raises ValueError for the first item that cannot be encoded."""
  out = [
    training_rows.try_encode(name, lambda x=x: encode_one(x))
    for name, x in zip(names, items, strict=True)
  ]
  if wrong := [why for _, why in out if why]:
    raise ValueError(wrong[0])
  return [x for x, _ in out]


def warn_unknown(format: DialogueFormat, encoded, names):
  """Warns of prompts with words for which the tokenizer has only its token of the unknown."""
  tokenizer = format.tokenizer.backend
  unknown = tokenizer.token_to_id(getattr(tokenizer.model, 'unk_token', None) or '')
  for name, prompt in zip(names, encoded):
    if unknown in prompt.tokens:
      logging.warning('%s: it has words that the tokenizer does not know', name)


def save_record(folder, i, dialogue: Dialogue, answer):
  """The record of a dialogue with its answer, as data/dialogue/files.py reads it, relative to
  `folder`, where the images of the answer are written."""
  *before, _ = dialogue.messages
  content, names = '', []
  for part in answer:
    if isinstance(part, str):
      content += mark(part)
      continue
    names.append(f'{i:05d}_{len(names)}.png')
    images.save_png(folder / names[-1], part)
    content += IMAGE_GEN
  messages = [
    {'role': role, 'content': to_file(x)} for role, x in (*before, ('assistant', content))
  ]
  shown = dialogue.images[: len(image_placeholders(before))]
  return {'messages': messages, 'images': [*map(os.path.abspath, shown), *names]}


def contents(folder, record):
  """[(role, [text or path of an image])] of a record; places beyond its images are words."""
  found, rest = [], iter(record['images'])
  for message in record['messages']:
    role, parts = message['role'], []
    for part in IMAGE_PATTERN.split(from_file(role, message['content'], folder)):
      path = next(rest, None) if part == PLACES.get(role) else None
      parts.append(unmark(part) if path is None else folder / path)
    found.append((role, parts))
  return found


def read_records(path):
  """The records of answers.jsonl up to the first that a crash has damaged, [] without a file."""
  data = path.read_bytes() if path.exists() else b''
  records, end = [], 0
  for line, record in text.parse_rows(data):
    if not data.startswith(line, end):
      break
    records, end = [*records, record], end + len(line)
  return records
