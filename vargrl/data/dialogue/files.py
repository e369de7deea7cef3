"""Dialogues of data files, in the schemas that VARGPT-v1.1 was released with: .json, .jsonl, and
TFDS data sets of the same fields; and .txt with a prompt in each line.

A record has messages [{'role': 'user', 'content': '<image>What is this?'}, {'role': 'assistant',
...}] and images, one for each <image> and <image_gen> in their order: paths, or in TFDS encoded
pictures. A preference ends with the user's message and has chosen and rejected, an assistant's
message each."""

import json
import os

import numpy as np

from vargrl.data import image, source
from vargrl.data.dialogue.encode import DRAWN, PLACE, SEEN, Dialogue, places

CHECKED = 1000
FILES = ('.json', '.jsonl', '.txt')
ENDS = (
  'answer',
  'prompt',
  'pair',
)  # of a record: as it is trained, as it is continued, as it is preferred


def opened(dataset: str, split: str, dir: str, *, ends: str):
  """(record number -> Dialogue, or of pairs (chosen, rejected), how many there are); ValueError
  that names the first record that is wrong. Files are checked whole here, but for pictures beyond
  the first CHECKED records, which may lie in a bucket; TFDS records as they are read.

  dataset: a .json or .jsonl, or of prompts a .txt, whose split is ''; dir: the folder of its
  images, '' for its own; or a TFDS name."""
  if not dataset.endswith(FILES):
    return from_tfds(dataset, split, dir, ends)
  if split:
    raise ValueError(f"{dataset}: split {split!r} found, '' expected of a file")
  kinds = FILES if ends == 'prompt' else FILES[:2]
  if not os.path.isfile(dataset) or not dataset.endswith(kinds):
    what = (
      'found, which has prompts alone' if os.path.isfile(dataset) else 'found, which is no file'
    )
    raise ValueError(f'{dataset} {what}; one that ends with {" or ".join(kinds)} expected')
  folder, lines = dir or os.path.dirname(dataset), []
  for i, record in enumerate(listed(dataset)):
    where = f'{dataset}: record {i}'
    parts, images = checked(record, where, ends)
    if i < CHECKED:
      for path in images:
        found(path, folder, where)
    lines.append(json.dumps([parts, images]).encode())
  if not lines:
    raise ValueError(f'{dataset}: 0 records found, at least 1 expected')
  # As bytes, which a worker process gets at once and which millions of records fit into.
  starts, table = np.cumsum([0, *map(len, lines)]), b''.join(lines)

  def read(i):
    parts, images = json.loads(table[starts[i] : starts[i + 1]])
    return dialogue(parts, [found(path, folder, f'{dataset}: record {i}') for path in images])

  return read, len(lines)


def listed(path: str):
  """The records of a file, one by one."""
  try:
    yield from records_of(path)
  except UnicodeDecodeError as e:
    raise ValueError(
      f'{path}: byte {e.start} is {e.object[e.start]:#04x}, text in UTF-8 expected'
    ) from e


def records_of(path):
  with open(path, encoding='utf-8') as file:
    if path.endswith('.txt'):
      lines = file.read().rstrip().splitlines()  # as many as there are names in it, see names.py
      for i, line in enumerate(lines, 1):
        if not line.strip():
          raise ValueError(f'{path}: an empty line {i} found, a prompt in each expected')
        yield {'messages': [{'role': 'user', 'content': line.strip()}]}
      return
    if path.endswith('.jsonl'):
      for i, line in enumerate(x for x in file if x.strip()):
        yield loads(line, f'{path}: record {i}')
      return
    records = loads(file.read(), path)
  if not isinstance(records, list):
    raise ValueError(f'{path}: {type(records).__name__} found, a list of records expected')
  yield from records


def loads(text, where):
  try:
    return json.loads(text)
  except ValueError as e:
    raise ValueError(f'{where}: no JSON ({e})') from e


def found(path, folder, where):
  """The path of a picture: below the folder if it is there, as it is otherwise."""
  for place in (os.path.join(folder, path), path):
    if os.path.isfile(place):
      return place
  raise image.Unreadable(
    f'{where}: picture {path!r} found neither in {folder or "."!r} nor as it is, a file expected'
  )


def checked(record, where: str, ends: str):
  """([messages, or of pairs messages with the chosen, messages with the rejected], images);
  ValueError for what is wrong, in a sentence that begins with `where`."""
  needed = {'messages'} | ({'chosen', 'rejected'} if ends == 'pair' else set())
  if not isinstance(record, dict) or not needed <= record.keys():
    shape = sorted(record) if isinstance(record, dict) else type(record).__name__
    raise ValueError(f'{where}: {shape} found, keys {sorted(needed)} expected')
  messages, images = lists(record, where)
  if bad := [x for x in images if x is None or isinstance(x, (int, float, dict, list))]:
    raise ValueError(f'{where}: picture {bad[0]!r} found, a path expected')
  messages, images = [plain(m, where) for m in messages], list(images)
  if ends == 'pair':
    answers = [plain(record[key], where) for key in ('chosen', 'rejected')]
    for role, said in answers:
      if places([(role, said)]) != [DRAWN]:
        raise ValueError(f'{where}: answer {said!r} found, one {DRAWN} expected in it')
    parts = [[*messages, answer] for answer in answers]
  else:
    if ends == 'prompt' and messages and messages[-1][0] == 'user':
      messages.append(['assistant', ''])
    parts = [messages]
  for part in parts:
    check_roles(part, where, empty=ends == 'prompt')
  before = len(places(parts[0][:-1]))
  wanted = before + sum(len(places(part[-1:])) for part in parts)
  if len(images) != wanted and not (ends == 'prompt' and len(images) == before):
    raise ValueError(
      f'{where}: {wanted} places of pictures ({SEEN}, {DRAWN}) and {len(images)} images found, as '
      'many '
      'of both expected'
    )
  return parts, images


def lists(record, where):
  """(messages, images) of a record, which may lack either."""
  found = record.get('messages', []), [] if record.get('images') is None else record['images']
  for name, value in zip(('messages', 'images'), found):
    if not isinstance(value, (list, tuple)):
      raise ValueError(f'{where}: {name} {value!r} found, a list expected')
  return found


def plain(message, where):
  """[role, content] of a message."""
  if not isinstance(message, dict) or not all(
    isinstance(message.get(key), str) for key in ('role', 'content')
  ):
    raise ValueError(f"{where}: message {message!r} found, texts 'role' and 'content' expected")
  return [message['role'], message['content']]


def check_roles(messages, where, *, empty):
  """Who speaks, and who shows and draws pictures. empty: the last answer may be."""
  roles = [role for role, _ in messages]
  turns = roles[1:] if roles[:1] == ['system'] else roles
  if not turns or turns != ['user', 'assistant'] * (len(turns) // 2):
    if empty and turns and not messages[-1][1]:
      roles = roles[:-1]  # which `checked` has put there
    raise ValueError(
      f"{where}: roles {roles} found, 'user' and 'assistant' in turns expected, the last "
      "'assistant'"
    )
  for i, (role, said) in enumerate(messages):
    wrong = {'system': PLACE.findall(said), 'user': DRAWN in said, 'assistant': SEEN in said}[role]
    if wrong:
      raise ValueError(
        f'{where}: message {said!r} of {role!r} found, {SEEN} expected of users alone, {DRAWN} of '
        'assistants'
      )
    if role == 'assistant' and not said.strip() and not (empty and i == len(messages) - 1):
      raise ValueError(f'{where}: an empty answer found, words or {DRAWN} expected')


def dialogue(parts, images):
  """What `checked` gave as a Dialogue, or as two."""
  parts = [tuple(map(tuple, part)) for part in parts]
  before = len(places(parts[0][:-1]))
  own = (
    [images[before:]] if len(parts) == 1 else [images[before : before + 1], images[before + 1 :]]
  )
  whole = [Dialogue(part, (*images[:before], *mine)) for part, mine in zip(parts, own, strict=True)]
  return tuple(whole) if len(whole) > 1 else whole[0]


def from_tfds(dataset, split, dir, ends):
  """`opened` of a TFDS data set."""
  records, spec = source._open(dataset, split, dir)
  kinds = dict(spec.items())
  for name in ('messages', 'images', *(('chosen', 'rejected') if ends == 'pair' else ())):
    if name not in kinds:
      raise ValueError(f'{dataset}: features {sorted(kinds)} found, {name!r} expected among them')

  def read(i):
    try:
      record = dict(records[i])  # TFDS cannot leave a list of pictures as it is
    except Exception as e:  # Pillow's readers raise what they like
      raise image.Unreadable(f'{type(e).__name__}: {e}') from e
    said = record['messages']
    record['messages'] = [texts({k: said[k][n] for k in said}) for n in range(len(said['role']))]
    for key in ('chosen', 'rejected'):
      if ends == 'pair':
        record[key] = texts(record[key])
    return dialogue(*checked(record, f'{dataset}/{split}: record {i}', ends))

  return read, len(records)


def texts(message):
  return {k: x.decode() if isinstance(x, bytes) else x for k, x in message.items()}
