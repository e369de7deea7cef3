"""Files of checkpoints and tokenizers, and seeded changes of them that are wrong in many ways.

    python tests/checkpoint/mutations.py --count=100000 --seed=1

reads as many of them in child processes (fuzz_child.py), each with bounds on memory and time, and
prints how they ended, by kind of file.
"""

import gzip
import io
import json
import pathlib
import pickle
import pickletools
import random
import re
import sys
import zipfile

ROOT = pathlib.Path(__file__).parents[1]
for folder in (ROOT / 'golden', ROOT / 'checkpoint'):
  if str(folder) not in sys.path:
    sys.path.insert(0, str(folder))

import numpy as np  # noqa: E402
import safetensors.numpy  # noqa: E402
import small_bpe  # noqa: E402
import small_qwen  # noqa: E402
import torch_file  # noqa: E402

from vargrl.data import text  # noqa: E402

MAX_BYTES = 2**20  # of a changed file
NUMBERS = (
  '0',
  '-1',
  '1',
  '2147483648',
  '9223372036854775808',
  '1e308',
  'NaN',
  '4294967295',
  '1e999',
)
VALUES = (None, True, -1, 0, 2**31, 2**63, 1e308, 0.5, '', 'x', [], {}, '\ud83d', 'a' * 5000)
# What asks for much in a template, or does what it may not.
SNIPPETS = (
  "{{ 'a' * 10**9 }}",
  '{% for i in range(99999) %}',
  '{% endfor %}',
  '{{ messages|tojson(indent=99999) }}',
  "{% set n=namespace(x='ab') %}{% for i in range(99) %}{% set n.x=n.x~n.x %}{% endfor %}",
  '{% macro f(n) %}{{ f(n-1) }}{{ f(n-1) }}{% endmacro %}{{ f(60) }}',
  "{{ ''.__class__.__mro__ }}",
  '{% set messages = [messages, messages] %}',
  '{{ messages }}',
  '{{ ' + '(' * 200,
  "{{ '%999999999d' % 1 }}",
  '{{ raise_exception(messages) }}',
  '{% generation %}',
  '{% endgeneration %}',
  "|replace('', 'aaaaaaaa')",
  '|list|string',
)
REGEXES = ('(a+)+$', '(', '.*.*.*.*x', '(?<=a)', '', '[', 'a{99999}', r'(\w|\s)*x')
W = np.arange(6, dtype=np.float32).reshape(2, 3)
PLAIN = {
  'lr': 0.5,
  'betas': (0.9, 0.999),
  'groups': [1, 2**40, None],
  '3': {4: 'é'},
  'set': {1, 'a'},
}
EXTRA = (  # instructions that are inserted
  *(
    b'N',
    b'(',
    b')',
    b']',
    b'}',
    b'\x8f',
    b't',
    b'l',
    b'd',
    b'e',
    b'u',
    b'a',
    b's',
    b'b',
    b'R',
    b'0',
  ),
  *(b'1', b'\x85', b'\x86', b'\x87', b'\x90', b'\x91', b'\x93', b'\x94', b'Q', b'2', b'.', b'\x81'),
  *(b'h\0', b'h\1', b'h\2', b'q\0', b'q\1', b'K\xff', b'J\xff\xff\xff\xff', b'X\1\0\0\0a'),
  b'X\xff\xff\xff\x7fa',
  b'\x8a\x09' + b'\xff' * 8 + b'\x7f',
  b'X\0\x10\0\0' + b'a' * 4096,
  torch_file.global_name('os system') + torch_file.tuple_of(torch_file.plain('touch x')) + b'R',
  torch_file.global_name('builtins set'),
  torch_file.global_name('collections OrderedDict'),
  torch_file.global_name('_codecs encode') + b'h\0X\6\0\0\0latin1\x86R',
  torch_file.global_name('torch Size'),
  torch_file.float_tensor((0, 2**62), (1, 1)),
  torch_file.float_tensor((2**30, 2**20), (0, 0)),
)


def pth_codes():
  """Pickles as torch.save writes them, and others by the protocols of Python."""
  hooks = torch_file.call('collections OrderedDict')
  state = torch_file.dict_of(
    ('module.blocks.0.w', torch_file.float_tensor()),
    ('module.b', torch_file.float_tensor((3,), (1,))),
  )
  both = (('model', state), ('optimizer', torch_file.plain(PLAIN)), ('meta', hooks))
  yield state
  yield torch_file.dict_of(*both)
  yield torch_file.dict_of(*both[1:], *both[:1])
  for protocol in (2, 3, 4):
    yield pickle.dumps(PLAIN | {'list': [*range(300)]}, protocol)[2:-1]


def archive(code):
  """The bytes of a .pth file of a pickle."""
  return torch_file.write(io.BytesIO(), code, {'0': W}).getvalue()


def originals(folder):
  """{kind: [{name: bytes} of files that are right]}; folder: an empty one."""
  states = {'blocks.0.w': W, 'b': np.ones(3, np.float16)}, {'module.a': W}
  tensors = [safetensors.numpy.save(state) for state in states]
  index = {'metadata': {'total_size': 54}, 'weight_map': {'blocks.0.w': 'a.safetensors'}}
  index['weight_map'] |= {'b': 'a.safetensors', 'module.a': 'b.safetensors'}
  config = {'hidden_size': 3, 'text_config': {'rope_scaling': {'type': 'x', 'sections': [1, 2]}}}
  parts = {'a.safetensors': tensors[0], 'b.safetensors': tensors[1]}
  kinds = {
    'pth': [{'x.pth': archive(code)} for code in pth_codes()],
    'safetensors': [
      {'x.safetensors': safetensors.numpy.save({key: W}, {'format': 'pt'})}
      for key in ('blocks.0.w', 'module.blocks.0.w', 'a.b')
    ]
    + [{'x.safetensors': tensors[0]}],
    'index': [
      {
        'model.safetensors.index.json': json.dumps(index).encode(),
        'config.json': json.dumps(config).encode(),
      }
      | parts
    ],
  }
  kinds['tokenizer'] = []
  for i, template in enumerate((None, small_qwen.BLOCKS)):
    here = folder / str(i)
    small_qwen.write(here, template)
    old = {path.name: path.read_bytes() for path in here.iterdir()}
    kinds['tokenizer'].append(old)
    text.load(here).backend.save(str(here / 'tokenizer.json'))
    new = {name: (here / name).read_bytes() for name in ('tokenizer.json', 'tokenizer_config.json')}
    kinds['tokenizer'].append(new | {'chat_template.jinja': text.CHATML.encode()})
  small_bpe.write(folder)
  name = 'bpe_simple_vocab_16e6.txt.gz'
  kinds['clip'] = [
    {name: (folder / name).read_bytes()},
    {path.name: path.read_bytes() for path in (folder / 'hf').iterdir()},
  ]
  return kinds


def mutant(kinds, seed):
  """(kind, {name: bytes}) of a seed: an original with one to four changes of one of its files."""
  rng = random.Random(seed)
  kind = rng.choice(sorted(kinds))
  files = dict(rng.choice(kinds[kind]))
  name = rng.choice(sorted(files))
  for _ in range(rng.choice((1, 1, 2, 4))):
    other = rng.choice([x for one in kinds.values() for y in one for x in y.values()])
    files[name] = rng.choice(mutators(name))(rng, files[name], other)[:MAX_BYTES]
  return kind, files


def mutators(name):
  """The functions (rng, bytes, bytes of another file) -> bytes that suit a file."""
  if name.endswith('.pth'):
    return change_bytes, change_numbers, change_instructions, change_instructions
  if name.endswith('.safetensors'):
    return change_bytes, change_numbers, change_header, change_header
  if name.endswith('.json'):
    return change_bytes, change_numbers, change_json, change_json
  if name.endswith('.jinja'):
    return change_bytes, change_template, change_template
  if name.endswith('.gz'):
    return change_bytes, change_packed
  return change_bytes, change_numbers


def change_bytes(rng, data, other):
  """Flips, drops, repeats, inserts or cuts bytes, or takes some of another file."""
  at, until = sorted(rng.randrange(len(data) + 1) for _ in range(2))
  if rng.random() < 0.7:
    until = min(until, at + rng.choice((1, 2, 8, 64)))
  part, kind = data[at:until], rng.randrange(6)
  if kind == 0:
    bit = bytes([data[at] ^ (1 << rng.randrange(8))]) if at < len(data) else b''
    return data[:at] + bit + data[at + 1 :]
  new = (
    b'',
    repeated(part, rng.choice((2, 3, 100, 10_000))),
    rng.randbytes(until - at),
    part + rng.choice((b'\0', b'\xff', b'"', b'[', b'{', b'\n')) * rng.choice((1, 4, 1000)),
    other[len(other) * at // (len(data) + 1) :][: until - at],
  )
  return data[:at] if rng.random() < 0.1 else data[:at] + new[kind - 1] + data[until:]


def repeated(part, count):
  """Bytes, as often as fits in MAX_BYTES, at most `count` times."""
  return part * min(count, MAX_BYTES // (len(part) + 1) + 1)


def change_numbers(rng, data, other):
  """Puts another number in the place of one that is written."""
  found = [*re.finditer(rb'-?\d+', data)]
  if not found:
    return change_bytes(rng, data, other)
  at = rng.choice(found)
  return data[: at.start()] + rng.choice(NUMBERS).encode() + data[at.end() :]


def change_json(rng, data, other):
  """Puts another value, such as null, a deep list or another part, in the place of one."""
  try:
    value = json.loads(data)
    places = [*walk(value)][:5000]
  except (ValueError, RecursionError):
    return change_bytes(rng, data, other)
  if not places:
    return change_bytes(rng, data, other)
  owner, key = rng.choice(places)
  kind = rng.randrange(6)
  if kind == 0:
    owner[key] = nested(rng.choice((5, 100, 900)))
  elif kind == 1:
    owner[key] = json.loads(json.dumps(rng.choice(places)[0]))
  elif kind == 2 and isinstance(owner, dict):
    owner[rng.choice(('x', '', '0', 'a' * 2000, '\x00', '/etc/x.pth'))] = owner.pop(key)
  elif kind == 3:
    owner[key] = (
      {'Regex': rng.choice(REGEXES)} if isinstance(owner[key], dict) else rng.choice(REGEXES)
    )
  elif kind == 4 and isinstance(owner[key], (list, str)):
    owner[key] = owner[key] * min(rng.choice((2, 10, 300)), 1 + MAX_BYTES // len(data))
  else:
    owner[key] = rng.choice(VALUES)
  try:
    return json.dumps(value).encode()
  except RecursionError:
    return data + b'[' * 100_000


def walk(value):
  """(owner, key) of every value within a value."""
  for key, x in value.items() if isinstance(value, dict) else enumerate(value):
    yield value, key
    if isinstance(x, (dict, list)):
      yield from walk(x)


def nested(depth):
  """A list in a list, `depth` times."""
  value = []
  for _ in range(depth):
    value = [value]
  return value


def change_header(rng, data, other):
  """Changes the JSON at the start of a .safetensors file, and mostly its length too."""
  size = int.from_bytes(data[:8], 'little')
  head = change_json(rng, data[8 : 8 + size], other)
  size = len(head) if rng.random() < 0.9 else rng.choice((0, 2**31, 2**63, size))
  return size.to_bytes(8, 'little') + head + data[8 + size :]


def change_packed(rng, data, other):
  """Changes what a .gz file holds."""
  try:
    return gzip.compress(change_bytes(rng, gzip.decompress(data), other), 1)
  except (OSError, EOFError, gzip.zlib.error):
    return change_bytes(rng, data, other)


def change_template(rng, data, other):
  """Puts a piece that asks for much into a template, or takes a part away."""
  parts = re.split(rb'(\{[%{].*?[%}]\})', data)
  at = rng.randrange(len(parts) + 1)
  new = [rng.choice(SNIPPETS).encode() * rng.choice((1, 1, 30))]
  return b''.join(parts[:at] + (new if rng.random() < 0.8 else []) + parts[at + 1 :])


def change_instructions(rng, data, other):
  """Inserts, drops, repeats or replaces instructions of the pickle in a .pth file."""
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
      code = file.read('archive/data.pkl')
    starts = [at for _, _, at in pickletools.genops(code)]
  except Exception:
    return change_bytes(rng, data, other)
  parts = [code[a:b] for a, b in zip(starts, [*starts[1:], len(code)])][1:-1]
  at = rng.randrange(len(parts) + 1)
  kind, count = rng.randrange(4), rng.choice((1, 1, 2, 1000, 30_000))
  if kind == 0:
    parts[at:at] = [rng.choice(EXTRA) * min(count, 1000)]
  elif kind == 1:
    parts[at : at + rng.choice((1, 2, 5))] = []
  elif kind == 2:
    parts[at : at + 3] = [repeated(b''.join(parts[at : at + rng.choice((1, 3))]), count)]
  else:
    parts[at : at + 1] = [rng.choice((*EXTRA, rng.choice(parts) if parts else b''))]
  return archive(b''.join(parts))


if __name__ == '__main__':
  import fuzz_run

  fuzz_run.main()
