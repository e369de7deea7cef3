"""Import, export and import again, by one table per model: every tensor matched once, each way."""

import dataclasses
import hashlib
import json

import fill
from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import official
import pytest
import safetensors.numpy
import torch_file

from vargrl.checkpoint import files, torch_format
from vargrl.models import infinity, var
from vargrl.parallel import mesh as meshes
from vargrl.parallel import place
from vargrl.tokenizers import bsq, vq
from vargrl.types import TorchLayout

TINY = var.Config(2, 32, 2, scales=(1, 2, 3), vocab=16, channels=4, classes=5)
SMALL = vq.SIZES['smoke']  # three scales leave one of the four convolutions without any
CASES = {
  'var': (var, TINY),
  'shared': (var, dataclasses.replace(TINY, shared_adaln=True)),
  'no temperature': (var, dataclasses.replace(TINY, l2_norm=False)),
  'smoke': (var, var.SIZES['smoke']),
  'vq': (vq, SMALL),
  'four levels': (vq, dataclasses.replace(SMALL, mults=(1, 2, 2), scales=(1, 2, 3, 4))),
}


class Counting(dict):
  """A state dict that knows how often each array was read."""

  def __getitem__(self, key):
    self.reads.append(key)
    return super().__getitem__(key)


def random_params(shapes, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), shapes)


def assert_equal(a, b):
  a, b = (traverse_util.flatten_dict(x, sep='/') for x in (a, b))
  assert set(a) == set(b)
  for name in a:
    assert a[name].dtype == b[name].dtype == jnp.float32
    assert np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes(), name


def error_message(call, *args, **kwargs):
  with pytest.raises(ValueError) as error:
    call(*args, **kwargs)
  return str(error.value)


@pytest.fixture(scope='module')
def tiny():
  """var_tiny: (layouts, abstract weights, path of its file)."""
  m = official.load('var_tiny', 'transformer')
  return m.layouts, m.shapes, m.path


@pytest.mark.parametrize('which', ['transformer', 'vae'])
def test_file_and_the_trainers_file_load_bit_equal_to_the_rule(which):
  m = official.load('var_tiny', which)
  assert_equal(
    m.params, torch_format.load(official.FOLDER / 'var_tiny_trainer.pth', m.layouts, m.shapes)
  )
  assert_equal(
    m.params, torch_format.from_state_dict(m.layouts[0].table, m.state, m.shapes, m.constants)
  )
  for key, x in torch_format.to_state_dict(m.layouts[0].table, m.params, {}).items():
    assert x.tobytes() == m.state[key].tobytes(), key


@pytest.mark.parametrize('name', CASES)
def test_export_of_import_of_export_is_the_same_file(name, tmp_path):
  module, c = CASES[name]
  (layout,), shapes = module.torch_layouts(c), official.abstract(module, c)
  params = random_params(shapes)
  one, two = tmp_path / '1.safetensors', tmp_path / '2.safetensors'
  torch_format.save(one, layout, params)
  torch_format.check(one, (layout,), shapes)
  again = torch_format.load(one, (layout,), shapes)
  assert_equal(again, params)
  torch_format.save(two, layout, again)
  assert one.read_bytes() == two.read_bytes()
  keys = set(safetensors.numpy.load_file(one))
  assert keys == set(torch_format.expected_shapes(layout.table, torch_format.leaves(shapes))) | set(
    layout.constants
  )


def test_pth_by_torch_and_back(tmp_path):
  theirs = pytest.importorskip('torch')
  (layout,), shapes = var.torch_layouts(TINY), official.abstract(var, TINY)
  params = random_params(shapes)
  torch_format.save(tmp_path / 'x.pth', layout, params)
  assert_equal(torch_format.load(tmp_path / 'x.pth', (layout,), shapes), params)
  state = theirs.load(tmp_path / 'x.pth', weights_only=True)
  assert state['lvl_1L'].dtype == theirs.int64 and len(state) == 12 + 13 * 2


@pytest.mark.parametrize(
  'name, module, c',
  [
    ('var_d16', var, var.SIZES['d16']),
    ('var_d36_512', var, var.SIZES['d36-512']),
    ('vq', vq, vq.SIZES['var']),
    ('infinity_2b', infinity, infinity.SIZES['2b']),
    ('infinity_8b', infinity, infinity.SIZES['8b']),
    ('bsq_d32', bsq, bsq.SIZES['d32']),
  ],
)
def test_released_models_have_exactly_the_official_keys_and_shapes(name, module, c):
  """Abstractly: no array of these sizes is made."""
  expected = json.loads((official.FOLDER / 'keys.json').read_text())[name]
  layout = module.torch_layouts(c)[0]
  ours = torch_format.expected_shapes(
    layout.table, torch_format.leaves(official.abstract(module, c))
  )
  ours |= {key: x.shape for key, x in layout.constants.items()}
  lines = '\n'.join(sorted(f'{key} {tuple(shape)}' for key, shape in ours.items()))
  assert len(ours) == expected['count']
  assert hashlib.sha256(lines.encode()).hexdigest() == expected['sha256']


def test_released_d30_has_the_official_number_of_tensors():
  c = var.SIZES['d30']
  (layout,) = var.torch_layouts(c)
  ours = torch_format.expected_shapes(layout.table, torch_format.leaves(official.abstract(var, c)))
  assert len(ours) + len(layout.constants) == 12 + 13 * 30
  assert sum(np.prod(shape) for shape in ours.values()) == 2_010_020_356


def test_each_tensor_is_read_once_and_only_what_is_asked_for():
  (layout,), shapes = var.torch_layouts(TINY), official.abstract(var, TINY)
  params = random_params(shapes)
  state = Counting(torch_format.to_state_dict(layout.table, params, {}))
  state.reads = []
  named = torch_format.leaves(shapes)
  torch_format.load_leaves(layout.table, state, named, '')
  assert sorted(state.reads) == sorted(torch_format.expected_shapes(layout.table, named))
  state.reads = []
  out = torch_format.load_leaves(layout.table, state, named, 'blocks/')
  assert sorted(state.reads) == sorted(key for key in state if key.startswith('blocks.'))
  assert set(out) == {name for name in named if name.startswith('blocks/')}


def test_only_a_part_is_the_subtree_and_the_rest_is_still_checked(tiny, tmp_path):
  layouts, shapes, path = tiny
  whole = torch_format.load(path, layouts, shapes)
  for only in ('blocks', 'blocks/'):
    assert_equal(torch_format.load(path, layouts, shapes, subtree=only), whole['blocks'])
  assert (torch_format.load(path, layouts, shapes, subtree='start') == whole['start']).all()
  assert_equal(
    torch_format.load(path, layouts, shapes, subtree='head'), whole['head']
  )  # and not head_ada
  state = {k: np.asarray(x) for k, x in files.open_tensors(path).items() if k != 'head.bias'}
  safetensors.numpy.save_file(state, tmp_path / 'x.safetensors')
  text = error_message(
    torch_format.load, tmp_path / 'x.safetensors', layouts, shapes, subtree='blocks/'
  )
  assert '- head.bias (64,)' in text


def test_any_mesh_holds_the_same_weights_on_the_shardings_asked_for(tmp_path):
  model = var.Model(TINY)
  (layout,), plain = var.torch_layouts(TINY), official.abstract(var, TINY)
  torch_format.save(tmp_path / 'x.safetensors', layout, random_params(plain))
  for sizes in ((1, 4, 2), (2, 2, 2), (8, 1, 1), (1, 8, 1)):
    mesh = meshes.make(tuple(zip(meshes.AXES, sizes)))
    shapes = place.abstract_params(lambda key: var.init(model, key), mesh)
    params = torch_format.load(tmp_path / 'x.safetensors', (layout,), shapes)
    assert_equal(params, random_params(plain))
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s.sharding, params, shapes))
  split = params['blocks']['fc1']['w']
  assert split.sharding.shard_shape(split.shape)[1] * 8 == split.shape[1]


def test_other_floats_are_cast_and_numbers_that_are_none_are_refused(tiny, tmp_path):
  layouts, shapes, path = tiny
  whole, state = (
    torch_format.load(path, layouts, shapes),
    {k: np.asarray(x) for k, x in files.open_tensors(path).items()},
  )
  for dtype, error in ((np.float64, 0), (np.float16, 1e-3), (ml_dtypes.bfloat16, 1e-2)):
    cast = {k: x if k in layouts[0].constants else x.astype(dtype) for k, x in state.items()}
    safetensors.numpy.save_file(cast, tmp_path / 'x.safetensors')
    params = torch_format.load(tmp_path / 'x.safetensors', layouts, shapes)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=error, atol=error * 1e-2), params, whole
    )
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype('float32')}
  safetensors.numpy.save_file(
    state | {'head.bias': np.zeros(64, np.int8)}, tmp_path / 'x.safetensors'
  )
  assert '~ head.bias int8 in file, floating point expected' in error_message(
    torch_format.check, tmp_path / 'x.safetensors', layouts, shapes
  )


def test_a_file_that_does_not_match_is_refused_with_a_list_of_ten(tiny, tmp_path):
  layouts, shapes, path = tiny
  state = {k: np.asarray(x) for k, x in files.open_tensors(path).items()}
  del state['head.bias'], state['lvl_1L']
  state |= {'blocks.0.extra': np.zeros(3), 'head.weight': np.zeros((65, 64), np.float32)}
  safetensors.numpy.save_file(state, tmp_path / 'x.safetensors')
  for call in (torch_format.check, torch_format.load):
    text = error_message(call, tmp_path / 'x.safetensors', layouts, shapes)
    assert text.startswith(
      f'{tmp_path}/x.safetensors: not the weights of this model, 4 tensors differ'
    )
    assert {line.strip() for line in text.splitlines()[1:]} == {
      '- head.bias (64,)',
      '- lvl_1L (1, 30)',
      '+ blocks.0.extra (3,)',
      '~ head.weight (65, 64) in file, (64, 64) in model',
    }
  deeper = var.Config(3, 64, 1, (1, 2, 3, 4), 64, 8, 10)
  text = error_message(
    torch_format.check, path, var.torch_layouts(deeper), official.abstract(var, deeper)
  )
  assert (
    '26 tensors differ' in text and text.endswith('... and 16 more') and text.count('\n  -') == 10
  )
  v = official.load('var_tiny', 'vae')
  assert "no weights of this model, its first keys are ['encoder.conv_in.weight'" in error_message(
    torch_format.check, v.path, layouts, shapes
  )


def test_another_schedule_is_told_by_its_constants(tiny):
  _, _, path = tiny
  c = var.Config(1, 64, 1, (1, 3, 2, 4), 64, 8, 10)  # as many tokens, in another order
  shapes = official.abstract(var, c)
  torch_format.check(path, var.torch_layouts(c), shapes)  # headers do not tell
  assert 'lvl_1L is not what' in error_message(
    torch_format.load, path, var.torch_layouts(c), shapes
  )


def test_the_usage_record_of_another_schedule_is_ignored_and_written_as_zeros(tmp_path):
  v = official.load('var_tiny', 'vae')
  state = {k: np.asarray(x) for k, x in files.open_tensors(v.path).items()}
  state['quantize.ema_vocab_hit_SV'] = np.full((10, 3), 0.5, np.float32)
  safetensors.numpy.save_file(state, tmp_path / 'x.safetensors')
  assert_equal(torch_format.load(tmp_path / 'x.safetensors', v.layouts, v.shapes), v.params)
  torch_format.save(tmp_path / 'y.safetensors', v.layouts[0], v.params)
  hit = np.asarray(files.open_tensors(tmp_path / 'y.safetensors')['quantize.ema_vocab_hit_SV'])
  assert hit.shape == (4, 64) and not hit.any()


def test_prefixes_nests_and_the_layout_are_found(tmp_path):
  shapes = {
    'a': {'w': jax.ShapeDtypeStruct((2, 3), jnp.float32)},
    's': jax.ShapeDtypeStruct((), jnp.float32),
  }
  one = TorchLayout(
    {'a/w': ('w', 'i o -> i o'), 's': ('scale', '-> ')},
    nested_at=('state_dict',),
  )
  two = TorchLayout(
    {'a/w': ('t', 'o i -> i o'), 's': ('scale', '-> ')}, ignored=(r'position\.\d+',)
  )
  w, s = fill.fill('w', (2, 3)), np.array(7, np.float32)
  inner = torch_file.dict_of(
    ('module.w', torch_file.tensor_of(w)), ('module.scale', torch_file.tensor_of(s, '1'))
  )
  outer = torch_file.dict_of(('epoch', torch_file.plain(3)), ('state_dict', inner))
  path = torch_file.write(tmp_path / 'x.pth', outer, {'0': w, '1': s})
  expected = {'a': {'w': jnp.asarray(w)}, 's': jnp.asarray(s)}
  assert_equal(torch_format.load(path, (two, one), shapes), expected)
  state = {'t': np.ascontiguousarray(w.T), 'scale': s, 'position.3': np.arange(3)}
  safetensors.numpy.save_file(state, tmp_path / 'y.safetensors')
  for layouts in ((one, two), (two, one)):  # `scale` is in both
    assert_equal(torch_format.load(tmp_path / 'y.safetensors', layouts, shapes), expected)
  half = torch_file.write(
    tmp_path / 'z.pth',
    torch_file.dict_of(('w', torch_file.tensor_of(w)), ('scale', torch_file.plain(7))),
    {'0': w},
  )
  assert '~ scale int in file, an array expected' in error_message(
    torch_format.check, half, (one, two), shapes
  )


def test_adapters_are_in_no_file(tiny, tmp_path):
  layouts, shapes, path = tiny
  more = dict(
    shapes,
    blocks=dict(
      shapes['blocks'],
      q=dict(shapes['blocks']['q'], lora_a=jax.ShapeDtypeStruct((1, 64, 4), jnp.float32)),
    ),
  )
  torch_format.check(path, layouts, more)
  params = torch_format.load(path, layouts, more)
  assert_equal(params, torch_format.load(path, layouts, shapes))
  params['blocks']['q']['lora_a'] = jnp.zeros((1, 64, 4))
  assert 'blocks/q/lora_a has no place' in error_message(
    torch_format.save, tmp_path / 'x.safetensors', layouts[0], params
  )


def test_a_table_must_match_its_model_once():
  shapes = {
    'a': jax.ShapeDtypeStruct((2,), jnp.float32),
    'b': jax.ShapeDtypeStruct((2,), jnp.float32),
  }
  row = lambda key: (key, 'D -> D')
  assert "no row for ['b']" in error_message(torch_format.expected_shapes, {'a': row('x')}, shapes)
  assert 'x is in two rows' in error_message(
    torch_format.expected_shapes, {'a': row('x'), 'b': row('x')}, shapes
  )
  assert "['c'] are no parameters" in error_message(
    torch_format.expected_shapes, {'a': row('x'), 'c': row('y')}, shapes
  )


def test_stacked_numbers_and_partitioned_layers():
  """A leaf of one number per layer, and layers that lie on several devices."""
  mesh = meshes.make((('data', 1), ('fsdp', 8), ('tensor', 1)))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('fsdp'))
  shapes = {
    'gate': jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding),
    'w': jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=sharding),
  }
  table = {'gate': ('{X}.gate', '1 -> '), 'w': ('{X}.w', '1 o -> o')}
  state = {f'{i}.gate': np.full(1, i, np.float32) for i in range(8)}
  state |= {f'{i}.w': fill.fill(str(i), (1, 3)) for i in range(8)}
  out = torch_format.from_state_dict(table, state, shapes)
  assert out['gate'].tolist() == list(range(8)) and out['gate'].sharding == sharding
  np.testing.assert_array_equal(out['w'], np.concatenate([state[f'{i}.w'] for i in range(8)]))
  for key, x in torch_format.to_state_dict(table, out, {}).items():
    np.testing.assert_array_equal(x, state[key])
