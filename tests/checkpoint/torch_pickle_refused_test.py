"""Pickles that ask for more than tensors and plain values are refused, and execute nothing."""

import os

import numpy as np
import pytest
import torch_file

from vargrl.checkpoint import torch_archive

SIX = np.arange(6, dtype=np.float32)


def read(tmp_path, code, storages=(('0', SIX),), **options):
  return torch_archive.load(torch_file.write(tmp_path / 'x.pth', code, storages, **options))


TOUCH = 'touch {}/executed'
OBJECT = torch_file.plain('x')
REFUSED = {  # instructions: a word of the error
  'a call of the system': (
    torch_file.call('posix system', torch_file.plain(TOUCH)),
    'posix.system, which is refused',
  ),
  'eval': (torch_file.call('builtins eval', torch_file.plain('1')), 'builtins.eval'),
  'getattr': (
    torch_file.call('builtins getattr', torch_file.plain('x'), torch_file.plain('upper')),
    'builtins.getattr',
  ),
  'a module of torch': (torch_file.call('torch load', torch_file.plain('x')), 'torch.load'),
  'numpy': (
    torch_file.call('numpy.core.multiarray _reconstruct', torch_file.plain(1)),
    'multiarray._reconstruct',
  ),
  'a subclass': (
    torch_file.call('torch._tensor _rebuild_from_type_v2', OBJECT),
    '_rebuild_from_type_v2',
  ),
  'a dotted name': (b'\x8c\x05torch\x8c\x0c_utils.x.sys\x93', 'torch._utils.x.sys'),
  'a class': (torch_file.global_name('argparse Namespace') + b')\x81', 'argparse.Namespace'),
  'NEWOBJ': (torch_file.global_name('collections OrderedDict') + b')\x81', 'NEWOBJ'),
  'NEWOBJ_EX': (torch_file.global_name('collections OrderedDict') + b')}\x92', 'NEWOBJ_EX'),
  'INST': (b'(' + torch_file.plain(TOUCH) + b'iposix\nsystem\n', 'INST'),
  'OBJ': (b'(' + torch_file.global_name('collections OrderedDict') + b'o', 'OBJ'),
  'an extension': (b'\x82\x01', 'EXT1'),
  'text as persistent id': (b'P0\n', 'PERSID'),
  'a buffer': (b'\x97', 'NEXT_BUFFER'),
  'a call of text': (OBJECT + b')R', 'call of what is no function'),
  'a call of a storage type': (
    torch_file.global_name('torch FloatStorage') + b')R',
    'call of what is no function',
  ),
  'arguments that are no tuple': (
    torch_file.global_name('collections OrderedDict') + b']R',
    'call of what is no function',
  ),
  'a state for a list': (b']}b', 'list found, dict expected'),
  'a state for a tensor': (torch_file.float_tensor() + b'}b', 'ndarray found'),
  'a state that is no dictionary': (
    torch_file.call('collections OrderedDict') + b'(K\x01tb',
    'tuple found',
  ),
  'append to a tensor': (torch_file.float_tensor() + b'K\x01a', 'ndarray found, list expected'),
  'append to a tuple': (b')K\x01a', 'tuple found, list expected'),
  'items of a list': (b'](K\x01K\x02u', 'list found, dict expected'),
  'a list as a key': (b'}(]K\x01u', 'list found'),
  'a tensor as a key': (b'}(' + torch_file.float_tensor() + b'K\x01u', 'ndarray found'),
  'a key without end': (b'})' + 100_000 * b'\x85' + b'K\x01s', 'tuple found'),
  'text as storage': (torch_file.tensor(OBJECT, 0, (1,), (1,)), 'odd arguments'),
  'a tuple as storage': (
    torch_file.tensor(torch_file.plain((0.0, b'')), 0, (1,), (1,)),
    'odd arguments',
  ),
  'a persistent id of text': (OBJECT + b'Q', 'no storage'),
  'another tag': (torch_file.storage('0', 'torch FloatStorage', 6, tag='module'), 'no storage'),
  'a storage of no type': (torch_file.storage('0', 'collections OrderedDict', 6), 'no storage'),
  'a storage outside of the archive': (
    torch_file.storage('../../etc', 'torch FloatStorage', 6),
    'no entry',
  ),
  'a storage that is too long': (
    torch_file.float_tensor(count=7),
    '24 bytes, 7 elements of float32',
  ),
  'a negative count': (torch_file.float_tensor(count=-1), 'no natural number'),
  'a tensor beyond its storage': (
    torch_file.float_tensor((2, 4), (3, 1)),
    'reaches element 6 of a storage of 6',
  ),
  'an offset beyond it': (torch_file.float_tensor(offset=1), 'reaches element 6'),
  'a negative offset': (torch_file.float_tensor(offset=-1), 'no natural number'),
  'a negative stride': (torch_file.float_tensor((2, 3), (3, -1)), 'no natural number'),
  'a negative size': (torch_file.float_tensor((-2, -3), (3, 1)), 'no natural number'),
  'true as a size': (torch_file.float_tensor((True, 3), (3, 1)), 'no natural number'),
  'half a size': (torch_file.float_tensor((0.5, 3), (3, 1)), 'no natural number'),
  'a stride that overflows': (torch_file.float_tensor((2, 3), (2**62, 1)), 'reaches element'),
  'a size that overflows': (torch_file.float_tensor((2**62, 2**62), (0, 0)), 'a tensor of'),
  'a size beyond 64 bits': (torch_file.float_tensor((2**64, 1), (0, 0)), 'no natural number'),
  'fewer strides than sizes': (torch_file.float_tensor((2, 3), (3,)), 'odd arguments'),
  'a list of sizes': (torch_file.float_tensor([2, 3], [3, 1]), 'odd arguments'),
  'forty axes': (torch_file.float_tensor((1,) * 40, (1,) * 40), 'odd arguments'),
  'too few arguments': (
    torch_file.call('torch._utils _rebuild_tensor_v2', torch_file.plain(1)),
    'odd arguments',
  ),
  'a conjugate': (
    torch_file.tensor(
      torch_file.storage('0', 'torch FloatStorage', 6),
      0,
      (6,),
      (1,),
      torch_file.plain({'conj': True}),
    ),
    'conjugate',
  ),
  'no dtype': (
    torch_file.tensor(
      torch_file.storage('0', 'torch FloatStorage', 6),
      0,
      (6,),
      (1,),
      torch_file.plain('f4'),
      version=3,
    ),
    'no dtype',
  ),
  'a parameter of text': (
    torch_file.call('torch._utils _rebuild_parameter', OBJECT, OBJECT, OBJECT),
    'no tensor',
  ),
  'bytes of a number': (
    torch_file.call('builtins bytes', torch_file.plain(10**9)),
    'odd arguments',
  ),
  'another encoding': (
    torch_file.call('_codecs encode', OBJECT, torch_file.plain('rot13')),
    'odd arguments',
  ),
  'pairs of three': (
    torch_file.call('collections OrderedDict', torch_file.plain([[1, 2, 3]])),
    'odd arguments',
  ),
  'a memo that is empty': (b'h\x05', 'damaged'),
  'an empty stack': (b'R', 'damaged'),
  'no mark': (b'K\x01t', 'damaged'),
  'a key without a value': (b'}(K\x01u', 'a key without a value'),
  'text without end': (b'X\xff\xff\xff\x7fabc', 'damaged'),
  'no instruction': (b'\xfe', 'damaged'),
}


@pytest.mark.parametrize('what', REFUSED)
def test_what_is_no_tensor_and_not_plain_is_refused(tmp_path, what):
  code, words = REFUSED[what]
  with pytest.raises(ValueError) as error:
    read(tmp_path, code.replace(torch_file.plain(TOUCH), torch_file.plain(TOUCH.format(tmp_path))))
  text = str(error.value)
  assert words in text and str(tmp_path / 'x.pth') in text and '\n' not in text, text
  assert sorted(os.listdir(tmp_path)) == ['x.pth']
