"""How GRPO makes a batch: rows, rewards, advantages, and what of the rows is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from toys import fake_run

from vargrl.objectives import collect, grpo, reduce
from vargrl.types import Rollout

COLLECT = dict(rollouts=4, old_logp='sampler', std='none', eps=0.0, kl_reward=0.0)
COLLECT |= dict(reward_mix='sum', resample=0, mask={}, rewards=None, pool=None)
FROZEN = {'reference': toys.params(1)['policy']}


def collected(policy, scorer, P, tokenizer=toys.TOKENIZER, rng=0, **changes):
  """The Collection of prompts 0, 1, 2, 0, .."""
  run = grpo.collect(policy, tokenizer, scorer, **COLLECT | changes)
  label = np.arange(P) % toys.CLASSES
  return toys.run(run, {'label': label}, toys.params(), FROZEN, rng=rng)


def tokens(P, R, seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, toys.VOCAB, (P, R, toys.L)))


@pytest.mark.parametrize('old_logp', collect.OLD_LOGP)
def test_rows_are_decoded_and_judged_and_old_probabilities_are_whose_is_said(old_logp):
  """Rewards: the sum of the tokens, and no verdict on the first row."""
  t_PRL = tokens(2, 4)
  policy = toys.draws(t_PRL, off=0.5, gap=0.25)
  total = lambda t_BL: np.where(np.arange(8) > 0, t_BL.sum(-1), np.nan)
  out = collected(policy, toys.scorer(total), 2, old_logp=old_logp, std='group', eps=1e-4)
  batch, metrics = out.experience, out.metrics
  logp = toys.logp(toys.params()['policy'], batch)
  if old_logp == 'current':
    assert batch.old_logp is None
  else:
    expected = logp - (0.5 if old_logp == 'sampler' else 0)
    np.testing.assert_allclose(batch.old_logp, expected, rtol=1e-6)
  np.testing.assert_array_equal(batch.data['image']['tokens'], t_PRL)
  assert batch.loss_mask is None and batch.kl_mask is None
  r_PR = t_PRL.sum(-1).astype(jnp.float32).at[0, 0].set(np.nan)
  advantage_PR, row_mask, _ = reduce.advantages(r_PR, std='group', eps=1e-4)
  np.testing.assert_allclose(batch.advantage, advantage_PR, atol=1e-5)
  np.testing.assert_array_equal(batch.row_mask, row_mask)
  assert toys.mean(metrics['reward']) == pytest.approx(float(jnp.nanmean(r_PR)), rel=1e-5)
  assert toys.mean(metrics['rewards/sum']) == toys.mean(metrics['reward'])
  assert metrics['reward/masked'] == 1 and 'resampled' not in metrics and 'value' not in metrics
  assert toys.mean(metrics['sampler/logp_gap']) == pytest.approx(0.25, rel=1e-5)
  if old_logp == 'trainer':
    assert toys.mean(metrics['sampler/trainer_gap']) == pytest.approx(0.5, rel=1e-5)
  best, worst = (out.images()[name] for name in ('best', 'worst'))
  assert len(best[0]) == len(worst[0]) == 7  # a row without a verdict is neither
  assert best[1][0] == f'class {int(np.nanargmax(r_PR)) // 4}\n{np.nanmax(r_PR):.3g}'


def test_the_kl_is_taken_from_the_reward_on_request():
  t_PRL, nothing = tokens(1, 4), toys.scorer(lambda t_BL: np.zeros(4))
  batch = collected(toys.draws(t_PRL), nothing, 1, kl_reward=0.5).experience
  scores = toys.score(toys.params()['policy'], {}, batch.prompt, batch.data, FROZEN['reference'])
  nats = np.asarray((scores.logp - scores.ref_logp).sum(-1))
  np.testing.assert_allclose(batch.advantage, -0.5 * (nats - nats.mean()), atol=1e-5)


def test_rewards_are_normalised_and_tokens_masked_on_request():
  """Rewards 1 2 3 4 and 0 0 0 100, weights 1 and 0.5; the mask is the left half of the image."""
  each = {'a': np.array([1.0, 2, 3, 4]), 'b': np.array([0.0, 0, 0, 100])}
  left = lambda image_Byxc, label_B: jnp.zeros((4, 4, 4), bool).at[:, 1, :2].set(True)
  scorer = toys.scorer(lambda t_BL: each, mask=left)
  weights = {'a': dict(weight=1.0), 'b': dict(weight=0.5)}
  options = dict(rewards=weights, reward_mix='normalize', mask=dict(name='left'))
  out = collected(toys.draws(tokens(1, 4)), scorer, 1, **options)
  # Centred [-1.5 -0.5 0.5 1.5] / sqrt(5/3), and [-25 -25 -25 75] / 50.
  a, b = np.array([-1.5, -0.5, 0.5, 1.5]) / (5 / 3) ** 0.5, np.array([-0.5, -0.5, -0.5, 1.5])
  np.testing.assert_allclose(out.experience.advantage, [a + 0.5 * b], atol=1e-5)
  assert toys.mean(out.metrics['rewards/b']) == 25  # as it is
  # The token of the first scale, and of the second the upper left one.
  mask = np.broadcast_to([1.0, 1, 0, 0, 0], (1, 4, 5))
  np.testing.assert_array_equal(out.experience.loss_mask, mask)
  assert out.experience.kl_mask is None
  assert toys.mean(out.metrics['mask_share']) == pytest.approx(2 / 5)


def first_token(t_BL):
  """Of a group of two, about every third has a first token alone."""
  return t_BL[:, 0].astype(np.float32)


@pytest.mark.parametrize('resample', [0, 1, 2, 20])
def test_groups_without_a_difference_are_drawn_again_up_to_n_times(resample):
  P, R, rng = 24, 2, jax.random.key(3)
  options = dict(rollouts=R, resample=resample, rng=rng)
  out = collected(toys.POLICY, toys.scorer(first_token), P, **options)
  rngs = [rng, *(jax.random.fold_in(rng, 2**30 + i) for i in range(resample))]
  label_P = jnp.arange(P) % toys.CLASSES
  draw = lambda rng: toys.generate(
    toys.params()['policy'], {}, label_P, *toys.POLICY.keys(rng, P, R)
  )
  found, again = np.array(draw(rngs[0]).data['image']['tokens']), 0
  for rng in rngs[1:]:
    flat_P = found[:, 0, 0] == found[:, 1, 0]
    again += flat_P.sum()
    found[flat_P] = draw(rng).data['image']['tokens'][flat_P]
  np.testing.assert_array_equal(out.experience.data['image']['tokens'], found)
  logp = toys.logp(toys.params()['policy'], out.experience)
  np.testing.assert_allclose(out.experience.old_logp, logp, rtol=1e-6)
  r_PR = found[..., 0].astype(np.float32)
  expected = r_PR - r_PR.mean(1, keepdims=True)
  np.testing.assert_allclose(out.experience.advantage, expected, atol=1e-6)
  assert toys.mean(out.metrics['reward']) == pytest.approx(r_PR.mean())
  flat = (found[:, 0, 0] == found[:, 1, 0]).mean()
  assert toys.mean(out.metrics['frac_reward_zero_std']) == pytest.approx(flat)
  if not resample:
    assert 'resampled' not in out.metrics and flat > 0.1
    return
  assert out.metrics['resampled'] == pytest.approx(again / P) and again > 1
  assert (flat == 0) == (resample == 20)
  best, captions = out.images()['best']
  assert [int(x) for x in best[:, 0, 0, 0]] == [int(c.split('\n')[1]) for c in captions]
  same = collected(toys.POLICY, toys.scorer(first_token), P, **options).experience
  jax.tree.map(np.testing.assert_array_equal, out.experience, same)


# Rows that say up to two tokens, 3 of which is the last, and then draw a picture unless they ended.
SAID = jnp.array([[[1, 2], [1, 3], [3, 0], [2, 1]]])
TEXT_MASK = np.array([[1, 1], [1, 1], [1, 0], [1, 1]], np.float32)
IMAGE_MASK = np.array([1, 0, 0, 1], np.float32)
SPANS = toys.spans(('text', 2), ('image', toys.SCALES))


def text_and_picture():
  mask = jnp.asarray(np.concatenate([TEXT_MASK, np.repeat(IMAGE_MASK[:, None], 5, 1)], 1))[None]

  def generate(policy, frozen, prompt_P, key_P, keys_PR):
    data = {'text': {'tokens': SAID}, 'image': {'tokens': tokens(1, 4)}}
    logp = -jnp.ones((1, 4, 7)) * mask
    return Rollout(data, logp, logp * 1.5, mask)

  return fake_run.policy(
    spans=SPANS,
    texts=('text',),
    prompt=lambda batch: jnp.asarray(batch['label']),
    generate=generate,
    latents=toys.latents,
    score=never,
    reference=toys.reference,
  ), mask


def never(*args):
  raise AssertionError('nobody asked for scores')


def seen_by(rewards):
  """A scorer that gives these rewards, and the list of the Samples that it has seen."""
  seen = []

  def score(frozen, samples, group_size):
    seen.append((samples, group_size))
    return np.asarray(rewards, np.float32), {'only': np.asarray(rewards, np.float32)}, {}

  captions = lambda labels: ['prompt'] * len(labels)
  return fake_run.record(type(toys.scorer(None)), score=score, captions=captions), seen


def test_a_row_that_ended_before_its_picture_has_no_verdict_and_its_end_is_masked():
  policy, mask = text_and_picture()
  scorer, seen = seen_by([1, 10, 20, 3])
  out = collected(policy, scorer, 1)
  batch = out.experience
  np.testing.assert_array_equal(batch.loss_mask, mask)
  np.testing.assert_array_equal(batch.kl_mask, mask)
  np.testing.assert_array_equal(batch.row_mask, [[1, 0, 0, 1]])
  np.testing.assert_allclose(batch.advantage, [[-1, 0, 0, 1]])
  ((samples, group_size),) = seen
  assert group_size == 4
  np.testing.assert_array_equal(samples.texts['text'], [[1, 2], [1, 3], [3, -1], [2, 1]])
  assert toys.mean(out.metrics['images']) == 0.5 and toys.mean(out.metrics['reward']) == 2
  assert toys.mean(out.metrics['rewards/only']) == 2
  # Of 17 actions that were taken, 0.5 nats each.
  assert toys.mean(out.metrics['sampler/logp_gap']) == 0.5
  assert float(out.metrics['sampler/logp_gap'].count) == 17
  assert len(out.images()['best'][0]) == 2


def test_rows_of_text_alone_are_judged_by_what_they_say():
  t_PRL, mask = SAID, jnp.asarray(TEXT_MASK)[None]

  def generate(policy, frozen, prompt_P, key_P, keys_PR):
    return Rollout({'text': {'tokens': t_PRL}}, -mask, -mask, mask)

  policy = fake_run.policy(
    spans=toys.spans(('text', 2)),
    texts=('text',),
    prompt=lambda batch: jnp.asarray(batch['label']),
    generate=generate,
    latents=lambda data, n_leading: None,
    score=never,
  )
  scorer, seen = seen_by([1, 2, 3, 6])
  out = collected(policy, scorer, 1, tokenizer=None)
  ((samples, _),) = seen
  assert samples.image_Byxc is None and samples.texts['text'].tolist()[2] == [3, -1]
  np.testing.assert_array_equal(out.experience.advantage, [[-2, -1, 0, 3]])
  np.testing.assert_array_equal(out.experience.loss_mask, mask)
  assert out.images is None and 'images' not in out.metrics


def check(policy=toys.POLICY, **changes):
  options = COLLECT | dict(updates=1, reference=True) | changes
  grpo.check(policy, **options)


def test_settings_that_cannot_learn_are_refused():
  check()
  check(old_logp='trainer', updates=4)
  for changes, words in (
    (dict(rollouts=1), 'objective.collect.rollouts: 1 per group, expected at least 2'),
    (dict(old_logp='later'), "objective.collect.old_logp: 'later', expected one of"),
    (dict(old_logp='current', updates=2), "old_logp: 'current' with 2 updates"),
    (dict(std='rank'), "objective.collect.std: 'rank', expected one of"),
    (dict(reward_mix='max'), "objective.collect.reward_mix: 'max', expected one of"),
    (dict(kl_reward=0.1, reference=False), 'objective.collect.kl_reward: there is no reference'),
    (dict(kl_reward=-0.1), 'kl_reward: -0.1 found, a number at least 0'),
    (dict(eps=-1.0), 'eps: -1.0 found, a number at least 0'),
    (dict(resample=-1), 'resample: -1 found, a number at least 0'),
    (dict(resample=1.5), 'resample: 1.5, expected a whole number'),
  ):
    with pytest.raises(ValueError, match=words) as e:
      check(**changes)
    assert '\n' not in str(e.value)


def test_a_mask_of_pixels_is_for_policies_of_one_picture():
  check(mask=dict(name='rewards.brightness'))
  for at in (SPANS, SPANS[:1]):
    with pytest.raises(ValueError, match=r'objective.collect.mask: .*expected \{\} for a policy'):
      check(fake_run.policy(spans=at), mask=dict(name='rewards.brightness'))
