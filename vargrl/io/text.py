"""Text and JSON of files: one sentence names the file for whatever is wrong with it.

Text is UTF-8, with or without a byte order mark. Lines end at \\n or \\r\\n alone: str.splitlines
also ends them at U+2028 and at form feeds, which stand within texts.
"""

import json
import os
import pathlib
import re
from typing import Any

from vargrl.io import paths

# What a value costs in memory, at least: an empty list, a dictionary of one key, a place in a list.
COST = {'[': 56, '{': 150, ',': 8}
# A file may cost so many times its size, and so many bytes more.
TIMES, BYTES = 10, 2**28
STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
SURROGATE = re.compile(r'\\u[dD][89a-fA-F]')


def decode_text(data: bytes, where: str) -> str:
  """The text of bytes in UTF-8; ValueError, a sentence that begins with `where`, if it is none."""
  try:
    return data.decode('utf-8-sig')
  except UnicodeDecodeError as e:
    raise ValueError(
      f'{where}: byte {e.start} is {e.object[e.start]:#04x}, text in UTF-8 expected'
    ) from e


def read_text(file: str | os.PathLike, *, max_bytes: float = float('inf')) -> str:
  """The text of a file, line ends as they are.

  Raises OSError if it cannot be read, ValueError if it is no UTF-8 or has more than max_bytes."""
  file = paths.path(file)
  if (size := file.stat().st_size) > max_bytes:
    raise ValueError(f'{file}: {size} bytes found, at most {max_bytes:.0f} expected')
  return decode_text(file.read_bytes(), str(file))


def split_lines(text: str) -> list[str]:
  """The lines of a text without their ends, which are \\n or \\r\\n; the last one may lack it."""
  lines = text.replace('\r\n', '\n').split('\n')
  return lines if lines[-1] else lines[:-1]


def read_lines(file: str | os.PathLike) -> list[str]:
  """`split_lines` of a file; raises like `read_text`."""
  return split_lines(read_text(file))


def parse_json(text: str | bytes, where: str, kind: type | tuple = object) -> Any:
  """The value of a JSON text.

  kind: the type that it must have, such as dict. Raises ValueError, a sentence that begins with
  `where`: for what is no JSON, for another type, for a text with half of a surrogate pair, which no
  file can hold, and for nesting and lists so deep or long that reading them would cost more than
  TIMES the size and BYTES."""
  text = decode_text(text, where) if isinstance(text, bytes) else text
  check_cost(text, where)
  try:
    value = json.loads(text)
    if SURROGATE.search(text):
      json.dumps(value, ensure_ascii=False).encode()
  except RecursionError:
    raise ValueError(f'{where}: JSON nested too deeply to be read') from None
  except UnicodeEncodeError as e:
    raise ValueError(
      f'{where}: half of a surrogate pair ({e.object[e.start]!a}) found in a text, whole '
      'characters expected'
    ) from None
  except ValueError as e:
    raise ValueError(f'{where}: no JSON ({e})') from e
  if not isinstance(value, kind):
    kinds = kind if isinstance(kind, tuple) else (kind,)
    names = {dict: 'a dictionary', list: 'a list', str: 'a text'}
    expected = ' or '.join(names.get(k, k.__name__) for k in kinds)
    raise ValueError(f'{where}: {type(value).__name__} found in JSON, {expected} expected')
  return value


def check_cost(text: str, where: str):
  """Raises ValueError for JSON whose lists and dictionaries would take many times its memory."""
  most = TIMES * len(text) + BYTES
  cost = lambda text: sum(bytes_each * text.count(sign) for sign, bytes_each in COST.items())
  if cost(text) > most and (found := cost(STRING.sub('', text))) > most:
    raise ValueError(
      f'{where}: JSON of {len(text)} characters that would take {found / 2**20:.0f} MiB of memory, '
      f'at most {most / 2**20:.0f} expected'
    )


def read_json(file: str | os.PathLike, kind: type | tuple = dict, *, max_bytes=float('inf')) -> Any:
  """The value of a JSON file; raises like `read_text` and `parse_json`, naming the file."""
  return parse_json(read_text(file, max_bytes=max_bytes), str(paths.path(file)), kind)


def read_own_json(file: str | os.PathLike) -> dict | None:
  """The dictionary in a JSON file that this library wrote for people or to check a later call.

  None if there is no such file, or if a crash has left it empty or cut: such a file never stands
  in the way."""
  try:
    return read_json(file)
  except (OSError, ValueError):
    return None


def parse_rows(data: bytes) -> list[tuple[bytes, dict]]:
  """(line with its end, row) of the whole rows of JSON lines that this library wrote.

  A kill cuts the last one and a crash leaves zeros anywhere: lines that are no dictionary are left
  out."""
  rows = []
  for line in data.split(b'\n'):
    try:
      rows.append((line + b'\n', parse_json(line, 'row', dict)))
    except ValueError:
      continue
  return rows


def write_bytes(file: str | os.PathLike, data: bytes) -> None:
  """Writes a file, and the folder it is in, so that a kill or a crash leaves the old or the new."""
  file = paths.path(file)
  file.parent.mkdir(parents=True, exist_ok=True)
  part = file.with_name(f'.{file.name}.{os.getpid()}.part')
  try:
    with part.open('wb') as out:
      out.write(data)
      out.flush()
      os.fsync(out.fileno())
    os.replace(part, file)
  finally:
    part.unlink(missing_ok=True)


def write_text(file: str | os.PathLike, text: str) -> None:
  """`write_bytes` of a text in UTF-8."""
  write_bytes(file, text.encode())


def write_json(file: str | os.PathLike, value: Any) -> None:
  """`write_text` of a value as JSON, indented."""
  write_text(file, json.dumps(value, indent=2) + '\n')


def check_writable(folder: str | os.PathLike, flag: str, *, keep: bool = True) -> pathlib.Path:
  """Makes a folder and a file in it, which is removed, before anything is computed for it.

  keep: the folder stays; else those that were made here are removed. Raises ValueError, which
  begins with `flag`, if that cannot be done."""
  folder = paths.path(folder)
  probe = folder / f'.{os.getpid()}.part'
  made = [x for x in (folder, *folder.parents) if not keep and not os.path.lexists(x)]
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe.write_bytes(b'')
    probe.unlink()
    for x in made:
      x.rmdir()
  except OSError as e:
    raise ValueError(f'{flag}: cannot write to {folder} ({e.strerror})') from e
  return folder


def check_file_writable(file: str | os.PathLike, flag: str) -> pathlib.Path:
  """`check_writable` of a file that is to be written; leaves nothing behind."""
  file = paths.path(file)
  if file.is_dir():
    raise ValueError(f'{flag}: {file} is a folder, a file expected')
  check_writable(file.parent, flag, keep=False)
  return file
