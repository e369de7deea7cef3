"""Dialogues of data files, in the schemas that VARGPT-v1.1 was released with.

Files are .json, .jsonl, TFDS data sets of the same fields, or .txt with a prompt in each line. A
record has `messages` [{'role': 'user', 'content': '<image>What is this?'}, {'role': 'assistant',
...}] and `images`, one for each <image> and <image_gen> in their order: paths, or in TFDS encoded
images. A preference ends with the user's message, and has `chosen` and `rejected`, an assistant's
message each. Whatever else a record has, such as an `answer`, is the metadata of its Dialogue.

Where the words <image> and <image_gen> are no places of images, a content is a list: [{'type':
'text', 'text': 'The word <image> marks'}, {'type': 'image'}], whose texts are words alone."""

import os
import pickle

import numpy as np

from vargrl.data import image, source
from vargrl.data.dialogue.messages import (
  IMAGE,
  IMAGE_GEN,
  IMAGE_PATTERN,
  Dialogue,
  from_file,
  image_placeholders,
  short,
)
from vargrl.io import paths, text

CHECKED_IMAGES = 1000  # records whose images must be there when a file is opened
FILES = ('.json', '.jsonl', '.txt')
RESERVED = ('messages', 'images', 'chosen', 'rejected')  # keys that are no metadata
ROLES = ('train', 'prompt', 'pair')  # what a record is for: an answer, a prompt, a preference


def open_source(dataset: str, split: str, dir: str, *, role: str):
  """(read, count): read(index) -> Dialogue, or of pairs (chosen, rejected), and how many there are.

  dataset: a .json or .jsonl, or of prompts a .txt, whose split is ''; dir: the folder of its
  images, '' for its own; or a TFDS name. role: one of ROLES. Raises ValueError, which names the
  first record that is wrong. Files are checked whole here, but for images beyond the first
  CHECKED_IMAGES records, which may lie in a bucket; TFDS records are checked as they are read."""
  if not dataset.endswith(FILES):
    return open_tfds(dataset, split, dir, role)
  if split:
    raise ValueError(f"{dataset}: split {split!r} found, '' expected of a file")
  kinds, there = FILES if role == 'prompt' else FILES[:2], paths.path(dataset).is_file()
  if not there or not dataset.endswith(kinds):
    what = 'found, which has prompts alone' if there else 'found, which is no file'
    raise ValueError(f'{dataset} {what}; one that ends with {" or ".join(kinds)} expected')
  folder, lines = dir or os.path.dirname(dataset), []
  folder = folder and paths.local(folder)
  for i, record in enumerate(read_records(dataset)):
    where = f'{dataset}: record {i}'
    try:
      parts, images = check_record(record, where, role)
      lines.append(pickle.dumps((parts, images, metadata(record))))
    except RecursionError:
      raise ValueError(f'{where}: JSON nested too deeply to be kept') from None
    for path in images if i < CHECKED_IMAGES else ():
      find_image(path, folder, where)
  if not lines:
    raise ValueError(f'{dataset}: 0 records found, at least 1 expected')
  # As bytes, which a worker process gets at once and which millions of records fit into.
  starts, table = np.cumsum([0, *map(len, lines)]), b''.join(lines)

  def read(i):
    parts, images, more = pickle.loads(table[starts[i] : starts[i + 1]])
    where = f'{dataset}: record {i}'
    return to_dialogue(parts, [find_image(path, folder, where) for path in images], more)

  return read, len(lines)


def read_records(path: str):
  """Yields the records of a file; a line of a .txt is a record with one message.

  Raises ValueError for what is not UTF-8 or not JSON, and for JSON that would cost many times its
  size."""
  if path.endswith('.txt'):
    lines = text.split_lines(text.read_text(path).rstrip())  # as many as names, see names.py
    for i, line in enumerate(lines, 1):
      if not line.strip():
        raise ValueError(f'{path}: an empty line {i} found, a prompt in each expected')
      yield {'messages': [{'role': 'user', 'content': line.strip()}]}
  elif path.endswith('.jsonl'):
    with paths.path(path).open('rb') as file:
      for i, line in enumerate(x for x in file if x.strip(b' \t\r\n\xef\xbb\xbf')):
        yield text.parse_json(line, f'{path}: record {i}')
  else:
    yield from text.read_json(path, list)


def find_image(path, folder, where):
  """The path of an image below the folder, or else as it is; image.Unreadable if there is none."""
  for place in (os.path.join(folder, path), path, home(path)):
    if is_file(place):
      return place
  raise image.Unreadable(
    f'{where}: picture {short(path)} found neither in {folder or "."!r} nor as it is, a file '
    'expected'
  )


def home(path):
  """The path with `~/` as the home folder."""
  return str(paths.path(path)) if path.startswith('~/') and '\0' not in path else path


def is_file(place):
  """Whether there is a file of this name, in which `~` is a letter as any other."""
  try:
    return paths.path(os.path.abspath(place)).is_file()
  except (OSError, ValueError):  # such as a name that is too long, or has a NUL
    return False


def check_record(record, where: str, role: str):
  """(parts, images) of a record: lists of messages [role, content], one or two, and its images.

  Of pairs, the parts are the dialogue with the chosen answer and with the rejected one; of a prompt
  without an answer, the dialogue with an empty one. role: one of ROLES. Raises ValueError, a
  sentence that begins with `where`, for what is wrong."""
  needed = {'messages'} | ({'chosen', 'rejected'} if role == 'pair' else set())
  if not isinstance(record, dict) or not needed <= record.keys():
    shape = short(sorted(record)) if isinstance(record, dict) else type(record).__name__
    raise ValueError(f'{where}: {shape} found, keys {sorted(needed)} expected')
  messages, images = messages_and_images(record, where)
  if bad := [x for x in images if x is None or isinstance(x, (int, float, dict, list))]:
    raise ValueError(f'{where}: picture {short(bad[0])} found, a path expected')
  messages, images = [role_content(m, where) for m in messages], list(images)
  if role == 'pair':
    answers = [role_content(record[key], where) for key in ('chosen', 'rejected')]
    places = [image_placeholders([answer]) for answer in answers]
    if any(place not in ([], [IMAGE_GEN]) for place in places) or places[0] != places[1]:
      said = [content for _, content in answers]
      raise ValueError(
        f'{where}: answers {short(said)} found, one {IMAGE_GEN} expected in both, or none'
      )
    parts = [[*messages, answer] for answer in answers]
  else:
    if role == 'prompt' and messages and messages[-1][0] == 'user':
      messages.append(['assistant', ''])
    parts = [messages]
  for part in parts:
    check_roles(part, where, empty_answer=role == 'prompt')
  check_count(parts, images, where, role)
  return parts, images


def check_count(parts, images, where, role):
  """Raises ValueError unless all places have an image; those of a prompt's answer may lack it."""
  before = len(image_placeholders(parts[0][:-1]))
  places = before + sum(len(image_placeholders(part[-1:])) for part in parts)
  if len(images) != places and not (role == 'prompt' and len(images) == before):
    raise ValueError(
      f'{where}: {places} places of pictures ({IMAGE}, {IMAGE_GEN}) and {len(images)} images found,'
      ' as many of both expected'
    )


def messages_and_images(record, where):
  """(messages, images) of a record, empty where it lacks them; ValueError unless both are lists."""
  found = record.get('messages', []), [] if record.get('images') is None else record['images']
  for name, value in zip(('messages', 'images'), found):
    if not isinstance(value, (list, tuple)):
      raise ValueError(f'{where}: {name} {short(value)} found, a list expected')
  return found


def role_content(message, where):
  """[role, content] of a message {'role', 'content'}; ValueError unless the first is a text, and
  the second one or a list, see messages.from_file."""
  read = message.get if isinstance(message, dict) else lambda key: None
  role, content = read('role'), read('content')
  if not isinstance(role, str) or not isinstance(content, (str, list, tuple)):
    raise ValueError(
      f"{where}: message {short(message)} found, texts 'role' and 'content' expected"
    )
  return [role, from_file(role, content, where)]


def check_roles(messages, where, *, empty_answer):
  """Raises ValueError unless user and assistant take turns, and have the images that they may have.

  A system message may come first. Users show images, assistants generate them. empty_answer: the
  last answer may be empty."""
  roles = [role for role, _ in messages]
  turns = roles[1:] if roles[:1] == ['system'] else roles
  if not turns or turns != ['user', 'assistant'] * (len(turns) // 2):
    if empty_answer and turns and not messages[-1][1]:
      roles = roles[:-1]  # which `check_record` has put there
    raise ValueError(
      f"{where}: roles {short(roles)} found, 'user' and 'assistant' in turns expected, the last "
      "'assistant'"
    )
  for i, (role, content) in enumerate(messages):
    wrong = {
      'system': IMAGE_PATTERN.findall(content),
      'user': IMAGE_GEN in content,
      'assistant': IMAGE in content,
    }[role]
    if wrong:
      raise ValueError(
        f'{where}: message {short(content)} of {role!r} found, {IMAGE} expected of users alone, '
        f'{IMAGE_GEN} of assistants'
      )
    last = empty_answer and i == len(messages) - 1
    if role == 'assistant' and not content.strip() and not last:
      raise ValueError(f'{where}: an empty answer found, words or {IMAGE_GEN} expected')


def metadata(record) -> dict:
  """What a record says besides messages and images, such as the answer that a reward expects."""
  return {key: x for key, x in record.items() if key not in RESERVED}


def to_dialogue(parts, images, metadata):
  """The Dialogue of what `check_record` returns; (chosen, rejected) of two parts."""
  parts = [tuple(map(tuple, part)) for part in parts]
  before = len(image_placeholders(parts[0][:-1]))
  if len(parts) == 1:
    own = [images[before:]]
  else:
    half = before + (len(images) - before) // 2
    own = [images[before:half], images[half:]]
  dialogues = [
    Dialogue(part, (*images[:before], *mine), metadata)
    for part, mine in zip(parts, own, strict=True)
  ]
  return tuple(dialogues) if len(dialogues) > 1 else dialogues[0]


def open_tfds(dataset, split, dir, role):
  """`open_source` of a TFDS data set."""
  records, spec = source.open_dataset(dataset, split, dir)
  kinds = dict(spec.items())
  for name in ('messages', *(('chosen', 'rejected') if role == 'pair' else ())):
    if name not in kinds:
      raise ValueError(f'{dataset}: features {sorted(kinds)} found, {name!r} expected among them')

  def read(i):
    try:
      record = dict(records[i])  # TFDS cannot leave a list of images as it is
    except Exception as e:  # Pillow's readers raise what they like
      raise image.Unreadable(f'{type(e).__name__}: {e}') from e
    columns = record['messages']
    record['messages'] = [
      decode_texts({k: columns[k][n] for k in columns}) for n in range(len(columns['role']))
    ]
    for key in ('chosen', 'rejected'):
      if role == 'pair':
        record[key] = decode_texts(record[key])
    more = {key: plain(x) for key, x in metadata(record).items()}
    return to_dialogue(*check_record(record, f'{dataset}/{split}: record {i}', role), more)

  return read, len(records)


def decode_texts(message):
  """A message {key: text} with its bytes decoded as UTF-8."""
  return {k: x.decode() if isinstance(x, bytes) else x for k, x in message.items()}


def plain(x):
  """A feature of TFDS as JSON would have it: text and numbers; arrays of numbers stay what they
  are."""
  if isinstance(x, dict):
    return {key: plain(value) for key, value in x.items()}
  if isinstance(x, np.generic) or (isinstance(x, np.ndarray) and x.dtype.hasobject):
    x = x.tolist()
  if isinstance(x, list):
    return [plain(value) for value in x]
  return x.decode() if isinstance(x, bytes) else x
