"""The rewards that are heads on CLIP: by hand from its embeddings, through checkpoint files."""

import pathlib
import re

import clip_golden
from flax import traverse_util
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
import small_bpe

from vargrl.checkpoint import torch_format
from vargrl.data import clip_bpe
from vargrl.models.judges import clip
from vargrl.parallel import mesh as meshes
from vargrl.rewards import aesthetic, hps, mix, pickscore, preprocess, towers
from vargrl.rewards import clip as clip_reward
from vargrl.types import Samples

GOLDEN = pathlib.Path(__file__).parent.parent / 'golden'
KNOBS = dict(bind={}, max_failed=0.5, workers=1, timeout=1, retries=0, chunk=1)
NAMES = ('cat', 'dog', 'goldfish')
TEXTS = dict(tokenizer='', template='a photo of the {class}', names=NAMES)
SMOKE = dict(file='', size='smoke', dtype='float32')


def images(n, y=20):
  return np.random.default_rng(0).uniform(-1, 1, (n, y, y, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  """(folder in the layout of transformers with a small vocabulary, config, params) of size
  'smoke'.
  """
  folder, kept = tmp_path_factory.mktemp('clip'), clip.SIZES['smoke']
  small_bpe.write(folder)
  c = clip.SIZES['smoke'] = clip.Config(**{**vars(kept), 'vocab': 514 + len(small_bpe.merges())})
  model = clip.Model(c)
  shapes = nn.unbox(jax.eval_shape(lambda key: clip.init(model, key), jax.random.key(0)))
  table, zeros = (
    clip.torch_layouts(c)[0].table,
    jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes),
  )
  state = {
    key: clip_golden.weight(key, x.shape)
    for key, x in torch_format.to_state_dict(table, zeros, {}).items()
  }
  save_file(state, folder / 'model.safetensors')
  yield folder, c, torch_format.from_state_dict(table, state, shapes)
  clip.SIZES['smoke'] = kept


@pytest.fixture(scope='module')
def expected(checkpoint):
  """(unit embeddings of images(6), cosine(texts)) in float64, straight from the model."""
  folder, c, params = checkpoint
  unit = towers.normalize

  @jax.jit
  def run(params, image, ids):
    x = preprocess.clip_input(image, c.image_size, how='pil')
    return clip.Model(c).apply({'params': params}, x, ids)[:2]

  def embedded(texts):
    found = [run(params, images(6), clip_bpe.encode(folder, [text] * 6)) for text in texts]
    return unit(found[0][0]), unit([t[0] for _, t in found])

  return embedded


def alone():
  return meshes.make((('data', 1), ('fsdp', 1), ('tensor', 1)), jax.devices()[:1])


def scored(rewards, image_Byxc, label_B, mesh=None):
  m, mesh = mix.make(rewards, **KNOBS), mesh or alone()
  with jax.set_mesh(mesh):
    weights = m.load(mesh)
    return m, weights, m.score({'rewards': weights}, Samples(image_Byxc, {}, {'label': label_B}), 1)


def test_every_reward_on_one_clip_is_its_formula_and_the_tower_runs_once(
  checkpoint, expected, tmp_path
):
  folder, c, params = checkpoint
  e_BE, d_VE = expected(
    [f'a photo of the {name}' for name in NAMES] + [f'{name} painting' for name in NAMES]
  )
  mean_VE = d_VE[:3] + d_VE[3:]
  mean_VE /= np.linalg.norm(mean_VE, axis=1, keepdims=True)
  w = np.random.default_rng(1).standard_normal((1, c.embed)).astype(np.float32)
  save_file({'weight': w, 'bias': np.array([5.5], np.float32)}, tmp_path / 'head.safetensors')

  backbone = dict(file=str(folder), size='smoke', dtype='float32')
  rewards = {
    'clip': dict(name='rewards.clip', weight=1.0, scale=2.5, **backbone, **TEXTS),
    'mean': dict(
      name='rewards.clip',
      weight=0.0,
      scale=1,
      **backbone,
      **TEXTS | dict(template=['a photo of the {class}', '{class} painting']),
    ),
    'pick': dict(name='rewards.pickscore', weight=0.0, **backbone, **TEXTS),
    'hps': dict(name='rewards.hps', weight=0.0, **backbone, **TEXTS),
    'aesthetic': dict(
      name='rewards.aesthetic', weight=10.0, head=str(tmp_path / 'head.safetensors'), **backbone
    ),
  }
  label_B = np.array([0, 1, 2, 2, 3, -1])
  m, weights, (r_B, each, counts) = scored(rewards, images(6), label_B)

  cosine_BV = e_BE @ d_VE[:3].T
  known, row = label_B[:4], np.arange(4)
  close = lambda name, value: np.testing.assert_allclose(
    each[name][:4], value[:4], atol=3e-6, err_msg=name
  )
  close('clip', 2.5 * cosine_BV[row, known])
  close('mean', (e_BE @ mean_VE.T)[row, known])
  close('pick', np.exp(3.25) / 26 * cosine_BV[row, known])
  close('aesthetic', e_BE @ w[0] + 5.5)
  np.testing.assert_allclose(r_B[:4], each['clip'][:4] + 10 * each['aesthetic'][:4], rtol=1e-6)
  # A label that is no class has no reward, but a picture needs no class to be beautiful.
  assert np.isnan(r_B).tolist() == [False] * 4 + [True] * 2 == np.isnan(each['hps']).tolist()
  assert np.isfinite(each['aesthetic']).all() and counts['reward/masked'] == 2
  # Another preprocessing is another tower; but for that, HPS is a cosine.
  assert 0 < abs(each['hps'][:4] - cosine_BV[row, known]).max() < 0.3
  assert sorted(key.split()[-1] for key in weights['towers']) == ['float', 'pil']
  assert {d.shape for d in jax.tree.leaves(weights['judges']['clip'])} == {(), (3, c.embed)}


def test_weights_lie_and_rows_run_on_the_whole_mesh(checkpoint):
  folder, c, _ = checkpoint
  backbone = dict(file=str(folder), size='smoke', dtype='float32')
  rewards = {'clip': dict(name='rewards.clip', weight=1.0, scale=1, **backbone, **TEXTS)}
  label_B = np.arange(8) % 3
  _, _, (expected_B, _, _) = scored(rewards, images(8), label_B)
  mesh = meshes.make((('data', 2), ('fsdp', 2), ('tensor', 2)))
  m, weights, (r_B, _, _) = scored(rewards, images(8), label_B, mesh)
  np.testing.assert_allclose(r_B, expected_B, atol=3e-6)
  (fc1,) = (tower['blocks']['fc1']['w'] for tower in weights['towers'].values())
  assert fc1.addressable_shards[0].data.size * 4 == fc1.size
  moved = {'towers': {'elsewhere': [*weights['towers'].values()][0]}}
  assert mix.fingerprint(weights) == mix.fingerprint(moved) != 'random'


def test_towers_run_once_however_many_rewards_look_through_them():
  def flops(count):
    rewards = {
      f'r{i}': dict(name='rewards.clip', weight=1.0, scale=1.0, **SMOKE, **TEXTS)
      for i in range(count)
    }
    m = mix.make(rewards, **KNOBS)
    weights = {
      'towers': {key: shapes['image'] for key in m.towers},
      'judges': {name: own for name in rewards},
    }
    rows = Samples(jnp.zeros((4, 8, 8, 3)), {}, {'label': jnp.zeros(4, jnp.int32)})
    lowered = m.device.lower({'rewards': weights}, rows)
    return lowered.compile().cost_analysis()['flops']

  c = clip.SIZES['smoke']
  shapes = nn.unbox(jax.eval_shape(lambda key: clip.init(clip.Model(c), key), jax.random.key(0)))
  own = {'direction': jnp.zeros((3, c.embed)), 'scale': jnp.ones(()), 'bias': jnp.zeros(())}
  one, three = flops(1), flops(3)
  assert one > clip.flops(c) and three < 1.02 * one


def test_large_weights_are_held_in_the_dtype_of_their_products():
  source = towers.source(file='', size='smoke', dtype='bfloat16', download={})
  held = traverse_util.flatten_dict(towers.abstract_params(source, alone())['image'], sep='/')
  halves = {name for name, x in held.items() if x.dtype == jnp.bfloat16}
  assert halves == {f'blocks/{name}/w' for name in ('q', 'k', 'v', 'o', 'fc1', 'fc2')}


def test_the_released_aesthetic_head_scores_as_torch_does():
  source = towers.Source(None, 'l14', clip.SIZES['l14'])
  w_E, b = aesthetic.affine(GOLDEN / clip_golden.HEAD, source)
  np.testing.assert_allclose([np.linalg.norm(w_E), b], [17.9956, 5.2366], atol=1e-4)
  e_BE = clip_golden.embeddings()
  own = {
    'direction': jnp.asarray(w_E[None], jnp.float32),
    'scale': jnp.float32(1),
    'bias': jnp.float32(b),
  }
  r_B = towers.affine(own, jnp.asarray(e_BE), jnp.zeros(16, jnp.int32))
  np.testing.assert_allclose(r_B, np.load(GOLDEN / 'clip.npz')['aesthetic'], rtol=0, atol=1e-5)


def test_another_head_is_refused(tmp_path):
  source = towers.Source(None, 'b32', clip.SIZES['b32'])
  with pytest.raises(ValueError, match="embeddings of width 768, 512 in CLIP 'b32'"):
    aesthetic.affine(GOLDEN / clip_golden.HEAD, source)
  two = {'weight': np.zeros((2, 512), np.float32), 'bias': np.zeros(2, np.float32)}
  save_file(two, tmp_path / 'two.safetensors')
  save_file({'fc.weight': np.zeros((1, 512), np.float32)}, tmp_path / 'other.safetensors')
  (tmp_path / 'ava+logos-l14-reluMSE.pth').touch()
  for name, message in (
    ('two.safetensors', '2 outputs in'),
    ('other.safetensors', r"keys \['fc.weight'\] in .*v1"),
    ('ava+logos-l14-reluMSE.pth', 'trained with ReLUs'),
    ('none.pth', 'there is no .*curl -LO https://'),
  ):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      aesthetic.affine(tmp_path / name, source)


@pytest.mark.parametrize(
  'module,size,hub',
  [
    (clip_reward, 'l14', 'openai/clip-vit-large-patch14'),
    (clip_reward, 'h14', 'laion/CLIP-ViT-H-14-laion2B-s32B-b79K'),
    (pickscore, 'h14', 'yuvalkirstain/PickScore_v1'),
    (hps, 'h14', 'xswu/HPSv2 HPS_v2.1_compressed.pt'),
    (aesthetic, 'l14', 'openai/clip-vit-large-patch14'),
  ],
)
def test_absent_weights_are_one_sentence_with_the_command_that_brings_them(
  module, size, hub, tmp_path
):
  options = {clip_reward: TEXTS | {'scale': 1}, aesthetic: {'head': ''}}.get(module, TEXTS)
  with pytest.raises(FileNotFoundError) as error:
    module.judge(file=str(tmp_path / 'none'), size=size, dtype='bfloat16', **options)
  assert str(error.value) == (
    f'file: there is no {tmp_path}/none; `hf download {hub} --local-dir {tmp_path}/none` brings it'
  )
  with pytest.raises(
    ValueError, match=f"file: none given, .*'{size}' expected; `hf download {hub} "
  ):
    module.judge(file='', size=size, dtype='bfloat16', **options)


@pytest.mark.parametrize(
  'change,message',
  [
    ({'size': 'g14'}, "size: 'g14' found, expected one of"),
    ({'dtype': 'int4'}, "dtype: 'int4'"),
    ({'template': 'a {class} in {place}'}, r'its only braces'),
    ({'template': ()}, 'template: none found'),
    ({'names': 'cifar'}, "names: 'cifar' found"),
    ({'scal': 1}, "unknown option 'scal'; did you mean 'scale'"),
    (
      {'tokenizer': '/nowhere'},
      'tokenizer: no tokenizer in /nowhere.*clip-vit-large-patch14 tokenizer.json --local-dir',
    ),
  ],
)
def test_wrong_options_are_one_sentence_of_the_reward(change, message):
  options = dict(name='rewards.clip', weight=1.0, scale=1.0, **SMOKE, **TEXTS) | change
  with pytest.raises(
    (ValueError, FileNotFoundError), match=r'reward (clip|rewards.clip)\b.*' + message
  ):
    mix.make({'clip': options}, **KNOBS)


def test_a_file_of_another_model_is_refused_before_it_is_read(checkpoint, tmp_path):
  folder, c, _ = checkpoint
  with pytest.raises(ValueError, match=re.escape('vision_model')):
    clip_reward.judge(file=str(folder), size='b32', dtype='float32', scale=1, **TEXTS)
  with pytest.raises(FileNotFoundError, match='tokenizer'):
    (tmp_path / 'm.safetensors').write_bytes((folder / 'model.safetensors').read_bytes())
    options = dict(size='smoke', dtype='float32', scale=1, **TEXTS)
    clip_reward.judge(file=str(tmp_path / 'm.safetensors'), **options)
