"""What a small hostile .pth may cost: it is refused in a sentence, with little memory and time."""

import time
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch_file

from vargrl.checkpoint import files, torch_archive, torch_pickle, torch_values
from vargrl.io import text as io_text

MEGABYTE = b'X\0\0\x10\0' + b'a' * 2**20  # a text
ORDERED, SET = (torch_file.global_name(x) for x in ('collections OrderedDict', 'builtins set'))
ENCODE = torch_file.global_name('_codecs encode')
PAIRS = b'](' + 10_000 * b'N' + b'eq\0'  # a long list, remembered
TUPLES = b''.join(b'J' + i.to_bytes(4, 'little') + b'\x85N' for i in range(11_000))
# A tensor of one number, seen a million times.
EXPANDED = torch_file.float_tensor((1000, 1000), (0, 0))
COSTLY = {  # instructions: words of the error
  'a key that is a tuple of one text 20,000 times': (
    MEGABYTE + b'q\x000}(' + 20_000 * b'h\0' + b'tK\x01s',
    'a tuple of 20000 as a key',
  ),
  'bytes of one text 3,500 times': (
    MEGABYTE + b'q\0' + ENCODE + b'q\1' + b'X\6\0\0\0latin1q\2' + 3500 * b'h\1h\0h\2\x86R',
    'would take more than',
  ),
  'a set of one long list, thousands of times': (
    PAIRS + SET + b'q\1' + 20_000 * b'h\1h\0\x85R0',
    'would take more than',
  ),
  'a device of one long text': (
    MEGABYTE + b'q\0' + torch_file.global_name('torch device') + b'q\1' + 500 * b'h\1h\0K\1\x86R',
    'would take more than',
  ),
  'sets': (80_000 * b'\x8f', 'would take more than'),
  'marks': (40_000 * b'(', 'would take more than'),
  'a memo': (b'N' + 150_000 * b'\x94', 'would take more than'),
  'keys that are tuples': (b'}(' + TUPLES + b'u', 'a key, at most 10000 of them'),
  'a tensor as the name of an encoding': (
    torch_file.call('_codecs encode', torch_file.plain('a'), EXPANDED),
    'ndarray found, str expected',
  ),
  'a tensor as a tag': (b'(' + EXPANDED + b'NNNNtQ', 'a persistent id that is no storage'),
  'a tensor of 2**50 numbers': (
    torch_file.float_tensor((2**30, 2**20), (0, 0)),
    'would take more than',
  ),
  'many expanded tensors': (b'(' + 9 * EXPANDED + b't', 'would take more than'),
  'a key of many digits': (b'}\x8a\x09' + 8 * b'\xff' + b'\x7fNs', 'more than 64 bits'),
}


@pytest.mark.parametrize('what', COSTLY)
def test_a_pickle_that_repeats_itself_is_told_and_cheap(tmp_path, what, monkeypatch):
  monkeypatch.setattr(io_text, 'BYTES', 2**24)  # so that less is built before it is told
  code, words = COSTLY[what]
  path = torch_file.write(tmp_path / 'x.pth', code, {'0': np.zeros(6, np.float32)})
  size, before = path.stat().st_size, time.perf_counter()
  tracemalloc.start()
  try:
    with pytest.raises(ValueError) as error:
      files.open_tensors(path)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert words in str(error.value) and str(path) in str(error.value), str(error.value)[:500]
  assert len(str(error.value)) < 500 and '\n' not in str(error.value)
  assert peak < io_text.TIMES * size + io_text.BYTES
  assert time.perf_counter() - before < 20


def test_names_of_tensors_are_short_texts(tmp_path):
  for code, words in (
    (b'}K\x01Ns', 'a int as the name of a tensor'),
    (b'}' + MEGABYTE + b'Ns', ' of 1048576 characters as the name'),
    (b'}N\x85Ns', 'a tuple as the name'),
    (b'}X\3\0\0\0a\nbNs', 'of 3 characters as the name'),
  ):
    with pytest.raises(ValueError, match=words) as error:
      files.open_tensors(torch_file.write(tmp_path / 'x.pth', code))
    assert str(tmp_path / 'x.pth') in str(error.value)


def test_plain_values_of_real_files_are_within_the_budget():
  """A list of a sampler's indices, an optimizer's state, many small tensors."""
  indices = torch_file.plain([*range(500_000)])
  assert len(torch_pickle.run(indices + b'.', None, len(indices))) == 500_000
  state = torch_file.plain({i: {'step': i * 1000.5, 'groups': [i, None]} for i in range(50_000)})
  assert len(torch_pickle.run(state + b'.', None, len(state))) == 50_000
  memory = torch_values.Storage(np.dtype('f4'), np.zeros(24, np.uint8))
  tensors = b'(' + 20_000 * torch_file.float_tensor() + b't.'
  assert len(torch_pickle.run(tensors, lambda _: memory, len(tensors))) == 20_000


def test_a_huge_directory_of_an_archive_is_told(tmp_path, monkeypatch):
  monkeypatch.setattr(torch_archive, 'DIRECTORY_BYTES', 1000)
  with zipfile.ZipFile(tmp_path / 'x.pth', 'w') as file:
    for i in range(1000):
      file.writestr(f'archive/{i}', b'')
  with pytest.raises(ValueError, match='directory of .* bytes, at most'):
    torch_archive.load(tmp_path / 'x.pth')
