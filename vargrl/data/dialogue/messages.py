"""Dialogues as messages, in which IMAGE and IMAGE_GEN mark the places of images.

Where a text has one of these words itself, it is kept with a sign in it that no text can have, half
of a surrogate pair: so a place is found by the word alone. `mark` puts the sign in, `unmark` takes
it out again."""

import re
from typing import Any, NamedTuple

from vargrl.data import text

IMAGE, IMAGE_GEN = '<image>', '<image_gen>'  # as in the data files of VARGPT-v1.1
IMAGE_PATTERN = re.compile(f'({IMAGE}|{IMAGE_GEN})')
PLACES = {'user': IMAGE, 'assistant': IMAGE_GEN}  # of images that a role may have
SIGN = '\udfff'
SHORT = 300  # letters of a value in an error


class Dialogue(NamedTuple):
  """Messages, and the images that they have.

  Attributes:
    messages: ((role, content), ...), each content with IMAGE and IMAGE_GEN in the place of images;
      words that are none of these are marked.
    images: of all messages, in order; each uint8 [y, x, 3], the bytes of a file or its path.
    metadata: what a checker needs to judge an answer.
  """

  messages: tuple
  images: tuple
  metadata: Any = None

  @property
  def text(self):
    """The user's last message, without the places of images."""
    last = [content for role, content in self.messages if role == 'user'][-1]
    return unmark(' '.join(IMAGE_PATTERN.sub(' ', last).split()))


def mark(words: str) -> str:
  """A content of words alone, in which no place begins."""
  return words.replace('<', f'<{SIGN}')


def unmark(content: str) -> str:
  """The content with its marked words as they were written."""
  return content.replace(SIGN, '')


def image_placeholders(messages):
  """[IMAGE or IMAGE_GEN] of each image of messages ((role, content), ...), in order."""
  return [place for _, content in messages for place in IMAGE_PATTERN.findall(content)]


def short(value) -> str:
  """A value as a sentence names it: the beginning of a long one."""
  found = repr(value)
  return found if len(found) <= SHORT else f'{found[:SHORT]}...'


def from_file(role, content, where: str) -> str:
  """The content of a message from that of a file: a text, in which IMAGE and IMAGE_GEN are places,
  or a list of {'type': 'text', 'text': words alone} and {'type': 'image'}, the next image.

  Raises ValueError, a sentence that begins with `where`, for anything else, and for a text that no
  file can hold."""
  if isinstance(content, (list, tuple)):
    return from_parts(role, content, where)
  if not isinstance(content, str):
    raise ValueError(
      f'{where}: content {short(content)} of {role!r} found, a text expected, or a list of '
      "{'type': 'text', 'text': ...} and {'type': 'image'}"
    )
  try:
    content.encode()
  except UnicodeEncodeError as e:
    raise ValueError(
      f'{where}: half of a surrogate pair ({e.object[e.start]!a}) found in a text, whole '
      'characters expected'
    ) from None
  return content


def from_parts(role, parts, where):
  """`from_file` of a list, in which a text alone is one with places."""
  content = ''
  for part in parts:
    kind = part.get('type') if isinstance(part, dict) else None
    if isinstance(part, str):
      content += from_file(role, part, where)
    elif kind == 'text' and part.keys() == {'type', 'text'} and isinstance(part['text'], str):
      joint = (
        SIGN if '<' in content[-len(IMAGE_GEN) :] else ''
      )  # else '<ima' and 'ge>' were a place
      content += joint + mark(from_file(role, part['text'], where))
    elif kind == 'image' and part.keys() == {'type'} and role in PLACES:
      content += PLACES[role]
    else:
      raise ValueError(
        f"{where}: part {short(part)} of {role!r} found, {{'type': 'text', 'text': ...}} or "
        "{'type': 'image'} expected, the latter of users and assistants alone"
      )
  return content


def to_file(content: str):
  """What `from_file` reads as this content: a text if that has no words that look like places."""
  if IMAGE_PATTERN.findall(unmark(content)) == IMAGE_PATTERN.findall(content):
    return unmark(content)
  return [
    {'type': 'image'} if IMAGE_PATTERN.fullmatch(part) else {'type': 'text', 'text': unmark(part)}
    for part in IMAGE_PATTERN.split(content)
    if part
  ]


def to_chat_messages(messages):
  """Messages as a chat template takes them, with one GEN_PAD for every generated image, and words
  as they were written."""

  def convert(content):
    content = content.replace(IMAGE_GEN, text.GEN_START + text.GEN_PAD + text.GEN_END)
    if IMAGE not in content:
      return unmark(content)
    parts = [
      {'type': 'image'} if part == IMAGE else {'type': 'text', 'text': unmark(part)}
      for part in IMAGE_PATTERN.split(content)
    ]
    return [part for part in parts if part.get('text') != '']

  return [{'role': role, 'content': convert(content)} for role, content in messages]
