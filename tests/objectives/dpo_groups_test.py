"""Preferences of groups: the best against the worst row of each prompt, and of pictures in
dialogues.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.objectives import dpo, dpo_groups, dpo_unified, reduce
from vargrl.types import Experience, Models, Rollout, Scores

nan = float('nan')


def models(r_PR):
  """A policy whose row r of prompt p has the one token 10 p + r; rewards r_PR."""
  P, R = np.shape(r_PR)
  tokens = jnp.asarray([[[10 * p + r] for r in range(R)] for p in range(P)])

  def generate(policy, frozen, prompt_P, keys_PR):
    zero = jnp.zeros(tokens.shape)
    return Rollout(tokens, zero, zero, jnp.ones_like(zero))

  return Models(
    init=None,
    config=None,
    scales=(1,),
    generate=generate,
    keys=lambda rng, P, R: jnp.zeros((P, R)),
    decode=lambda frozen, t_BL: jnp.zeros((len(t_BL), 1, 1, 3)),
    score=lambda frozen, image, label: (np.asarray(r_PR, np.float32).reshape(-1), {}, {}),
    logprobs=lambda policy, frozen, batch, reference=None: Scores(
      policy['x'] * batch.tokens.astype(jnp.float32), None, None
    ),
  )


def test_the_best_row_is_chosen_and_equals_have_no_weight():
  r_PR = [[0.1, 0.9, 0.5], [0.2, 0.2, 0.2], [nan, 0.3, 0.1], [nan, nan, nan]]
  m = models(r_PR)
  collect = dpo_groups.collect(m, rollouts=3, rewards={}, pool={})
  out = collect(
    {'policy': {'x': 1.0}}, {'reference': {'x': 1.0}}, {'label': np.arange(4)}, jax.random.key(0), 0
  )
  np.testing.assert_array_equal(np.asarray(out.batch.tokens)[[0, 2], :, 0], [[1, 0], [21, 22]])
  np.testing.assert_array_equal(out.batch.weight, [[1, 1], [0, 0], [1, 1], [0, 0]])
  np.testing.assert_array_equal(out.batch.reference, out.batch.tokens)
  mean = lambda x: float(x.total / x.count)
  assert mean(out.metrics['pairs']) == 0.5 and mean(out.metrics['pairs/gap']) == pytest.approx(0.5)
  # Of the two pairs that count, at the reference: log 2, whatever the others say.
  value, metrics = dpo.loss(
    m, {'policy': {'x': 1.0}}, {}, out.batch, kind='sigmoid', beta=1.0, smoothing=0.0, alpha=0.0
  )
  assert value.count == 2 and mean(value) == pytest.approx(np.log(2))


def test_a_group_of_one_is_refused():
  with pytest.raises(ValueError, match='rollouts: 1 per prompt'):
    dpo_groups.check(models([[1.0]]), rollouts=1, rewards={}, pool={}, updates=1, reference=True)


class Config:
  bits = 2


def pictures(words):
  """A policy of `words` words and a picture of two scales."""
  logprobs = lambda policy, frozen, batch: Scores(
    jnp.concatenate([batch.tokens['words'], batch.shown.sum(-1)], -1).astype(jnp.float32),
    None,
    None,
  )

  def correct(frozen, image, flips):
    t = (image.reshape(len(image), 5, 2) > 0).astype(jnp.int32)
    return t, t ^ flips

  return Models(
    init=None,
    config=Config,
    scales=(1, 2),
    plan=(('words', words), ('bits', 5))[not words :],
    correct=correct,
    prompt=lambda batch: batch['label'],
    logprobs=logprobs,
    reference=lambda params, frozen: {},
  )


def test_a_pair_of_pictures_has_the_same_flips_and_its_words_do_not_count():
  P, m = 6, pictures(3)
  batch = {
    'label': jnp.arange(P),
    'chosen': jnp.ones((P, 5, 1, 2)),
    'rejected': -jnp.ones((P, 5, 1, 2)),
    'chosen_text': jnp.full((P, 2), 7),
    'rejected_text': jnp.full((P, 2), 8),
  }
  out = dpo_unified.collect(m, flip=0.3, flip_scales=2, shared=True)(
    {}, {}, batch, jax.random.key(1), 0
  ).batch
  assert (out.tokens['bits'][:, 0] == 1).all() and (out.tokens['bits'][:, 1] == 0).all()
  flips = np.asarray(out.tokens['bits'] != out.shown)
  assert flips.any() and (flips[:, 0] == flips[:, 1]).all()
  np.testing.assert_array_equal(out.tokens['words'][0], [[7, 7, 0], [8, 8, 0]])
  np.testing.assert_array_equal(out.mask[0], np.tile([0, 0, 0, 1, 1, 1, 1, 1], (2, 1)))
  own = dpo_unified.collect(m, flip=0.3, flip_scales=2, shared=False)(
    {}, {}, batch, jax.random.key(1), 0
  ).batch
  flips = np.asarray(own.tokens['bits'] != own.shown)
  assert (flips[:, 0] != flips[:, 1]).any() and (own.reference != out.reference).any()
  # 'sigmoid' sums over the picture's places alone: 5 of them, each better by 0.1.
  better = out.replace(reference=out.reference - jnp.array([0.1, 0])[None, :, None])
  _, metrics = dpo.loss(
    m, {'policy': {}}, {}, better, kind='sigmoid', beta=1.0, smoothing=0.0, alpha=0.5
  )
  assert float(metrics['rewards/margins'].total) / P == pytest.approx(0.5, abs=1e-5)
  with pytest.raises(ValueError, match='2 words found, at most 0 expected'):
    dpo_unified.collect(pictures(0), flip=0.3, flip_scales=2, shared=True)(
      {}, {}, batch, jax.random.key(1), 0
    )


def test_words_weigh_as_the_only_token_of_a_scale():
  m = pictures(3)
  weight_L = reduce.weights(m, 8, alpha=0.5, first=0, last=1)
  np.testing.assert_allclose(weight_L, np.array([1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]) / 6, rtol=1e-6)
  assert reduce.spans(m, 8) == [('words', 0, 3), ('scale_0', 3, 4), ('scale_1', 4, 8)]
  several = Models(
    init=None,
    config=None,
    scales=(1, 2),
    plan=(('words', 2), ('bits', 5), ('words', 1), ('bits', 5)),
  )
  assert [name for name, *_ in reduce.spans(several, 13)] == [
    'words',
    'scale_0',
    'scale_1',
    'words_1',
    'picture_1/scale_0',
    'picture_1/scale_1',
  ]
  assert reduce.spans(Models(init=None, config=None, scales=(1, 2)), 1) == [('scale_0', 0, 1)]


def test_a_plan_without_a_picture_at_its_end_is_refused():
  m = Models(init=None, config=Config, scales=(1, 2), plan=(('words', 3),), correct=lambda *_: None)
  with pytest.raises(ValueError, match='words .data.max_answer. and one picture expected'):
    dpo_unified.check(m, flip=0.0, flip_scales=0, shared=True, updates=1, reference=True)


def test_the_loss_of_a_masked_experience_is_that_of_what_is_left():
  logp = jnp.array([[[-1.0, -2, -5], [-2, -3, -7]]])
  scored = Models(
    init=None,
    config=None,
    scales=(1,),
    plan=(('words', 2), ('bits', 1)),
    logprobs=lambda *_: Scores(logp, None, None),
  )
  masked = Experience(
    reference=jnp.full((1, 2, 3), -4.0), mask=jnp.array([[[0.0, 0, 1], [0, 0, 1]]])
  )
  value, _ = dpo.loss(
    scored, {'policy': {}}, {}, masked, kind='hinge', beta=1.0, smoothing=0.0, alpha=0.0
  )
  assert float(value.total) == pytest.approx(0.0)  # relu(1 - ((-5 + 4) - (-7 + 4)))
