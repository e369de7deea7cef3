"""A .pth file is read without torch, and without running anything that is in it."""

import collections
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
