"""Qwen2 and Qwen2-VL are transformers' (tests/golden/make_qwen2.py), through folders in all
spellings.
"""

import functools
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwen2_golden as rule

from vargrl.checkpoint import files, torch_format
from vargrl.data import patches
from vargrl.models import qwen2, qwen2_vl, vit

GOLDEN = pathlib.Path(__file__).parent.parent / 'golden'
VL = qwen2_vl.Config(qwen2.Config(**rule.LM), vit.Config(**rule.VISION))
OLD = (('model.language_model.', 'model.'), ('model.visual.', 'visual.'))


@functools.lru_cache(None)
def stored():
  return json.loads((GOLDEN / 'qwen2.json').read_text()), dict(np.load(GOLDEN / 'qwen2.npz'))


def state(name):
  return {key: rule.weights(key, tuple(shape)) for key, shape in stored()[0][name].items()}


def shapes(module, c):
  return nn.unbox(jax.eval_shape(lambda key: module.init(module.Model(c), key), jax.random.key(0)))


def write(folder, tensors):
  headers = {key: (x.shape, x.dtype) for key, x in tensors.items()}
  files.write_folder(folder, headers, tensors.items(), max_file_bytes=5e9, config={})
  return folder


@pytest.mark.parametrize('name', sorted(rule.TEXT))
def test_logits_are_those_of_transformers(tmp_path, name):
  c = qwen2.Config(**rule.TEXT[name])
  params = torch_format.load(
    write(tmp_path / 'hf', state(name)), qwen2.torch_layouts(c), shapes(qwen2, c)
  )
  logits = jax.jit(lambda params, t_BL: qwen2.Model(c).apply({'params': params}, t_BL))(
    params, rule.tokens(c.vocab)
  )
  for ours, theirs, length in zip(logits, stored()[1][f'{name}_logits'], rule.LENGTHS, strict=True):
    np.testing.assert_allclose(ours[:length], theirs[:length], rtol=0, atol=1e-4)


@pytest.fixture(scope='module')
def seen():
  """What `cut` makes of the first two pictures, as a batch with padding."""
  return patches.batch_images([rule.picture(*size) for size in [*rule.PICTURES][:2]], length=32)


@pytest.fixture(scope='module')
def vl():
  """A state dict in the spelling of the hub -> params."""

  def call(tensors):
    return torch_format.from_state_dict(
      qwen2_vl.torch_layouts(VL)[0].table, tensors, shapes(qwen2_vl, VL)
    )

  tensors = state('vl')
  for new, old in OLD:
    tensors = {key.replace(new, old): x for key, x in tensors.items()}
  return call(tensors)


def test_a_picture_and_its_place_are_seen_as_by_transformers(vl, seen):
  """Embeddings of the tower, positions of the sequence and logits; rows of unequal length, pictures
  too.
  """
  patch_ILp, position_aIL, seen_IL, sizes = seen
  counts = [h * w // 4 for h, w in sizes]
  rows, images = rule.dialogues(counts), ([0, 1], [1])
  stored_positions = stored()[1]['vl_positions']
  for row, images_of, theirs in zip(rows, images, np.moveaxis(stored_positions, 1, 0), strict=True):
    ours = patches.mrope_positions(np.array(row), [sizes[i] for i in images_of], pad=rule.PAD)
    np.testing.assert_array_equal(ours, theirs[:, : len(row)])

  @jax.jit
  def run(params, patch_ILp, position_aIL, seen_IL, *row):
    image_ITD = vit.Model(VL.vision).apply(
      {'params': params['vision']}, patch_ILp, position_aIL, seen_IL
    )
    return image_ITD, qwen2_vl.Model(VL).apply(
      {'params': params}, *row, patch_ILp, position_aIL, seen_IL
    )

  S, theirs = max(map(len, rows)), stored()[1]
  padded = np.zeros((2, S), np.int32)
  positions_3BL, places_BL = np.zeros((3, 2, S), np.int32), np.full((2, S), -1)
  for i, (row, images_of) in enumerate(zip(rows, images)):
    n, mine = len(row), [sizes[j] for j in images_of]
    padded[i, :n], positions_3BL[:, i, :n] = (
      row,
      patches.mrope_positions(np.array(row), mine, pad=rule.PAD),
    )
    place = patches.image_index(np.array(row), mine, pad=rule.PAD, length=32)
    places_BL[i, :n] = np.where(
      place >= 0, place + 8 * images_of[0], -1
    )  # 8 embeddings of 32 patches
  image_ITD, logits_BLV = run(
    vl, patch_ILp, position_aIL, seen_IL, padded, positions_3BL, places_BL
  )
  image_TD = np.concatenate([x[:n] for x, n in zip(image_ITD, counts)])
  np.testing.assert_allclose(image_TD, theirs['vl_image'][: sum(counts)], rtol=0, atol=1e-4)
  assert theirs['vl_image'].std() > 0.3
  for ours, wanted, row in zip(logits_BLV, theirs['vl_logits'], rows):
    np.testing.assert_allclose(ours[: len(row)], wanted[: len(row)], rtol=0, atol=1e-4)
  blind = run(
    vl, patch_ILp, position_aIL, seen_IL, padded, positions_3BL, np.full_like(places_BL, -1)
  )[1]
  assert abs(blind - logits_BLV).max() > 0.1


def test_padding_of_a_picture_is_not_seen(vl, seen):
  patch_ILp, position_aIL, seen_IL, sizes = seen
  tower = jax.jit(lambda *args: vit.Model(VL.vision).apply({'params': vl['vision']}, *args))
  whole, (h, w) = tower(patch_ILp, position_aIL, seen_IL), sizes[1]
  noise = np.where(seen_IL[..., None], patch_ILp, 7.0)
  np.testing.assert_array_equal(
    tower(noise, position_aIL, seen_IL)[1, : h * w // 4], whole[1, : h * w // 4]
  )
  alone = tower(patch_ILp[1:, : h * w], position_aIL[:, 1:, : h * w], seen_IL[1:, : h * w])
  np.testing.assert_allclose(alone[0], whole[1, : h * w // 4], atol=1e-5)
  assert abs(whole[0, :4] - whole[1, :4]).max() > 0.1


@pytest.mark.parametrize('spelling', range(2), ids=('hub', 'new'))
def test_exported_is_imported_bit_for_bit_in_one_file_or_many(tmp_path, vl, spelling):
  layout, theirs = qwen2_vl.torch_layouts(VL)[spelling], state('vl')
  torch_format.save(tmp_path / 'many', layout, vl, max_file_bytes=20_000)
  parts = sorted(path.name for path in (tmp_path / 'many').glob('*.safetensors'))
  assert len(parts) > 5 and parts[0] == f'model-00001-of-{len(parts):05d}.safetensors'
  sizes = [(tmp_path / 'many' / part).stat().st_size for part in parts]
  biggest = max(x.nbytes for x in theirs.values())
  assert max(sizes) < max(20_000, biggest) + 4000  # and a header
  written = files.open_tensors(tmp_path / 'many')
  rename = lambda key: (
    key if spelling else functools.reduce(lambda key, pair: key.replace(*pair), OLD, key)
  )
  assert {rename(key) for key in theirs} == set(written)
  for key, x in theirs.items():
    np.testing.assert_array_equal(np.asarray(written[rename(key)]), x)
  again = torch_format.load(tmp_path / 'many', qwen2_vl.torch_layouts(VL), shapes(qwen2_vl, VL))
  jax.tree.map(np.testing.assert_array_equal, again, vl)
  torch_format.save(tmp_path / 'one', layout, again)
  assert {path.name for path in (tmp_path / 'one').iterdir()} == {
    'model.safetensors',
    'config.json',
  }
  jax.tree.map(
    np.testing.assert_array_equal,
    torch_format.load(tmp_path / 'one', qwen2_vl.torch_layouts(VL), shapes(qwen2_vl, VL)),
    vl,
  )
  with pytest.raises(ValueError, match='one: a folder with weights found'):
    torch_format.save(tmp_path / 'one', layout, vl)
  # The language model alone, of the same folder.
  lm = torch_format.load(tmp_path / 'many', qwen2.torch_layouts(VL.lm), shapes(qwen2, VL.lm))
  jax.tree.map(np.testing.assert_array_equal, lm, vl['lm'])


def test_weights_written_in_bfloat16_are_those_rounded(tmp_path, vl):
  torch_format.save(tmp_path / 'half', qwen2_vl.torch_layouts(VL)[0], vl, dtype=jnp.bfloat16)
  assert json.loads((tmp_path / 'half' / 'config.json').read_text())['torch_dtype'] == 'bfloat16'
  read = torch_format.load(tmp_path / 'half', qwen2_vl.torch_layouts(VL), shapes(qwen2_vl, VL))
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16).astype(jnp.float32)),
    read,
    vl,
  )


def test_a_folder_of_another_size_is_one_sentence(tmp_path, vl):
  torch_format.save(tmp_path / 'x', qwen2_vl.torch_layouts(VL)[0], vl)
  path = tmp_path / 'x' / 'config.json'
  load = lambda: torch_format.check(path.parent, qwen2_vl.torch_layouts(VL), shapes(qwen2_vl, VL))
  load()
  config = json.loads(path.read_text())

  def refused(changed, words):
    path.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=words) as error:
      load()
    assert '\n' not in str(error.value)

  refused(
    config | {'hidden_size': 1536, 'num_hidden_layers': 28},
    'hidden_size 1536 found, 32 expected; num_hidden_layers 28 found, 2 expected',
  )
  refused(
    config | {'vision_config': config['vision_config'] | {'depth': 32}},
    'vision_config.depth 32 found, 2 expected',
  )
  refused(
    config | {'rope_scaling': {'type': 'mrope', 'mrope_section': [16, 24, 24]}},
    r'mrope_section \[16, 24, 24\] found',
  )
  text = {key: config[key] for key in ('hidden_size', 'rms_norm_eps')}
  refused(
    {'text_config': text | {'rms_norm_eps': 1e-5, 'rope_parameters': {'rope_theta': 1e4}}},
    'rms_norm_eps 1e-05 found, 1e-06 expected; rope_theta 10000.0 found, 1000000.0 expected',
  )
  path.write_text('[]')
  with pytest.raises(ValueError, match='no JSON|found in JSON'):
    load()
  path.write_text(json.dumps({'text_config': text, 'architectures': ['Other']}))
  load()


def test_published_sizes_have_as_many_parameters_as_is_said_of_them():
  count = lambda name: sum(x.size for x in jax.tree.leaves(shapes(qwen2, qwen2.SIZES[name])))
  billions = {
    '0.5b': 0.494,
    '1.5b': 1.544,
    '3b': 3.086,
    '7b': 7.616,
    '14b': 14.770,
    '32b': 32.764,
    '72b': 72.706,
    'vl-2b': 1.544,
    'vl-7b': 7.616,
  }
  assert {name: round(count(name) / 1e9, 3) for name in billions} == billions
  lm = 6_525_618_176 + 2 * 544_997_376 + 3584
  assert count('7b') == lm
  tower = sum(x.size for x in jax.tree.leaves(shapes(vit, vit.SIZES['7b'])))
  assert tower == 675_759_104
