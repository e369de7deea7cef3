"""Reads mutants of mutations.py, one for each line of its input that names a seed, and writes how
each ended.

Memory is bounded for each: what the process has, BYTES, and TIMES the size of the files. What a
file makes the process do, other than to read, is heard by an audit hook."""

import json
import os
import pathlib
import resource
import shutil
import sys
import tempfile
import time

import mutations
import numpy as np
import small_bpe
import small_qwen

from vargrl.checkpoint import files, torch_format
from vargrl.data import clip_bpe, text
from vargrl.types import TorchLayout

TIMES, BYTES = 10, 2**28
LAYOUTS = (
  TorchLayout(
    {'w': ('blocks.0.w', 'i o -> i o')},
    ignored=('b', r'module\.a'),
    nested_at=('model',),
    config={'hidden_size': 3},
  ),
)
SHAPES = {'w': np.zeros((2, 3), np.float32)}
ACTS = ('os.', 'subprocess.', 'socket.', 'shutil.', 'pty.', 'ctypes.', 'webbrowser.', 'urllib.')
READS = ('os.listdir', 'os.scandir')
heard, armed = [], False


def hear(event, args):
  """The audit hook: notes what a reader has no cause to do."""
  if not armed:
    return
  if event == 'open':
    _, mode, flags = args
    wrong = any(x in (mode or '') for x in 'wax+') or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
  elif event == 'import':
    wrong = not args[0].startswith(('encodings', 'jinja2'))
  else:
    wrong = event.startswith(ACTS) and event not in READS
  if wrong:
    heard.append(event)


def read(kind, folder):
  """Reads the files of a mutant as the library does."""
  if kind == 'clip':
    clip_bpe.encode(folder, small_bpe.TEXTS[:6])
  elif kind == 'tokenizer':
    tokenizer = text.load(folder)
    for line in (*small_qwen.TEXTS[:6], 'a' * 40 + 'b'):
      text.decode(tokenizer, text.encode(tokenizer, line))
    text.add_image_tokens(tokenizer)
    for talk in small_qwen.DIALOGUES:
      text.encode_prompt(tokenizer, talk[:1], counts=(1, 1) if len(talk) == 2 else ())
    text.encode_dialogue(tokenizer, small_qwen.DIALOGUES[1])
  else:
    path = next((p for p in folder.iterdir() if p.name.startswith('x.')), folder)
    files.check_config(path, LAYOUTS[0].config)
    for x in files.open_tensors(path).values():
      if hasattr(x, 'shape') and np.prod(x.shape, dtype=object) < 10**6:
        np.asarray(x).tobytes()
    torch_format.check(path, LAYOUTS, SHAPES)


def outcome(kind, folder):
  """(how reading ended, what was said)."""
  try:
    read(kind, folder)
  except (ValueError, OSError) as e:
    said, cause = str(e), e
    while cause is not None:
      if isinstance(cause, MemoryError) and not said.count('chat template'):
        return 'memory', said
      cause = cause.__cause__ or cause.__context__
    named = str(folder) in said or said.startswith('dialogue: ')
    lines = '\n' in said and 'tensors differ' not in said
    return ('refused' if named and not lines and len(said) < 3000 else 'traceback'), said
  except MemoryError as e:
    return 'memory', repr(e)
  except BaseException as e:
    return 'traceback', f'{type(e).__name__}: {e}'
  return 'read', ''


def bound(size):
  """Bounds the memory of this process by what it has and what files of `size` bytes may cost."""
  used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
  _, most = resource.getrlimit(resource.RLIMIT_AS)
  resource.setrlimit(resource.RLIMIT_AS, (used + TIMES * size + BYTES, most))


def attempt(kinds, folder, seed):
  """{how a mutant ended}; its files are written before it is bounded."""
  global armed
  kind, content = mutations.mutant(kinds, seed) if seed >= 0 else whole(kinds, seed)
  folder.mkdir()
  for name, data in content.items():
    (folder / name).write_bytes(data)
  _, most = resource.getrlimit(resource.RLIMIT_AS)
  began = time.process_time()
  bound(sum(map(len, content.values())))
  heard.clear()
  armed = True
  try:
    how, said = outcome(kind, folder)
  finally:
    armed = False
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
  shutil.rmtree(folder)
  how = 'executed' if heard and seed >= 0 else how
  seconds = time.process_time() - began
  return {'kind': kind, 'how': how, 'said': f'{heard or ""}{said}'[:400], 'seconds': seconds}


def whole(kinds, seed):
  """(kind, files) of an original, by a negative number."""
  every = [(kind, x) for kind, several in sorted(kinds.items()) for x in several]
  return every[seed % len(every)]


def main():
  out = os.fdopen(os.dup(1), 'w')
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, 1)
  os.dup2(null, 2)  # threads of Rust that end say so there
  sys.addaudithook(hear)
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    kinds = mutations.originals(folder)
    for seed in range(-sum(map(len, kinds.values())), 0):
      attempt(kinds, folder / 'x', seed)  # imports what is imported late
    print(file=out, flush=True)  # ready
    for line in sys.stdin:
      print(json.dumps(attempt(kinds, folder / 'x', int(line))), file=out, flush=True)


if __name__ == '__main__':
  main()
