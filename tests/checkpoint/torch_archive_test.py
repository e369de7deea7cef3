"""A .pth file is read without torch, and without running anything that is in it."""

import collections
import os
import pathlib
import pickle
import zipfile

import fill
import ml_dtypes
import numpy as np
import official
import pytest
import torch_file

from vargrl.checkpoint import torch_archive

SIX = np.arange(6, dtype=np.float32)


def read(tmp_path, code, storages=(('0', SIX),), **options):
  return torch_archive.load(torch_file.write(tmp_path / 'x.pth', code, storages, **options))


@pytest.mark.parametrize('name, which', [('var_tiny', 'transformer'), ('vae_tiny', 'vae')])
def test_files_of_torch_hold_the_weights_bit_for_bit(name, which):
  state = torch_archive.load(official.FOLDER / f'{name}.pth')
  m = official.stored('var_tiny')[0]['modules'][which]
  assert type(state) is dict and [[k, list(x.shape)] for k, x in state.items()] == m['keys']
  for key, x in fill.fill_state(m['keys'], m['salt'], skip=m['constants']).items():
    assert state[key].dtype == np.float32 and state[key].tobytes() == x.tobytes(), key
    assert not state[key].flags.writeable and not state[key].flags.owndata


def test_the_trainers_file_holds_the_same_weights_and_its_plain_values():
  file = torch_archive.load(official.FOLDER / 'var_tiny_trainer.pth')
  assert [*file] == ['epoch', 'iter', 'trainer', 'args']
  for nest, name in (('var_wo_ddp', 'var_tiny'), ('vae_local', 'vae_tiny')):
    alone, inside = torch_archive.load(official.FOLDER / f'{name}.pth'), file['trainer'][nest]
    assert [*alone] == [*inside] and all(alone[k].tobytes() == inside[k].tobytes() for k in alone)
  args = file['args']
  assert args['patch_nums'] == (1, 2, 3, 4) and args['tclip'] == 2.0 and args['saln'] is False
  optimizer = file['trainer']['var_opt']['optimizer']
  assert (
    optimizer['state'][0]['exp_avg'].dtype == np.float32 and type(optimizer['param_groups']) is list
  )


@pytest.mark.parametrize(
  'kind, dtype',
  [
    ('Half', 'f2'),
    ('BFloat16', ml_dtypes.bfloat16),
    ('Float', 'f4'),
    ('Double', 'f8'),
    ('Char', 'i1'),
    ('Short', 'i2'),
    ('Int', 'i4'),
    ('Long', 'i8'),
    ('Byte', 'u1'),
    ('Bool', '?'),
    ('ComplexFloat', 'c8'),
  ],
)
def test_every_ordinary_dtype(tmp_path, kind, dtype):
  x = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
  out = read(tmp_path, torch_file.tensor_of(x, kind=f'torch {kind}Storage'), {'0': x})
  assert out.dtype == x.dtype and out.tolist() == x.tolist()


def test_later_dtypes_lie_in_untyped_storages(tmp_path):
  for dtype in ('float8_e4m3fn', 'uint16', 'bfloat16'):
    x = np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, dtype, dtype))
    memory = torch_file.storage('0', 'torch.storage UntypedStorage', x.nbytes)
    code = torch_file.tensor(
      memory, 0, (2, 3), (3, 1), torch_file.global_name(f'torch {dtype}'), version=3
    )
    out = read(tmp_path, code, {'0': x})
    assert out.dtype == x.dtype and out.tobytes() == x.tobytes()


def test_strides_offsets_and_shared_storages_are_views(tmp_path):
  a, b, c, d = read(
    tmp_path,
    torch_file.tuple_of(
      torch_file.float_tensor(),
      torch_file.float_tensor((3, 2), (1, 3)),
      torch_file.float_tensor((2, 2), (1, 1), 2),
      torch_file.float_tensor((), (), 5),
    ),
  )
  assert (a == SIX.reshape(2, 3)).all() and (b == a.T).all()
  assert c.tolist() == [[2, 3], [3, 4]] and d.shape == () and d == 5
  assert np.shares_memory(a, b) and np.shares_memory(a, c)
  assert read(tmp_path, torch_file.float_tensor((3, 0), (7, 7), 0)).shape == (3, 0)
  assert read(tmp_path, torch_file.float_tensor((1, 6), (10**17, 1))).tolist() == [
    SIX.tolist()
  ]  # never used


def test_parameters_and_plain_things(tmp_path):
  empty = torch_file.call('collections OrderedDict')
  parameter = torch_file.call(
    'torch._utils _rebuild_parameter', torch_file.float_tensor(), torch_file.plain(True), empty
  )
  state = (
    empty
    + b'('
    + torch_file.plain('w')
    + parameter
    + b'u'
    + torch_file.dict_of(('_metadata', empty))
    + b'b'
  )
  plain = {
    'i': -3,
    'big': 2**80,
    'f': 0.5,
    's': 'ü',
    'b': b'\0\xff',
    'e': b'',
    'l': [1, [2]],
    't': (),
    'n': None,
    'y': True,
    'set': {1, 2},
    3: frozenset([4]),
  }
  out = read(
    tmp_path,
    torch_file.dict_of(
      ('state', state),
      ('plain', torch_file.plain(plain)),
      ('size', torch_file.call('torch Size', torch_file.plain((2, 3)))),
      ('dtype', torch_file.global_name('torch bfloat16')),
      ('device', torch_file.call('torch device', torch_file.plain('cuda'), torch_file.plain(1))),
      ('order', torch_file.call('collections OrderedDict', torch_file.plain([['k', 1], ('j', 2)]))),
    ),
  )
  assert [*out['state']] == ['w'] and (out['state']['w'] == SIX.reshape(2, 3)).all()
  assert out['plain'] == plain and out['size'] == (2, 3) and out['order'] == {'k': 1, 'j': 2}
  assert (out['dtype'], out['device']) == ('torch.bfloat16', 'cuda:1')
  for protocol in (2, 3, 4, 5):
    code = pickle.dumps(plain | {'o': collections.OrderedDict(a=[1])}, protocol)[2:-1]
    assert read(tmp_path, code) == plain | {'o': {'a': [1]}}


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


def test_a_far_memo_costs_nothing(tmp_path):
  assert read(tmp_path, b'K\x01r\xff\xff\xff\x7f') == 1  # python's own reader would allocate 16 GB


def test_what_is_no_file_of_torch_is_told_in_a_sentence(tmp_path):
  whole = (official.FOLDER / 'var_tiny.pth').read_bytes()
  tar = b'x' * 257 + b'ustar' + bytes(600)
  for content, words in (
    (b'', 'an empty file'),
    (whole[: len(whole) // 2], 'truncated'),
    (whole[:-1], 'truncated'),
    (whole[:4], 'truncated'),
    (b'<!DOCTYPE html>', 'not a file of torch.save'),
    (pickle.dumps([1]), 'not a file of torch.save'),
    (torch_archive.LEGACY + b'rest', 'before 1.6'),
    (tar, 'before 1.6'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'Git LFS'),
  ):
    path = tmp_path / 'y.pth'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
      torch_archive.load(path)
    assert str(error.value).startswith(f'{path}: ') and '\n' not in str(error.value)
  for options, words in (
    (dict(method=zipfile.ZIP_DEFLATED), 'compressed'),
    (dict(byteorder=b'big'), 'byteorder'),
    (dict(more={'constants.pkl': b''}), 'TorchScript'),
  ):
    with pytest.raises(ValueError, match=words):
      read(tmp_path, torch_file.float_tensor(), **options)
  with zipfile.ZipFile(tmp_path / 'z.pth', 'w') as file:
    file.writestr('other', b'')
  with pytest.raises(ValueError, match='0 data.pkl'):
    torch_archive.load(tmp_path / 'z.pth')
  with pytest.raises(FileNotFoundError):
    torch_archive.load(tmp_path / 'none.pth')


def test_flipped_and_cut_bytes_give_a_value_or_a_sentence(tmp_path):
  hooks = torch_file.call('collections OrderedDict')
  code = torch_file.dict_of(
    ('a', torch_file.float_tensor()),
    ('b', torch_file.plain([1, 2.5, 'x', (None, True)])),
    ('c', hooks),
  )
  whole = torch_file.write(tmp_path / 'x.pth', code, {'0': SIX}).read_bytes()
  path, counts = pathlib.Path(tmp_path / 'y.pth'), collections.Counter()

  def attempt(content):
    path.write_bytes(content)
    try:
      value = torch_archive.load(path)
    except ValueError as e:
      counts['refused'] += 1
      assert '\n' not in str(e)
      return
    counts['read'] += 1
    for x in value.values() if type(value) is dict else ():
      if isinstance(x, np.ndarray):
        x.tobytes()

  for at in range(len(whole)):
    for bits in (0x01, 0xFF) if at % 2 else (0x80,):
      attempt(whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :])
    attempt(whole[:at])
    attempt(whole[:at] + whole[at + 1 :])
  assert counts['refused'] > 500 and counts['read'] > 500, counts
