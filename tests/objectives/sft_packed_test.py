"""The loss of packed dialogues: means over all that counts in a batch, however it is cut; what is
drawn at random is data.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from toys import fake_run

from vargrl.objectives import sft
from vargrl.training import update
from vargrl.types import Experience, Scores, Tokenizer

SCALES, L, BITS = (1, 2), 5, 2
FEATURES = ('tokens', 'image_start')  # of those of packed rows, what this policy looks at
COLLECT = dict(prompt_drop=0.0, condition_drop=0.0, drop_path=0.0, flip=0.3, flip_scales=1)


def spans(S, I):
  """Of rows of S tokens and I pictures."""
  text, image = toys.spans(('text', S), ('image', SCALES), choices=BITS)
  if not I:
    return (text,)
  part_A = np.tile(image.part_A, I)
  return text, image._replace(stop=S + len(part_A), part_A=part_A)


def policy(S, I=1):
  """A policy whose log-probabilities are its data."""
  at = spans(S, I)

  def score(policy, frozen, prompt_P, data_PR):
    logp = policy * jnp.concatenate([data_PR[span.name]['tokens'] for span in at], -1)
    return Scores(logp, jnp.full_like(logp, 0.5), jnp.ones_like(logp))

  return fake_run.policy(
    dict(depth=3, scales=SCALES, bits=BITS),
    spans=at,
    texts=('text',),
    features=dict.fromkeys(FEATURES),
    prompt=lambda batch: {name: batch[name] for name in FEATURES},
    score=score,
  )


def encode_with_flips(frozen, image_Byxc, flips_BLe):
  """The bits are the signs of pixels."""
  t_BLe = (image_Byxc.reshape(len(image_Byxc), L, BITS) > 0).astype(jnp.int32)
  return t_BLe, t_BLe ^ flips_BLe


BSQ = fake_run.record(Tokenizer, encode_with_flips=encode_with_flips)


def rows(text, loss_mask, image, drawn):
  """An Experience of rows: logp of tokens [B, S] and of pictures' tokens [B, I, L], with the masks
  that collect makes of those that count."""
  B, share = len(text), lambda x: np.asarray(x, np.float32) * len(x) / max(np.sum(x), 1)
  image = np.asarray(image, np.float32).reshape(B, 1, -1)
  data = {'text': {'tokens': np.asarray(text, np.float32)[:, None]}, 'image': {'tokens': image}}
  mask = np.concatenate([share(loss_mask), np.repeat(share(drawn), L, 1)], 1)[:, None]
  return jax.tree.map(jnp.asarray, Experience(data=data, loss_mask=mask))


def loss(batch, S, I=1, power=0.5, image=3.0):
  segments = (('text', {}), ('image', dict(weight=image)))[: len(batch.data)]
  options = dict(scale_weight_power=power, segments=segments)
  return sft.loss(policy(S, I), {'policy': 1.0}, {}, batch, **options)


def test_the_loss_by_hand_and_in_parts():
  # Tokens that count: -1 and -2 in one row, -6 in the other, mean 3. Pictures: one of -0.4 a token,
  # 0.2 a bit.
  text, mask = [[-9.0, -1, -2], [-6, -9, -9]], [[0, 1, 1], [1, 0, 0]]
  image, drawn = np.full((2, 1, L), -0.4), [[1], [0]]
  image[1] = -100
  batch = rows(text, mask, image, drawn)
  value, metrics = loss(batch, 3)
  assert toys.mean(value) == pytest.approx(3 + 3 * 0.2, abs=1e-6)
  expected = {'loss/text': 3.0, 'loss/image': 0.2, 'nll/scale_0': 0.2, 'nll/scale_1': 0.2}
  expected |= {'accuracy/text': 1.0, 'entropy/text': 0.5, 'entropy/image': 0.25}
  assert {k: toys.mean(metrics[k]) for k in expected} == pytest.approx(expected, abs=1e-6)
  cut = update.split(batch, 2)
  parts = [loss(jax.tree.map(lambda x, i=i: x[i], cut), 3)[0] for i in range(2)]
  together = sum(p.total for p in parts) / sum(p.count for p in parts)
  assert together == pytest.approx(toys.mean(value), abs=1e-6)


def test_each_picture_that_is_drawn_weighs_the_same_and_its_scales_as_they_should():
  # Two of three pictures: 1 and 2 of the first scale and 3 and 5 of the second, in nats a bit.
  image = np.repeat([[[1, 3], [2, 5], [9, 9]]], [1, 4], -1) * -BITS
  batch = rows([[0.0]], [[1]], image, [[1, 1, 0]])
  first, second = 1.5, 4.0
  for power, share in ((1, 1 / 2), (0, 1 / 5), (0.5, 1 / 3)):
    value, metrics = loss(batch, 1, I=3, power=power, image=1.0)
    assert toys.mean(value) == pytest.approx(share * first + (1 - share) * second, rel=1e-5)
  assert toys.mean(metrics['nll/scale_0']) == pytest.approx(first)
  assert toys.mean(metrics['nll/scale_1']) == pytest.approx(second)


def test_without_a_picture_in_the_batch_its_loss_is_nothing():
  batch = rows([[-1.0, -1]], [[1, 1]], np.full((1, 1, L), -7.0), [[0]])
  value, _ = loss(batch, 2, power=0.0)
  assert float(value.total) == pytest.approx(1)


def collected(image, S=4, **changes):
  """Two rows: of one token and a picture; of three tokens and none."""
  I = 0 if image is None else image.shape[1]
  batch = {
    'tokens': jnp.arange(2 * S).reshape(2, S),
    'loss_mask': jnp.array([[1.0, 0, 0, 0], [1, 1, 1, 0]]),
    'image_start': jnp.array([[0], [-1]])[:, :I],
  }
  if I:
    batch['image'] = jnp.asarray(image)
  run = sft.collect(policy(S, I), BSQ if I else None, **COLLECT | changes)
  return toys.run(run, batch).experience


IMAGE = np.ones((2, 1, L, 1, BITS), np.float32)


def test_what_is_drawn_at_random_is_data_and_weights_are_means():
  out = collected(IMAGE)
  image = out.data['image']
  assert image['tokens'].shape == image['input_tokens'].shape == (2, 1, L, BITS)
  assert (image['tokens'] == 1).all()
  flipped = np.asarray(image['tokens'] != image['input_tokens'])
  assert not flipped[..., 1:, :].any()  # flip_scales=1: the first scale alone
  text = np.array([[1, 0, 0, 0], [1, 1, 1, 0]]) / 2
  drawn = np.repeat([[2.0], [0]], L, 1)
  np.testing.assert_allclose(out.loss_mask, np.concatenate([text, drawn], 1)[:, None])
  assert 'drop_path' not in image and not image['drop_condition'].any()
  np.testing.assert_array_equal(out.data['text']['tokens'], np.arange(8).reshape(2, 1, 4))
  assert set(out.prompt) == set(FEATURES)
  more = collected(IMAGE, drop_path=0.5, condition_drop=1.0, flip=0.0).data['image']
  assert more['drop_path'].shape == (2, 1, 1, 3, 2) and more['drop_condition'].all()
  np.testing.assert_array_equal(more['input_tokens'], more['tokens'])


def test_rows_of_text_alone_need_no_tokenizer_of_pictures():
  out = collected(None, flip=0.0, flip_scales=0)
  assert out.data.keys() == {'text'} and out.loss_mask.shape == (2, 1, 4)
  assert float(out.loss_mask.sum()) == 2  # the number of rows
  batch = Experience(data={'text': {'tokens': -jnp.ones((2, 1, 4))}}, loss_mask=out.loss_mask)
  value, metrics = loss(batch, 4, I=0)
  assert toys.mean(value) == 1 and toys.mean(metrics['accuracy']) == 1
  assert float(metrics['accuracy'].count) == 4


def test_a_data_set_must_have_packed_rows():
  assert sft.features(policy(3)) == ('loss_mask', 'image')
  assert sft.features(policy(3, 0)) == ('loss_mask',)


def test_settings_that_mean_nothing_are_refused():
  def check(I=1, **changes):
    options = COLLECT | dict(updates=1, reference=False) | changes
    sft.check(policy(3, I), BSQ if I else None, **options)

  check(condition_drop=0.1)
  check(I=0, flip=0.0)
  for changes, words in (
    (dict(flip=1.5), 'flip: 1.5'),
    (dict(condition_drop=-1), 'condition_drop: -1 found, a number at least 0 and at most 1'),
    (dict(drop_path=1.0), 'drop_path: 1.0'),
    (dict(prompt_drop=0.1), 'prompt_drop: 0.1, expected 0.0: prompts of dialogues are dropped by'),
    (dict(I=0), 'flip: 0.3 with a tokenizer that is not of bits'),
    (dict(I=0, flip=0.0, condition_drop=0.1), 'condition_drop: 0.1, expected 0.0'),
  ):
    with pytest.raises(ValueError, match=words):
      check(**changes)
