"""Beyond one row: a second turn whose prompts are what the first one drew, the gradient that
reaches a picture through an answer about it, and decoders that need the prompt and noise.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import plan_cases
from plan_cases import PARAMS, make_policy, picture, toy, toy_prompts, word_segment
import pytest

from vargrl.objectives import grpo
from vargrl.rollout import plan as plans
from vargrl.rollout import vmaps
from vargrl.training import policy as policies
from vargrl.training.stage import Stage
from vargrl.types import Rewards

P, R = plan_cases.P, plan_cases.R
RNG = jax.random.key(3)


def slow(*names):
  return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def play(policies, next_prompt, prompt_P, rng, R):
  """[(prompts, Rollout)] of turns, one for each of `policies`, functions like Policy.generate
  without weights: the first has P x R rows, the others P R x 1 in the same order, whose prompts
  are next_prompt(prompts, data), all leading with P R. What a group shares at random it shares in
  all turns."""
  key_P, keys_PR = vmaps.group_keys(rng, P), vmaps.row_keys(rng, P, R)
  out = [(prompt_P, policies[0](prompt_P, key_P, keys_PR))]
  prompt_B, key_B = jax.tree.map(lambda x: jnp.repeat(x, R, 0), (prompt_P, key_P))
  for i, generate in enumerate(policies[1:], 1):
    data_B = jax.tree.map(lambda x: x.reshape(P * R, *x.shape[2:]), out[-1][1].data)
    prompt_B = next_prompt(prompt_B, data_B)
    keys_B = jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys_PR.reshape(-1))
    out.append((prompt_B, generate(prompt_B, key_B, keys_B[:, None])))
  return out


def question(prompt_B, codes):
  """A prompt of a picture and a word that asks about it."""
  B = len(codes)
  return {'codes': codes, 'tokens': jnp.full((B, 1), 3), 'length': jnp.ones(B, jnp.int32)}


def test_a_second_turn_sees_what_the_first_one_drew():
  turns = [toy(picture('codes')), toy(word_segment('answer'), picture('flow'))]
  functions = [lambda *args, case=case: case.sample(PARAMS, *args) for case in turns]
  ask = lambda prompt_B, data_B: question(prompt_B, data_B['image']['tokens'])
  run = jax.jit(lambda rng: play(functions, ask, toy_prompts(), rng, R))
  (_, first), (prompt_B, second) = run(RNG)
  assert first.logp.shape == (P, R, 10) and second.logp.shape == (P * R, 1, 14)
  forced = jax.jit(turns[1].scores)(PARAMS, prompt_B, second.data)[0]
  np.testing.assert_allclose(second.logp, forced.logp * second.mask, atol=1e-5)
  times_PRA = np.asarray(second.data['image']['t']).reshape(P, R, -1)
  np.testing.assert_array_equal(times_PRA, times_PRA[:, :1].repeat(R, 1))  # the group's window
  other = prompt_B | {'codes': jnp.roll(prompt_B['codes'], 1, 0)}
  changed = jax.jit(turns[1].scores)(PARAMS, other, second.data)[0]
  assert np.abs(changed.logp - forced.logp).max() > 1e-3  # it is about the picture


@pytest.mark.parametrize('name', ['codes', *slow('masked', 'remask')])
def test_an_answer_has_a_gradient_in_the_picture_that_it_is_about(name):
  drawn, answer = toy(picture(name)), toy(word_segment('answer'))
  keys = vmaps.group_keys(RNG, P), vmaps.row_keys(RNG, P, R)
  data = jax.jit(drawn.sample)(PARAMS, toy_prompts(), *keys).data
  said = {'answer': {'tokens': jnp.tile(jnp.arange(3, 8), (P * R, 1, 1))}}

  def loss(params, soft):
    shown = drawn.scores(params, toy_prompts(), data, soft=('image',))[1]['image']
    shown = shown if soft else data['image']['tokens']
    prompt_B = question(None, shown.reshape(P * R, *shown.shape[2:]))
    return answer.scores(params, prompt_B, said)[0].logp.mean()

  both = jax.jit(lambda params: [jax.value_and_grad(loss)(params, soft) for soft in (True, False)])
  (soft, gradient), (hard, none) = both(PARAMS)
  np.testing.assert_allclose(soft, hard, atol=1e-6)
  assert not none['code_head_DV'].any() and np.abs(gradient['code_head_DV']).max() > 1e-4


class Decoder:
  """Red of tokens, green of the prompt's first word, blue of noise."""

  def apply(self, variables, tokens_BL, prompts, keys_B, method):
    assert method == 'decode'
    noise_BL = jax.vmap(lambda key: jax.random.uniform(key, tokens_BL.shape[1:]))(keys_B)
    word_BL = jnp.broadcast_to(prompts['tokens'][:, :1], tokens_BL.shape)
    return jnp.stack([tokens_BL / 100, word_BL / 100, noise_BL], -1)[:, None]


OPTIONS = dict(rollouts=R, old_logp='sampler', std='group', eps=1e-4, kl_reward=0.0, resample=0)
OPTIONS |= dict(reward_mix='sum', mask={}, pool={}, rewards={'mean': {'weight': 1.0}})


@pytest.mark.parametrize('plan', ['text-codes-text', *slow('codes', 'codes-given-text')])
def test_a_decoder_may_need_the_prompt_and_noise(plan):
  case, seen = plan_cases.CASES[plan](), []
  tokenizer = policies.tokenizer_functions(types.SimpleNamespace(CONDITIONAL=True), Decoder())

  def score(frozen, samples, group_size):
    seen.append(samples)
    r_B = np.asarray(samples.image_Byxc).mean((1, 2, 3))
    return r_B, {'mean': r_B}, {}

  scorer = Rewards(score, None, None, None, lambda label_B: label_B, None)
  collect = grpo.collect(make_policy(*case.plan), tokenizer, scorer, **OPTIONS)
  batch = toy_prompts() | {'label': jnp.arange(P)}
  out = collect.run(Stage(0), {'policy': PARAMS}, {'tokenizer': None}, batch, RNG).experience
  red, green, blue = np.moveaxis(np.asarray(seen[0].image_Byxc).reshape(P, R, -1, 3), -1, 0)
  np.testing.assert_allclose(red * 100, out.data['image']['tokens'], atol=1e-4)
  word_P11 = np.asarray(batch['tokens'])[:, :1, None]
  np.testing.assert_allclose(green * 100, word_P11.repeat(R, 1).repeat(10, 2), atol=1e-4)
  assert len(np.unique(blue)) == blue.size  # every row has noise of its own
  start = next(span.start for span in plans.spans(case.plan) if span.picture)
  drawn_PR = np.ones((P, R)) if out.loss_mask is None else out.loss_mask[..., start]
  np.testing.assert_array_equal(out.row_mask, drawn_PR)  # no verdict where nothing was drawn
  assert 0 < drawn_PR.mean() < 1 or not case.plan[0].kind.TEXT
  assert set(seen[0].texts) == {s.name for s in case.plan if s.kind.TEXT}
