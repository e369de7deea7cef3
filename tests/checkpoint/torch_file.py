"""Files as torch.save writes them, put together by instructions, so that they can also be wrong."""

import pickle
import zipfile

import numpy as np


def plain(x):
  """The instructions that push something plain."""
  return pickle.dumps(x, 2)[2:-1]


def global_name(text):
  """GLOBAL 'module name'."""
  return b'c' + text.replace(' ', '\n').encode() + b'\n'


def tuple_of(*items):
  """A tuple of what other instructions push."""
  return b'(' + b''.join(items) + b't'


def call(function, *items):
  return global_name(function) + tuple_of(*items) + b'R'


def storage(key, kind, count, tag='storage'):
  return tuple_of(plain(tag), global_name(kind), plain(key), plain('cpu'), plain(count)) + b'Q'


def tensor(memory, offset, size, stride, *more, version=2):
  hooks = call('collections OrderedDict')
  return call(
    f'torch._utils _rebuild_tensor_v{version}',
    memory,
    plain(offset),
    plain(size),
    plain(stride),
    plain(False),
    hooks,
    *more,
  )


def float_tensor(size=(2, 3), stride=(3, 1), offset=0, count=6, key='0'):
  return tensor(storage(key, 'torch FloatStorage', count), offset, size, stride)


def tensor_of(x, key='0', kind='torch FloatStorage'):
  """A contiguous tensor over all of storage `key`."""
  return tensor(storage(key, kind, x.size), 0, x.shape, tuple(s // x.itemsize for s in x.strides))


def dict_of(*pairs):
  """A dictionary of (key, instructions)."""
  return b'}(' + b''.join(plain(k) + code for k, code in pairs) + b'u'


def write(path, code, storages=(), byteorder=b'little', more=(), method=zipfile.ZIP_STORED):
  """path, with the pickle `code` and storages {key: array or bytes}."""
  with zipfile.ZipFile(path, 'w', method) as file:
    file.writestr('archive/data.pkl', b'\x80\x02' + code + b'.')
    if byteorder:
      file.writestr('archive/byteorder', byteorder)
    for key, x in dict(storages).items():
      file.writestr(f'archive/data/{key}', x.tobytes() if isinstance(x, np.ndarray) else x)
    file.writestr('archive/version', b'3\n')
    for key, x in dict(more).items():
      file.writestr(f'archive/{key}', x)
  return path
