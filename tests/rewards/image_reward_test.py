"""ImageReward as a Judge: its score is the network's on the class's prompt, whatever else is in the
batch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip('vargrl.data.names')
pytest.importorskip('vargrl.rewards.preprocess')

from vargrl.models.judges import blip
from vargrl.parallel import mesh as meshes  # noqa: E402
from vargrl.rewards import image_reward, preprocess  # noqa: E402
from vargrl.types import Samples  # noqa: E402

NAMES = ('tench', 'goldfish', 'great white shark')
OPTIONS = dict(
  file='', size='smoke', dtype='float32', vocab='', template='a photo of a {class}', names=NAMES
)
C = blip.SIZES['smoke']


@pytest.fixture(scope='module')
def judged():
  """(Judge, its towers' weights, its own, scoring function, a mesh of eight devices)."""
  mesh = meshes.make((('data', 2), ('fsdp', 2), ('tensor', 2)), jax.devices()[:8])
  judge = image_reward.judge(**OPTIONS)
  [(key, tower)] = judge.towers.items()
  with jax.set_mesh(mesh):
    seen, own = tower.load(mesh), judge.load(mesh)
  run = jax.jit(
    lambda seen, own, image, label: judge.score(
      own, {key: tower.apply(seen, image)}, Samples(image, {}, {'label': label})
    )
  )
  return run, seen, own, mesh


def images(n):
  return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (n, 20, 20, 3)), jnp.float32)


def test_the_score_is_the_networks_and_no_class_is_no_verdict(judged):
  run, seen, own, mesh = judged
  label_B = jnp.array([0, 2, 1, 3, -1, 2, 0, 0])
  with jax.set_mesh(mesh):
    r_B = np.asarray(run(seen, own, images(8), label_B))
  assert (
    r_B.dtype == np.float32 and np.isnan(r_B).tolist() == [False] * 3 + [True] * 2 + [False] * 3
  )

  # The whole network, its head layer by layer, and more padding.
  head = jax.device_get(image_reward.load_params(None, C, 'head', mesh))
  params = {'image': jax.device_get(seen), 'text': jax.device_get(own['text']), 'head': head}
  at = np.array([0, 1, 2, 5])
  texts = [OPTIONS['template'].replace('{class}', NAMES[k]) for k in label_B[at]]
  t_BL = np.pad(image_reward.encode_letters(texts, C.vocab), ((0, 0), (0, 4)), constant_values=-1)
  x_Byxc = preprocess.clip_input(images(8)[at], C.image_size, how='pil')
  raw_B = jax.jit(blip.Model(C).apply)({'params': params}, x_Byxc, t_BL, t_BL >= 0)
  np.testing.assert_allclose(r_B[at], (raw_B - image_reward.MEAN) / image_reward.STD, atol=1e-5)


def test_shapes_are_those_of_the_weights(judged):
  _, seen, own, mesh = judged
  judge = image_reward.judge(**OPTIONS | dict(file=None, vocab=None))
  [tower] = judge.towers.values()
  about = lambda x: (x.shape, x.dtype, x.sharding)
  assert jax.tree.map(about, (tower.shapes(mesh), judge.shapes(mesh))) == jax.tree.map(
    about, (seen, own)
  )


def test_word_pieces_are_berts(tmp_path):
  words = '[PAD] [UNK] [CLS] [SEP] a photo of great shark ##s cafe'.split()
  (tmp_path / 'vocab.txt').write_text('\n'.join(words))
  t_VL = image_reward.encode_texts(tmp_path, ['A photo of great SHARKS', 'Café!', 'a ' * 60], 96)
  assert t_VL.shape == (3, 35)
  assert t_VL[0, :8].tolist() == [2, 4, 5, 6, 7, 8, 9, 3] and (t_VL[0, 8:] == -1).all()
  assert t_VL[1, :4].tolist() == [2, 10, 1, 3]
  assert t_VL[2].tolist() == [2] + [4] * 33 + [3]  # cut, with its end


def test_vocabularies_are_text_in_any_form(tmp_path):
  words = '[PAD] [UNK] [CLS] [SEP] a cat'.split()
  for end, mark in (('\n', ''), ('\r\n', '\ufeff')):
    (tmp_path / 'vocab.txt').write_text(mark + end.join([*words, '']), newline='')
    assert image_reward.encode_texts(tmp_path, ['a CAT'], 96).tolist() == [[2, 4, 5, 3]]


@pytest.mark.parametrize(
  'text, words',
  [
    ('{"model": {"type": "WordPiece", "vocab": {"[CLS]": 2147483648}}}', 'has id 2147483648'),
    ('{"model": null}', 'no tokenizer in it'),
    ('[' * 100_000, 'JSON nested too deeply'),
    ('', 'no JSON'),
  ],
)
def test_a_vocabulary_that_is_none_is_one_sentence(text, words, tmp_path):
  (tmp_path / 'tokenizer.json').write_text(text)
  with pytest.raises(ValueError, match=f'^vocab: {tmp_path}/tokenizer.json: .*{words}'):
    image_reward.encode_texts(tmp_path, ['a'], 96)


def test_what_cannot_work_is_told_when_it_is_made(tmp_path):
  (tmp_path / 'vocab.txt').write_text('no\nends')
  wrong = [
    (
      dict(file='/nowhere/ImageReward.pt'),
      FileNotFoundError,
      'no /nowhere/ImageReward.pt; `hf',
    ),
    (dict(size='large'), ValueError, "file: '' found, the weights of size 'large'"),
    (dict(size='base'), ValueError, "size: 'base' found"),
    (dict(dtype='int8'), ValueError, "dtype: 'int8' found"),
    (
      dict(vocab=str(tmp_path / 'other')),
      FileNotFoundError,
      'no vocab.txt or tokenizer.json .*bert-base-uncased',
    ),
    (dict(vocab=str(tmp_path)), ValueError, 'vocab'),
    (dict(template='a {thing}'), ValueError, "template: 'a {thing}' found"),
    (dict(names='birds'), ValueError, "names: 'birds' found"),
  ]
  for changes, kind, message in wrong:
    with pytest.raises(kind, match=message):
      image_reward.judge(**OPTIONS | changes)
