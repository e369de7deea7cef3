"""What the pickle of a file of torch.save may make: tensors, by functions that do what torch's do.

None of the globals that a pickle names is imported; FUNCTIONS stand for those that are known.
"""

import math
from typing import NamedTuple

import ml_dtypes
import numpy as np

from vargrl.io import text as io_text

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
TUPLES = 10_000  # that may be keys


class Global(NamedTuple):
  """A function or a kind of storage that the pickle names; it does nothing by itself."""

  name: str


class Storage(NamedTuple):
  """The memory of a tensor, or of several that share it."""

  dtype: np.dtype
  data: np.ndarray  # uint8, of the mapped file


class Budget:
  """What a pickle may still cost, in bytes, and how many of its keys may still be tuples.

  Everything that the pickle makes is paid for, also what it drops again, so that time is bounded
  as memory is: TIMES the size of its file, and BYTES."""

  def __init__(self, size):
    self.most = self.left = io_text.TIMES * size + io_text.BYTES // 2
    self.tuples = TUPLES

  def charge(self, count):
    """Pays for `count` bytes; ValueError if no more are left."""
    self.left -= count
    if self.left < 0:
      raise ValueError(
        f'its pickle would take more than {self.most / 2**20:.0f} MiB of memory, by values that it '
        f'repeats or tensors that it expands; {SAVE_AGAIN}'
      )

  def key(self, value):
    """Returns a key of a dictionary or set if its hash runs no code of its own and takes no time.

    That is text, numbers, bytes, None and short tuples of them. Of tuples and of longer numbers one
    can find any number that have the same hash, so they are few, or refused."""
    parts = value if type(value) is tuple else (value,)
    if type(value) is tuple:
      self.tuples -= 1
      if self.tuples < 0 or len(value) > 16:
        raise ValueError(
          f'a tuple of {len(value)} as a key, at most {TUPLES} of them, of at most 16, expected'
        )
    for part in parts:
      if type(exactly(part, str, int, float, bool, bytes, type(None))) is int and abs(part) > 2**64:
        raise ValueError('a key that is a number of more than 64 bits')
    return value


def natural(x):
  """Returns x if it is an int in [0, 2**63), otherwise raises ValueError."""
  if type(x) is not int or not 0 <= x < 2**63:
    raise ValueError('a size, offset or stride that is no natural number')
  return x


def rebuild_tensor(budget, memory, offset, size, stride, grad, hooks, metadata=None, dtype=None):
  """torch._utils._rebuild_tensor_v2: a view of a Storage, which must contain all its elements."""
  if (
    type(memory) is not Storage
    or type(size) is not tuple
    or type(stride) is not tuple
    or len(size) != len(stride)
    or len(size) > 32
  ):
    raise ValueError('a tensor of odd arguments')
  if exactly(metadata, dict, type(None)):
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
  # Of a number that it shows again and again, a reader would make an array.
  budget.charge(max(0, math.prod(size) * dtype.itemsize - len(memory.data)))
  stride = [step * dtype.itemsize if n > 1 else 0 for n, step in zip(size, stride)]
  return np.ndarray(size, dtype, memory.data, offset * dtype.itemsize, stride)


def rebuild_tensor_v3(budget, memory, offset, size, stride, grad, hooks, dtype, metadata=None):
  """torch._utils._rebuild_tensor_v3: the same of a Storage without a type."""
  return rebuild_tensor(
    budget, memory, offset, size, stride, grad, hooks, metadata, dtype if dtype is not None else ''
  )


def rebuild_parameter(budget, data, grad, hooks):
  """torch._utils._rebuild_parameter: its data."""
  if type(data) is not np.ndarray:
    raise ValueError('a parameter that is no tensor')
  return data


def ordered_dict(budget, pairs=()):
  """collections.OrderedDict: a plain dictionary."""
  out = {}
  for pair in exactly(pairs, list, tuple):
    if len(exactly(pair, list, tuple)) != 2:
      raise ValueError('a pair of odd arguments')
    out[budget.key(pair[0])] = pair[1]
  return out


def encode_latin1(budget, text, encoding):
  """_codecs.encode: protocol 2 writes bytes as text in latin1."""
  if exactly(encoding, str) != 'latin1':  # a tensor would be compared number by number
    raise ValueError('bytes of odd arguments')
  return exactly(text, str).encode('latin1')


def device_name(budget, kind, index=None):
  """torch.device: its name as text, such as 'cuda:0'."""
  return exactly(kind, str) + ('' if index is None else f':{natural(index)}')


FUNCTIONS = {
  'torch._utils._rebuild_tensor_v2': rebuild_tensor,
  'torch._utils._rebuild_tensor_v3': rebuild_tensor_v3,
  'torch._utils._rebuild_parameter': rebuild_parameter,
  'torch.device': device_name,
  'torch.Size': lambda budget, size=(): tuple(map(natural, exactly(size, list, tuple))),
  'collections.OrderedDict': ordered_dict,
  '_codecs.encode': encode_latin1,
}
for builtin in ('builtins', '__builtin__'):
  FUNCTIONS[f'{builtin}.bytes'] = lambda budget: b''  # how protocol 2 spells empty ones
  FUNCTIONS[f'{builtin}.set'] = lambda budget, items=(): {*keys_of(budget, items)}
  FUNCTIONS[f'{builtin}.frozenset'] = lambda budget, items=(): frozenset(keys_of(budget, items))


def exactly(value, *types):
  """Returns value if its type is one of `types`; a subclass could have methods of its own."""
  if type(value) not in types:
    raise ValueError(f'{type(value).__name__} found, {types[0].__name__} expected')
  return value


def shown(text, length):
  """The beginning of a text of the file, for a message: one line of ASCII."""
  return text[:length].encode('unicode_escape').decode()


def keys_of(budget, items):
  """The items of a list or tuple, each of which may be a key."""
  return map(budget.key, exactly(items, list, tuple))


def resolve_global(name):
  """The value of a global of the pickle: the name of a dtype, or a Global."""
  if name in DTYPES:
    return name
  if name not in FUNCTIONS and name not in STORAGES:
    raise ValueError(
      f'holds {shown(name, 80)}, which is refused (tensors and plain containers are read); '
      f'{SAVE_AGAIN}'
    )
  return Global(name)
