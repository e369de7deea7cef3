"""Cached sampling of text is teacher forcing; a row ends by itself; what is given is as good as
part of the prompt.
"""

import dataclasses
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest
import qwen2_golden as rule
import random_models

from vargrl.checkpoint import torch_format
from vargrl.models import qwen2
from vargrl.models.nets import language
from vargrl.parallel import mesh, rules
from vargrl.rollout import generate, score, vmaps
from vargrl.rollout.kinds import text
from vargrl.rollout.plan import Segment

MODEL = qwen2.Model(dataclasses.replace(qwen2.SIZES['smoke'], vocab=72))
BOXED = jax.eval_shape(lambda key: qwen2.init(MODEL, key), jax.random.key(0))
PARAMS = random_models.random_weights(nn.unbox(BOXED), 0)
SAMPLER = text.Config(
  max_tokens=10, temperature=0.9, top_k=20, top_p=0.95, stop=(3, 17, 40, 41, 42)
)
KEYS_PR = vmaps.row_keys(jax.random.key(5), 2, 6)


def prompts(S=9, noise=0):
  """Two of 6 and 4 tokens, padded to S by `noise`; the first has a picture's positions."""
  t_PS = np.full((2, S), noise)
  t_PS[0, :6], t_PS[1, :4] = [5, 9, 9, 9, 8, 2], [1, 30, 31, 32]
  position_P3S = np.full((2, 3, S), noise)
  position_P3S[0, :, :6] = [[0, 1, 1, 3, 4, 5], [0, 1, 1, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
  position_P3S[1, :, :4] = np.arange(4)
  found = {'tokens': t_PS, 'length': [6, 4], 'position': position_P3S}
  return {name: jnp.asarray(x) for name, x in found.items()}


def net(params, model=MODEL):
  return language.Net(model, None, params, None)


def sample(c, prompt_P, keys_PR, params=PARAMS, model=MODEL):
  plan = (Segment('text', text, c),)
  run = lambda params, prompt_P, keys_PR: generate.generate(
    net(params, model), plan, prompt_P, keys_PR[:, 0], keys_PR
  )
  return jax.jit(run)(params, prompt_P, keys_PR)


def score_tokens(c, prompt_P, t_PRL, params=PARAMS, reference=None):
  plan, data = (Segment('text', text, c),), {'text': {'tokens': t_PRL}}

  def run(params, reference, prompt_P, data):
    nets = [net(p) for p in (params, reference) if p is not None]
    return score.score(nets, plan, prompt_P, data)[0]

  return jax.jit(run)(params, reference, prompt_P, data)


def tokens(rollout):
  return rollout.data['text']['tokens']


@pytest.fixture(scope='module')
def drawn():
  return sample(SAMPLER, prompts(), KEYS_PR)


@pytest.fixture(scope='module')
def scores(drawn):
  """Of what was drawn; the reference is the policy itself."""
  return score_tokens(SAMPLER, prompts(), tokens(drawn), reference=PARAMS)


def test_logp_of_cached_sampling_is_logp_of_teacher_forcing(drawn, scores):
  assert tokens(drawn).shape == scores.logp.shape == (2, 6, 10)
  assert tokens(drawn).dtype == jnp.int32
  np.testing.assert_allclose(drawn.logp, drawn.mask * scores.logp, atol=1e-5)
  np.testing.assert_allclose(scores.ref_logp, scores.logp, atol=1e-5)
  np.testing.assert_array_equal(scores.penalty, 0)
  assert (drawn.sampler_logp >= drawn.logp - 1e-5).all() and drawn.logp.min() < -2


def test_scores_are_those_of_the_model_on_the_whole_sequence(drawn, scores):
  """Without cache, padding or shared prompts."""
  prompt, c = prompts(), SAMPLER
  for p, n in enumerate((6, 4)):
    t_BL = jnp.concatenate(
      [jnp.broadcast_to(prompt['tokens'][p, None, :n], (6, n)), tokens(drawn)[p]], 1
    )
    position_3S = prompt['position'][p, :, :n]
    after_L = position_3S.max() + 1 + jnp.arange(c.max_tokens)
    position_3L = jnp.concatenate([position_3S, jnp.broadcast_to(after_L, (3, c.max_tokens))], 1)

    def run(params, t_BL):
      x_BLD = MODEL.apply({'params': params}, t_BL, method='embed')
      x_BLD = MODEL.apply({'params': params}, x_BLD, position_3L[:, None], method='forward')
      return MODEL.apply({'params': params}, x_BLD[:, n - 1 : -1], method='logits') / c.temperature

    logp_BLV = jax.nn.log_softmax(jax.jit(run)(PARAMS, t_BL))
    there = drawn.mask[p] > 0
    equal = lambda ours, theirs, atol: np.testing.assert_allclose(
      ours[there], theirs[there], atol=atol
    )
    ours = jnp.take_along_axis(logp_BLV, tokens(drawn)[p][..., None], -1)[..., 0]
    equal(scores.logp[p], ours, 1e-5)
    equal(scores.entropy[p], -(jnp.exp(logp_BLV) * logp_BLV).sum(-1), 1e-5)
    equal(scores.accuracy[p], logp_BLV.argmax(-1) == tokens(drawn)[p], 0)


def test_stop_tokens_end_a_row_and_belong_to_it(drawn):
  ends = 0
  arrays = tokens(drawn), drawn.mask, drawn.logp, drawn.sampler_logp
  for said, mask, *others in zip(*(np.asarray(x).reshape(12, 10) for x in arrays), strict=True):
    at = np.flatnonzero(np.isin(said, SAMPLER.stop) & (mask > 0))
    length = at[0] + 1 if len(at) else 10
    np.testing.assert_array_equal(mask, np.arange(10) < length)
    assert len(at) <= 1 and not any(x[length:].any() for x in (said, *others))
    assert all(x[:length].all() for x in others)
    ends += length < 10
  assert 2 < ends < 12  # some, not all


def test_a_row_depends_on_its_own_prompt_and_key_alone_and_not_on_its_padding(drawn):
  """One longer row makes the others of its batch wait."""
  one = sample(SAMPLER, jax.tree.map(lambda x: x[1:], prompts()), KEYS_PR[1:, 2:3])
  np.testing.assert_array_equal(tokens(one)[0, 0], tokens(drawn)[1, 2])
  wide = sample(SAMPLER, prompts(13, noise=50), KEYS_PR)
  np.testing.assert_array_equal(tokens(wide), tokens(drawn))
  np.testing.assert_allclose(wide.logp, drawn.logp, atol=1e-5)
  assert len(np.unique(np.asarray(tokens(drawn)).reshape(12, 10), axis=0)) == 12
  longer = sample(dataclasses.replace(SAMPLER, max_tokens=14), prompts(), KEYS_PR)
  np.testing.assert_array_equal(tokens(longer)[..., :10], tokens(drawn))


def test_what_follows_a_text_sees_it_and_not_its_room(drawn):
  """A second text on the same cache is teacher forcing of both in a row, however long the first."""
  c = dataclasses.replace(SAMPLER, max_tokens=4)

  def both(params, prompt_P):
    one = net(params)

    def row(context, _, key):
      keys = jax.random.fold_in(key, 0), jax.random.fold_in(key, 99)
      first, _, _, context = text.sample(one, SAMPLER, context, keys[0], True, True)
      return first, text.sample(one, c, context, keys[1], True, False)[:2]

    return vmaps.over_rows(row, one.prefill, prompt_P, KEYS_PR)

  first, (second, logp) = jax.jit(both)(PARAMS, prompts())
  np.testing.assert_array_equal(first['tokens'], tokens(drawn))
  lengths = np.asarray(drawn.mask.sum(-1)).astype(int)
  joined = np.zeros((2, 6, 14), int)
  for p, r in np.ndindex(2, 6):
    n = lengths[p, r]
    joined[p, r, :n] = first['tokens'][p, r, :n]
    joined[p, r, n : n + 4] = second['tokens'][p, r]
  # Where no token ends a row, all of it is one text.
  forced = score_tokens(
    dataclasses.replace(SAMPLER, max_tokens=14, stop=()), prompts(), jnp.asarray(joined)
  ).logp
  mask = jax.vmap(jax.vmap(lambda data: text.mask(c, data)[0]))(second)
  for p, r in np.ndindex(2, 6):
    n = lengths[p, r]
    expected = mask[p, r] * forced[p, r, n : n + 4]
    np.testing.assert_allclose(logp[p, r], expected, atol=1e-5)


def test_a_text_that_is_given_is_as_good_as_part_of_the_prompt():
  """Of another length in each row, sampled and scored; its own actions are masked."""
  given = dataclasses.replace(SAMPLER, max_tokens=6)
  plan = (Segment('question', text, given, given=True), Segment('text', text, SAMPLER))
  t_PL = jnp.array([[20, 21, 3, 0, 0, 0], [50, 51, 52, 53, 17, 0]])
  prompt_P = prompts() | {'question': {'tokens': t_PL}}

  def both(params, prompt_P, keys_PR):
    out = generate.generate(net(params), plan, prompt_P, keys_PR[:, 0], keys_PR)
    return out, score.score([net(params), net(params)], plan, prompt_P, out.data)[0]

  out, scores = jax.jit(both)(PARAMS, prompt_P, KEYS_PR[:, :3])
  np.testing.assert_array_equal(out.data['question']['tokens'], t_PL[:, None].repeat(3, 1))
  assert not out.mask[..., :6].any() and not out.logp[..., :6].any()
  assert out.mask[..., 6:].any((1, 2)).all()
  np.testing.assert_allclose(out.logp, out.mask * scores.logp, atol=1e-5)

  long = {'tokens': np.zeros((2, 12), int), 'position': np.zeros((2, 3, 12), int)}
  for p, (n, m) in enumerate(((6, 3), (4, 5))):
    long['tokens'][p, : n + m] = [*prompts()['tokens'][p, :n], *t_PL[p, :m]]
    before = prompts()['position'][p, :, :n]
    after = np.broadcast_to(before.max() + 1 + np.arange(m), (3, m))
    long['position'][p, :, : n + m] = np.concatenate([before, after], 1)
  long = jax.tree.map(jnp.asarray, long | {'length': np.array([9, 9])})
  alone = score_tokens(SAMPLER, long, tokens(out)).logp
  np.testing.assert_allclose(out.logp[..., 6:], out.mask[..., 6:] * alone, atol=1e-5)


def test_the_best_token_each_time_is_transformers_greedy_search():
  """Of prompts of two lengths in one batch; the first ends early."""
  stored = json.loads((pathlib.Path(rule.__file__).parent / 'qwen2.json').read_text())
  model = qwen2.Model(qwen2.Config(**rule.TEXT['untied']))
  state = {key: rule.weights(key, tuple(shape)) for key, shape in stored['untied'].items()}
  shapes = nn.unbox(jax.eval_shape(lambda key: qwen2.init(model, key), jax.random.key(0)))
  params = torch_format.from_state_dict(qwen2.torch_layouts(model.c)[0].table, state, shapes)
  c = text.Config(rule.NEW, 1.0, 1, 0.0, tuple(stored['greedy']['stop']))
  t_PS = jnp.array([[*prompt, *[0] * (9 - len(prompt))] for prompt in rule.PROMPTS])
  prompt_P = {'tokens': t_PS, 'length': jnp.array([*map(len, rule.PROMPTS)])}
  out = sample(c, prompt_P, vmaps.row_keys(jax.random.key(0), 2, 1), params, model)
  rows = stored['greedy']['rows']
  for said, mask, theirs in zip(tokens(out)[:, 0], out.mask[:, 0], rows, strict=True):
    assert said[: int(mask.sum())].tolist() == theirs
  assert len(rows[0]) < len(rows[1])
  np.testing.assert_allclose(out.sampler_logp, 0, atol=1e-6)


@pytest.mark.parametrize(
  'sizes, weights',
  [((2, 2, 2), 'gathered'), pytest.param((1, 8, 1), 'sharded', marks=pytest.mark.slow)],
  ids=str,
)
def test_rows_on_a_mesh_are_rows_on_one_device(drawn, sizes, weights):
  devices = mesh.make(list(zip(mesh.AXES, sizes)))
  plan = (Segment('text', text, SAMPLER),)

  def both(params, prompt_P, keys_PR):
    placed = vmaps.place_for_decoding(weights, MODEL, params, language.Net.CAST)
    out = generate.generate(net(placed), plan, prompt_P, keys_PR[:, 0], keys_PR)
    head = language.Net.gather_head(MODEL, params)
    return out, score.score([net(head)], plan, prompt_P, out.data)[0]

  with jax.set_mesh(devices):
    everywhere = NamedSharding(devices, PartitionSpec())
    params = jax.device_put(PARAMS, rules.weight_shardings(BOXED, devices))
    keys_PR = vmaps.row_keys(jax.random.key(5), 2, 8)
    out, scores = jax.jit(both)(params, *jax.device_put((prompts(), keys_PR), everywhere))
  np.testing.assert_array_equal(tokens(out)[:, :6], tokens(drawn))
  np.testing.assert_allclose(out.logp, out.mask * scores.logp, atol=1e-5)


@pytest.mark.parametrize(
  'change',
  [dict(temperature=0.0), dict(top_k=-1), dict(top_p=1.5), dict(max_tokens=0)],
)
def test_a_sampler_that_means_nothing_is_refused(change):
  with pytest.raises(ValueError, match=f'rollout.{list(change)[0]}: '):
    dataclasses.replace(SAMPLER, **change)
