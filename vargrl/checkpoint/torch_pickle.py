"""The pickle inside a file of torch.save, read without torch and without running it.

A pickle is a program. pickletools takes it apart, and a small stack machine follows the
instructions that torch.save writes. It builds numbers, text, bytes, lists, tuples, dictionaries,
sets and tensors, and refuses everything else. Of the globals that a pickle can name it knows
FUNCTIONS, the storages and the dtypes, none of which is imported. The format:
https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

import math
import pickletools
from typing import NamedTuple

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

SAVE_AGAIN = (
  'load it where it was written and save its state dict alone: torch.save(model.state_dict(), FILE)'
)


class Global(NamedTuple):
  """A function or a kind of storage that the pickle names; it does nothing by itself."""

  name: str


class Storage(NamedTuple):
  """The memory of a tensor, or of several that share it."""

  dtype: np.dtype
  data: np.ndarray  # uint8, of the mapped file


def natural(x):
  """Returns x if it is an int in [0, 2**63), otherwise raises ValueError."""
  if type(x) is not int or not 0 <= x < 2**63:
    raise ValueError('a size, offset or stride that is no natural number')
  return x


def rebuild_tensor(memory, offset, size, stride, grad, hooks, metadata=None, dtype=None):
  """torch._utils._rebuild_tensor_v2: a view of a Storage, which must contain all its elements."""
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
  offset, size, stride = natural(offset), [*map(natural, size)], [*map(natural, stride)]
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


def rebuild_tensor_v3(memory, offset, size, stride, grad, hooks, dtype, metadata=None):
  """torch._utils._rebuild_tensor_v3: the same of a Storage without a type."""
  return rebuild_tensor(
    memory, offset, size, stride, grad, hooks, metadata, dtype if dtype is not None else ''
  )


def rebuild_parameter(data, grad, hooks):
  """torch._utils._rebuild_parameter: its data."""
  if type(data) is not np.ndarray:
    raise ValueError('a parameter that is no tensor')
  return data


def ordered_dict(pairs=()):
  """collections.OrderedDict: a plain dictionary."""
  out = {}
  for pair in exactly(pairs, list, tuple):
    if len(exactly(pair, list, tuple)) != 2:
      raise ValueError('a pair of odd arguments')
    out[hashable(pair[0])] = pair[1]
  return out


def encode_latin1(text, encoding):
  """_codecs.encode: protocol 2 writes bytes as text in latin1."""
  if encoding != 'latin1':
    raise ValueError('bytes of odd arguments')
  return exactly(text, str).encode('latin1')


def device_name(kind, index=None):
  """torch.device: its name as text, such as 'cuda:0'."""
  return exactly(kind, str) + ('' if index is None else f':{natural(index)}')


FUNCTIONS = {
  'torch._utils._rebuild_tensor_v2': rebuild_tensor,
  'torch._utils._rebuild_tensor_v3': rebuild_tensor_v3,
  'torch._utils._rebuild_parameter': rebuild_parameter,
  'torch.device': device_name,
  'torch.Size': lambda size=(): tuple(map(natural, exactly(size, list, tuple))),
  'collections.OrderedDict': ordered_dict,
  '_codecs.encode': encode_latin1,
}
for builtin in ('builtins', '__builtin__'):
  FUNCTIONS[f'{builtin}.bytes'] = lambda: b''  # how protocol 2 spells empty ones
  FUNCTIONS[f'{builtin}.set'] = lambda items=(): set(map(hashable, exactly(items, list, tuple)))
  FUNCTIONS[f'{builtin}.frozenset'] = lambda items=(): frozenset(
    map(hashable, exactly(items, list, tuple))
  )


def exactly(value, *types):
  """Returns value if its type is one of `types`; a subclass could have methods of its own."""
  if type(value) not in types:
    raise ValueError(f'{type(value).__name__} found, {types[0].__name__} expected')
  return value


def hashable(key):
  """Returns key if hashing it runs no code of its own and does not recurse.

  That is text, numbers, bytes, None and flat tuples of them.
  """
  for part in key if type(key) is tuple else (key,):
    exactly(part, str, int, float, bool, bytes, type(None))
  return key


def resolve_global(name):
  """The value of a global of the pickle: the name of a dtype, or a Global."""
  if name in DTYPES:
    return name
  if name not in FUNCTIONS and name not in STORAGES:
    raise ValueError(
      f'holds {name[:80]}, which is refused (tensors and plain containers are read); {SAVE_AGAIN}'
    )
  return Global(name)


def call_function(function, args):
  """Calls one of FUNCTIONS; errors name it."""
  if type(function) is not Global or function.name not in FUNCTIONS or type(args) is not tuple:
    raise ValueError('a call of what is no function is refused')
  try:
    return FUNCTIONS[function.name](*args)
  except ValueError as e:
    raise ValueError(f'{function.name}: {e}') from e
  except (TypeError, OverflowError) as e:
    raise ValueError(
      f'{function.name} is given odd arguments ({str(e)[:120]}); download it again'
    ) from e


def extend(stack, items):
  """Appends items to the list on top of the stack."""
  exactly(stack[-1], list).extend(items)


def update(stack, items):
  """Writes items, keys and values in turn, to the dictionary on top of the stack."""
  if len(items) % 2:
    raise ValueError('damaged, a key without a value; download it again')
  exactly(stack[-1], dict).update((hashable(k), v) for k, v in zip(items[::2], items[1::2]))


def build(stack):
  """Drops the attributes of an object; those of a state dict are the versions of its modules."""
  exactly(stack.pop(), dict)
  exactly(stack[-1], dict)


# What the instructions do: OPERANDS push their operand, CONSTANTS a new value, ITEM_ACTIONS take
# the items above the mark, STACK_ACTIONS change the stack. All others are refused, among them those
# that make objects (NEWOBJ, INST, OBJ, EXT).
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
CONSTANTS = {
  'NONE': lambda: None,
  'NEWTRUE': lambda: True,
  'NEWFALSE': lambda: False,
  'EMPTY_DICT': dict,
  'EMPTY_LIST': list,
  'EMPTY_TUPLE': tuple,
  'EMPTY_SET': set,
}
ITEM_ACTIONS = {
  'TUPLE': lambda stack, items: stack.append(tuple(items)),
  'LIST': lambda stack, items: stack.append(items),
  'FROZENSET': lambda stack, items: stack.append(frozenset(map(hashable, items))),
  'DICT': lambda stack, items: (stack.append({}), update(stack, items)),
  'APPENDS': extend,
  'SETITEMS': update,
  'ADDITEMS': lambda stack, items: exactly(stack[-1], set).update(map(hashable, items)),
  'POP_MARK': lambda stack, items: None,
}
STACK_ACTIONS = {
  'TUPLE1': lambda stack: stack.append(pop_items(stack, 1)),
  'TUPLE2': lambda stack: stack.append(pop_items(stack, 2)),
  'TUPLE3': lambda stack: stack.append(pop_items(stack, 3)),
  'APPEND': lambda stack: extend(stack, pop_items(stack, 1)),
  'SETITEM': lambda stack: update(stack, pop_items(stack, 2)),
  'STACK_GLOBAL': lambda stack: stack.append(
    resolve_global('.'.join(exactly(x, str) for x in pop_items(stack, 2)))
  ),
  'REDUCE': lambda stack: stack.append(call_function(*pop_items(stack, 2))),
  'BUILD': build,
  'POP': lambda stack: stack.pop(),
}


def pop_items(stack, count):
  """Removes `count` items from the stack and returns them, the topmost last."""
  if len(stack) < count:
    raise IndexError('the stack is too short')
  items = tuple(stack[-count:])
  del stack[-count:]
  return items


def instructions(code):
  """Yields (name, operand) of each instruction, up to STOP."""
  try:
    for op, operand, _ in pickletools.genops(code):
      yield op.name, operand
  except ValueError as e:
    raise ValueError(
      f'damaged, its pickle cannot be taken apart ({str(e)[:80]}); download it again'
    ) from e


def run(code, load_storage):
  """The value of a pickle, given as bytes.

  load_storage: persistent id -> Storage. Raises ValueError for instructions and globals that are
  refused; a damaged pickle may raise any other exception too.
  """
  stack, marks, memo = [], [], {}
  for name, operand in instructions(code):
    if name in OPERANDS:
      stack.append(operand)
    elif name in CONSTANTS:
      stack.append(CONSTANTS[name]())
    elif name in STACK_ACTIONS:
      STACK_ACTIONS[name](stack)
    elif name == 'MARK':
      marks.append(stack)
      stack = []
    elif name in ITEM_ACTIONS:
      items, stack = stack, marks.pop()
      ITEM_ACTIONS[name](stack, items)
    elif name in ('BINPUT', 'LONG_BINPUT'):
      memo[operand] = stack[-1]
    elif name == 'MEMOIZE':
      memo[len(memo)] = stack[-1]
    elif name in ('BINGET', 'LONG_BINGET'):
      stack.append(memo[operand])
    elif name == 'GLOBAL':
      stack.append(resolve_global(operand.replace(' ', '.')))
    elif name == 'BINPERSID':
      stack.append(load_storage(stack.pop()))
    elif name == 'STOP':
      return stack.pop()
    elif name not in ('PROTO', 'FRAME'):
      raise ValueError(f'holds the instruction {name}, which is refused; {SAVE_AGAIN}')
  raise ValueError('damaged, its pickle has no end; download it again')
