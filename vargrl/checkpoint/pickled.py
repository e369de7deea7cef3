"""Files of torch.save (.pth, .pt, .bin) without torch: tensors as views of the mapped file, plain
containers.

A pickle is a program, so nothing here runs it: pickletools takes it apart, and a small machine
follows the instructions that torch.save writes. It can build numbers, text, bytes, lists, tuples,
dictionaries, sets and tensors; of all that a pickle can name it knows CALLS, the storages and the
dtypes, none of which is imported. The format:
https://docs.pytorch.org/docs/stable/notes/serialization.html"""

from functools import partial
import math
import pathlib
import pickletools
import struct
from typing import NamedTuple
import zipfile

import ml_dtypes
import numpy as np

DTYPES = {
  f'torch.{name}': np.dtype(name)
  for name in (
    'float16',
    'float32',
    'float64',
    'int8',
    'int16',
    'int32',
    'int64',
    'uint8',
    'uint16',
    'uint32',
    'uint64',
    'bool',
    'complex64',
    'complex128',
  )
}
DTYPES |= {
  f'torch.{name}': np.dtype(getattr(ml_dtypes, name))
  for name in ('bfloat16', 'float8_e4m3fn', 'float8_e4m3fnuz', 'float8_e5m2', 'float8_e5m2fnuz')
}
STORAGES = {
  f'torch.{name}Storage': DTYPES[f'torch.{dtype}']
  for name, dtype in (
    ('Half', 'float16'),
    ('BFloat16', 'bfloat16'),
    ('Float', 'float32'),
    ('Double', 'float64'),
    ('Char', 'int8'),
    ('Short', 'int16'),
    ('Int', 'int32'),
    ('Long', 'int64'),
    ('Byte', 'uint8'),
    ('Bool', 'bool'),
    ('ComplexFloat', 'complex64'),
    ('ComplexDouble', 'complex128'),
  )
}
STORAGES['torch.storage.UntypedStorage'] = np.dtype('uint8')  # of the dtypes that came later

AGAIN = (
  'load it where it was written and save its state dict alone: torch.save(model.state_dict(), FILE)'
)
LEGACY = (
  b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # the first pickle of torch before 1.6, a number
)


class Name(NamedTuple):
  """Something that the pickle named and that we know; it does nothing by itself."""

  name: str


class Storage(NamedTuple):
  dtype: np.dtype
  data: np.ndarray  # uint8, of the mapped file


def load(path):
  """What torch.save was given, tensors as read-only numpy arrays in the mapped file.

  ValueError, one sentence, for what is no such file, is damaged, or holds anything else.
  """
  path = pathlib.Path(path)
  with open(path, 'rb') as file:
    head = file.read(512)
  if not head:
    raise ValueError(f'{path}: an empty file, expected one of torch.save; download it again')
  data = np.memmap(path, np.uint8, 'r').view(np.ndarray)
  try:
    parts = members(path, data, head)
    return run(parts['data.pkl'].tobytes(), partial(storage, parts))
  except ValueError as e:
    raise ValueError(f'{path}: {e}') from e
  except Exception as e:  # of a damaged pickle or zip: underflows, bad operands, overflows...
    raise ValueError(
      f'{path}: damaged, download it again ({type(e).__name__}: {str(e)[:80]})'
    ) from e


def members(path, data, head):
  """{name below the archive's folder: its bytes, uint8}."""
  try:
    with zipfile.ZipFile(path) as file:
      infos = file.infolist()
  except Exception as e:  # zipfile raises half a dozen kinds for a damaged directory
    raise ValueError(no_zip(head)) from e
  names = [info.filename for info in infos]
  if any(name.endswith('/constants.pkl') for name in names):
    raise ValueError(
      'a TorchScript archive; with torch, save its weights alone: '
      'torch.save(torch.jit.load(FILE).state_dict(), OTHER)'
    )
  roots = [name.removesuffix('data.pkl') for name in names if name.endswith('/data.pkl')]
  if len(roots) != 1:
    raise ValueError(f'a zip archive with {len(roots)} data.pkl, expected 1, of torch.save')
  out = {
    info.filename.removeprefix(roots[0]): member(info, data)
    for info in infos
    if info.filename.startswith(roots[0]) and not info.is_dir()
  }
  order = out['byteorder'].tobytes() if 'byteorder' in out else b'little'
  if order != b'little':
    raise ValueError(
      f'byteorder {order[:8]!r} found, little expected; save it on a little-endian machine'
    )
  return out


def no_zip(head):
  """What a file that is no whole zip archive may be."""
  if head.startswith(b'PK'):
    return (
      'truncated or damaged, the directory at the end of the archive cannot be read; '
      'download '
      'it again'
    )
  if head.startswith(LEGACY) or head[257:262] == b'ustar':
    return (
      'written in the format of torch before 1.6; with a present torch, load and save it: '
      'torch.save(torch.load(FILE, weights_only=True), FILE)'
    )
  if head.startswith(b'version https://git-lfs'):
    return 'a pointer of Git LFS, not the file that it stands for; fetch that with git lfs pull'
  return f'not a file of torch.save, it begins with {head[:8]!r}; download it again'


def member(info, data):
  """The bytes of one entry of the archive; torch compresses none, so that they can be mapped."""
  name = info.filename[:80]
  if (
    info.compress_type != zipfile.ZIP_STORED
    or info.file_size != info.compress_size
    or info.flag_bits & 1
  ):
    raise ValueError(f'{name} is compressed or encrypted, which torch.save never does; {AGAIN}')
  start = info.header_offset
  header = data[start : start + 30].tobytes() if start >= 0 else b''
  if len(header) < 30 or header[:4] != b'PK\3\4':
    raise ValueError(f'damaged, {name} is not where the archive says; download it again')
  start += 30 + sum(struct.unpack('<HH', header[26:]))
  if start + info.file_size > len(data):
    raise ValueError(
      f'truncated, {name} ends at byte {start + info.file_size} of {len(data)}; download it again'
    )
  return data[start : start + info.file_size]


def storage(parts, key):
  """('storage', kind, key, device, elements) -> Storage."""
  if (
    type(key) is not tuple
    or len(key) != 5
    or key[0] != 'storage'
    or type(key[1]) is not Name
    or key[1].name not in STORAGES
    or type(key[2]) is not str
  ):
    raise ValueError('damaged, a persistent id that is no storage; download it again')
  _, kind, key, _, count = key
  if f'data/{key}' not in parts:
    raise ValueError(f'damaged, no entry data/{key[:20]}; download it again')
  dtype, data = STORAGES[kind.name], parts[f'data/{key}']
  if len(data) < number(count) * dtype.itemsize:
    raise ValueError(
      f'data/{key[:20]} has {len(data)} bytes, {count} elements of {dtype} expected; '
      'download it again'
    )
  return Storage(dtype, data[: count * dtype.itemsize])


def number(x):
  if type(x) is not int or not 0 <= x < 2**63:
    raise ValueError('a size, offset or stride that is no natural number')
  return x


def tensor(memory, offset, size, stride, grad, hooks, metadata=None, dtype=None):
  """torch._utils._rebuild_tensor_v2: a view of the storage, all of whose elements lie in it."""
  if (
    type(memory) is not Storage
    or type(size) is not tuple
    or type(stride) is not tuple
    or len(size) != len(stride)
    or len(size) > 32
  ):
    raise ValueError('a tensor of odd arguments')
  if metadata:
    raise ValueError('a tensor with conjugate or negative bit; resolve it before it is saved')
  if dtype is not None and (type(dtype) is not str or dtype not in DTYPES):
    raise ValueError('a tensor of no dtype')
  dtype = DTYPES[dtype] if dtype is not None else memory.dtype
  offset, size, stride = number(offset), [*map(number, size)], [*map(number, stride)]
  if 0 in size:
    return np.zeros(size, dtype)
  last = offset + sum((n - 1) * step for n, step in zip(size, stride))
  if (last + 1) * dtype.itemsize > len(memory.data):
    count = len(memory.data) // dtype.itemsize
    raise ValueError(f'a tensor that reaches element {last} of a storage of {count}')
  if math.prod(size) >= 2**58:
    raise ValueError(f'a tensor of {math.prod(size)} elements')
  stride = [step * dtype.itemsize if n > 1 else 0 for n, step in zip(size, stride)]
  return np.ndarray(size, dtype, memory.data, offset * dtype.itemsize, stride)


def tensor_v3(memory, offset, size, stride, grad, hooks, dtype, metadata=None):
  return tensor(
    memory, offset, size, stride, grad, hooks, metadata, dtype if dtype is not None else ''
  )


def parameter(data, grad, hooks):
  if type(data) is not np.ndarray:
    raise ValueError('a parameter that is no tensor')
  return data


def ordered(pairs=()):
  out = {}
  for pair in of(pairs, list, tuple):
    if len(of(pair, list, tuple)) != 2:
      raise ValueError('a pair of odd arguments')
    out[hashable(pair[0])] = pair[1]
  return out


def encoded(text, encoding):
  """How protocol 2 spells bytes."""
  if encoding != 'latin1':
    raise ValueError('bytes of odd arguments')
  return of(text, str).encode('latin1')


def device(kind, index=None):
  return of(kind, str) + ('' if index is None else f':{number(index)}')


CALLS = {
  'torch._utils._rebuild_tensor_v2': tensor,
  'torch._utils._rebuild_tensor_v3': tensor_v3,
  'torch._utils._rebuild_parameter': parameter,
  'torch.device': device,
  'torch.Size': lambda size=(): tuple(map(number, of(size, list, tuple))),
  'collections.OrderedDict': ordered,
  '_codecs.encode': encoded,
}
for builtin in ('builtins', '__builtin__'):
  CALLS[f'{builtin}.bytes'] = lambda: b''  # how protocol 2 spells empty ones
  CALLS[f'{builtin}.set'] = lambda items=(): set(map(hashable, of(items, list, tuple)))
  CALLS[f'{builtin}.frozenset'] = lambda items=(): frozenset(map(hashable, of(items, list, tuple)))


def of(value, *kinds):
  """value, which is exactly of one of these types: a subclass could have methods of its own."""
  if type(value) not in kinds:
    raise ValueError(f'{type(value).__name__} found, {kinds[0].__name__} expected')
  return value


def hashable(key):
  """A key that hashes without running anything or descending: text, numbers, bytes, flat tuples of
  them.
  """
  for part in key if type(key) is tuple else (key,):
    of(part, str, int, float, bool, bytes, type(None))
  return key


def named(name):
  """The meaning of a global: dtypes are text."""
  if name in DTYPES:
    return name
  if name not in CALLS and name not in STORAGES:
    raise ValueError(
      f'holds {name[:80]}, which is refused (tensors and plain containers are read); {AGAIN}'
    )
  return Name(name)


def call(function, args):
  if type(function) is not Name or function.name not in CALLS or type(args) is not tuple:
    raise ValueError('a call of what is no function is refused')
  try:
    return CALLS[function.name](*args)
  except ValueError as e:
    raise ValueError(f'{function.name}: {e}') from e
  except (TypeError, OverflowError) as e:
    raise ValueError(
      f'{function.name} is given odd arguments ({str(e)[:120]}); download it again'
    ) from e


def extend(stack, items):
  of(stack[-1], list).extend(items)


def update(stack, items):
  if len(items) % 2:
    raise ValueError('damaged, a key without a value; download it again')
  of(stack[-1], dict).update((hashable(k), v) for k, v in zip(items[::2], items[1::2]))


def build(stack):
  """What a state dict knows of its modules' versions: read past."""
  of(stack.pop(), dict)
  of(stack[-1], dict)


# What the instructions do: push their operand or a new thing, take the items down to the mark, or
# act on the stack. All others are refused, those that make objects (NEWOBJ, INST, OBJ, EXT) among
# them.
OPERANDS = {
  'BININT',
  'BININT1',
  'BININT2',
  'LONG1',
  'LONG4',
  'BINFLOAT',
  'BINUNICODE',
  'SHORT_BINUNICODE',
  'BINUNICODE8',
  'BINBYTES',
  'SHORT_BINBYTES',
  'BINBYTES8',
}
NEW = {
  'NONE': lambda: None,
  'NEWTRUE': lambda: True,
  'NEWFALSE': lambda: False,
  'EMPTY_DICT': dict,
  'EMPTY_LIST': list,
  'EMPTY_TUPLE': tuple,
  'EMPTY_SET': set,
}
ITEMS = {
  'TUPLE': lambda stack, items: stack.append(tuple(items)),
  'LIST': lambda stack, items: stack.append(items),
  'FROZENSET': lambda stack, items: stack.append(frozenset(map(hashable, items))),
  'DICT': lambda stack, items: (stack.append({}), update(stack, items)),
  'APPENDS': extend,
  'SETITEMS': update,
  'ADDITEMS': lambda stack, items: of(stack[-1], set).update(map(hashable, items)),
  'POP_MARK': lambda stack, items: None,
}
ACTS = {
  'TUPLE1': lambda stack: stack.append(taken(stack, 1)),
  'TUPLE2': lambda stack: stack.append(taken(stack, 2)),
  'TUPLE3': lambda stack: stack.append(taken(stack, 3)),
  'APPEND': lambda stack: extend(stack, taken(stack, 1)),
  'SETITEM': lambda stack: update(stack, taken(stack, 2)),
  'STACK_GLOBAL': lambda stack: stack.append(named('.'.join(of(x, str) for x in taken(stack, 2)))),
  'REDUCE': lambda stack: stack.append(call(*taken(stack, 2))),
  'BUILD': build,
  'POP': lambda stack: stack.pop(),
}


def taken(stack, count):
  if len(stack) < count:
    raise IndexError('the stack is too short')
  items = tuple(stack[-count:])
  del stack[-count:]
  return items


def instructions(code):
  """(name, operand) of each, up to STOP."""
  try:
    for op, operand, _ in pickletools.genops(code):
      yield op.name, operand
  except ValueError as e:
    raise ValueError(
      f'damaged, its pickle cannot be taken apart ({str(e)[:80]}); download it again'
    ) from e


def run(code, storage):
  """The value of a pickle. storage: persistent id -> Storage."""
  stack, marks, memo = [], [], {}
  for name, operand in instructions(code):
    if name in OPERANDS:
      stack.append(operand)
    elif name in NEW:
      stack.append(NEW[name]())
    elif name in ACTS:
      ACTS[name](stack)
    elif name == 'MARK':
      marks.append(stack)
      stack = []
    elif name in ITEMS:
      items, stack = stack, marks.pop()
      ITEMS[name](stack, items)
    elif name in ('BINPUT', 'LONG_BINPUT'):
      memo[operand] = stack[-1]
    elif name == 'MEMOIZE':
      memo[len(memo)] = stack[-1]
    elif name in ('BINGET', 'LONG_BINGET'):
      stack.append(memo[operand])
    elif name == 'GLOBAL':
      stack.append(named(operand.replace(' ', '.')))
    elif name == 'BINPERSID':
      stack.append(storage(stack.pop()))
    elif name == 'STOP':
      return stack.pop()
    elif name not in ('PROTO', 'FRAME'):
      raise ValueError(f'holds the instruction {name}, which is refused; {AGAIN}')
  raise ValueError('damaged, its pickle has no end; download it again')
