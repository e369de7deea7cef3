"""Cached sampling of text is teacher forcing; a prompt is computed once for its group; a row ends
by itself.
"""

import dataclasses
from functools import partial
import json
import math
import pathlib
import re

import conftest
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest
import qwen2_golden as rule

from vargrl.checkpoint import torch_format
from vargrl.models import qwen2
from vargrl.parallel import hlo, mesh, rules
from vargrl.rollout import groups, next_token
from vargrl.types import Prompt

MODEL = qwen2.Model(dataclasses.replace(qwen2.SIZES['smoke'], vocab=72))
BOXED = jax.eval_shape(lambda key: qwen2.init(MODEL, key), jax.random.key(0))
PARAMS = conftest.random_weights(nn.unbox(BOXED), 0)
SAMPLER = next_token.Config(
  temperature=0.9, top_k=20, top_p=0.95, length=10, stop=(3, 17, 40, 41, 42)
)


def prompts(S=9, noise=0):
  """Two of 6 and 4 tokens, padded to S by `noise`; the first has a picture of 1 x 2 embeddings."""
  t_PS, place_PS = np.full((2, S), noise), np.full((2, S), -1)
  t_PS[0, :6], t_PS[1, :4] = [5, 9, 9, 9, 8, 2], [1, 30, 31, 32]
  place_PS[0, 1:3] = [0, 1]
  position_P3S = np.full((2, 3, S), noise)
  position_P3S[0, :, :6] = [[0, 1, 1, 3, 4, 5], [0, 1, 1, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
  position_P3S[1, :, :4] = np.arange(4)
  image_PTD = jax.random.normal(jax.random.key(3), (2, 2, 32))
  return Prompt(*map(jnp.asarray, (t_PS, [6, 4], position_P3S, place_PS)), image_PTD)


def generate(c, prompt_P, keys_PR, params=PARAMS, model=MODEL):
  return jax.jit(partial(next_token.generate, model, c))(params, prompt_P, keys_PR)


def logprobs(c, prompt_P, tokens_PRL, params=PARAMS, reference=None):
  return jax.jit(partial(next_token.logprobs, MODEL, c))(
    params, prompt_P, tokens_PRL, reference=reference
  )


@pytest.fixture(scope='module')
def drawn():
  return generate(SAMPLER, prompts(), next_token.keys(jax.random.key(5), 2, 6))


def test_logp_of_cached_sampling_is_logp_of_teacher_forcing(drawn):
  scores = logprobs(SAMPLER, prompts(), drawn.tokens, reference=PARAMS)
  assert drawn.tokens.shape == scores.logp.shape == (2, 6, 10) and drawn.tokens.dtype == jnp.int32
  np.testing.assert_allclose(drawn.logp, drawn.mask * scores.logp, atol=1e-5)
  np.testing.assert_allclose(scores.reference, scores.logp, atol=1e-5)
  np.testing.assert_allclose(scores.kl, 0, atol=1e-5)
  assert (drawn.sampler >= drawn.logp - 1e-5).all() and drawn.logp.min() < -2
  # The picture is seen: another one is another distribution.
  other = prompts().replace(image=-prompts().image)
  gap = abs(logprobs(SAMPLER, other, drawn.tokens).logp - scores.logp)
  assert gap[0].max() > 0.01 and gap[1].max() == 0


def test_scores_are_those_of_the_model_on_the_whole_sequence(drawn):
  """Without cache, padding or shared prompts."""
  prompt, c = prompts(), SAMPLER
  scores = logprobs(c, prompt, drawn.tokens)
  for p, n in enumerate((6, 4)):
    t_BL = jnp.concatenate(
      [jnp.broadcast_to(prompt.tokens[p, None, :n], (6, n)), drawn.tokens[p]], 1
    )
    after_L = prompt.position[p, :, :n].max() + 1 + jnp.arange(c.length)
    position_3L = jnp.concatenate(
      [prompt.position[p, :, :n], jnp.broadcast_to(after_L, (3, c.length))], 1
    )

    def run(params, t_BL):
      x_BLD = MODEL.apply({'params': params}, t_BL, method='embed')
      place_BL = jnp.pad(
        prompt.place[p, None, :n], ((0, 0), (0, c.length)), constant_values=-1
      ).repeat(6, 0)
      x_BLD = qwen2.splice_embeddings(x_BLD, place_BL, prompt.image[p, None].repeat(6, 0))
      x_BLD = MODEL.apply({'params': params}, x_BLD, position_3L[:, None], method='forward')
      return MODEL.apply({'params': params}, x_BLD[:, n - 1 : -1], method='logits') / c.temperature

    logp_BLV = jax.nn.log_softmax(jax.jit(run)(PARAMS, t_BL))
    ours = jnp.take_along_axis(logp_BLV, drawn.tokens[p][..., None], -1)[..., 0]
    np.testing.assert_allclose(scores.logp[p], ours, atol=1e-5)
    np.testing.assert_allclose(
      scores.entropy[p], -(jnp.exp(logp_BLV) * logp_BLV).sum(-1), atol=1e-5
    )
    np.testing.assert_array_equal(scores.hit[p], logp_BLV.argmax(-1) == drawn.tokens[p])


def test_stop_tokens_end_a_row_and_belong_to_it(drawn):
  ends = 0
  for tokens, mask, *others in zip(
    *(np.asarray(x).reshape(12, 10) for x in (drawn.tokens, drawn.mask, drawn.logp, drawn.sampler)),
    strict=True,
  ):
    at = np.flatnonzero(np.isin(tokens, SAMPLER.stop) & (mask > 0))
    length = at[0] + 1 if len(at) else 10
    np.testing.assert_array_equal(mask, np.arange(10) < length)
    assert len(at) <= 1 and not any(x[length:].any() for x in (tokens, *others))
    assert all(x[:length].all() for x in others)
    ends += length < 10
  assert 2 < ends < 12  # some, not all


def test_a_row_depends_on_its_own_prompt_and_key_alone_and_not_on_its_padding(drawn):
  """One longer row makes the others of its batch wait."""
  keys_PR = next_token.keys(jax.random.key(5), 2, 6)
  one = generate(SAMPLER, jax.tree.map(lambda x: x[1:], prompts()), keys_PR[1:, 2:3])
  np.testing.assert_array_equal(one.tokens[0, 0], drawn.tokens[1, 2])
  wide = generate(SAMPLER, prompts(13, noise=50), keys_PR)
  np.testing.assert_array_equal(wide.tokens, drawn.tokens)
  np.testing.assert_allclose(wide.logp, drawn.logp, atol=1e-5)
  assert len(np.unique(np.asarray(drawn.tokens).reshape(12, 10), axis=0)) == 12
  longer = generate(dataclasses.replace(SAMPLER, length=14), prompts(), keys_PR)
  np.testing.assert_array_equal(longer.tokens[..., :10], drawn.tokens)


def test_what_follows_a_row_sees_it_and_not_its_room(drawn):
  """A second `proceed` on the same cache is teacher forcing of both texts in a row, however long
  the first.
  """
  keys_PR, c = next_token.keys(jax.random.key(5), 2, 6), dataclasses.replace(SAMPLER, length=4)

  def one(params, prompt, key):
    begun = next_token.begin(MODEL, params, prompt)
    known, first, _ = next_token.proceed(MODEL, SAMPLER, params, begun, key, next_token.AXES)
    return first, next_token.proceed(
      MODEL, c, params, known, jax.random.fold_in(key, 99), next_token.AXES
    )[1]

  inner = lambda params, prompt, keys_R: jax.vmap(
    partial(one, params, prompt), axis_name='rollouts'
  )(keys_R)
  first, second = jax.jit(jax.vmap(inner, (None, 0, 0), axis_name='prompts'))(
    PARAMS, prompts(), keys_PR
  )
  np.testing.assert_array_equal(first.tokens, drawn.tokens)
  lengths = first.mask.sum(-1).astype(int)
  joined = np.zeros((2, 6, 14), int)
  for p, r in np.ndindex(2, 6):
    joined[p, r, : lengths[p, r]] = first.tokens[p, r, : lengths[p, r]]
    joined[p, r, lengths[p, r] : lengths[p, r] + 4] = second.tokens[p, r]
  scores = logprobs(SAMPLER, prompts(), jnp.asarray(joined)).logp
  for p, r in np.ndindex(2, 6):
    n = lengths[p, r]
    np.testing.assert_allclose(
      second.logp[p, r], second.mask[p, r] * scores[p, r, n : n + 4], atol=1e-5
    )


def test_the_best_token_each_time_is_transformers_greedy_search():
  """Of prompts of two lengths in one batch; the first ends early."""
  about = json.loads((pathlib.Path(__file__).parent.parent / 'golden' / 'qwen2.json').read_text())
  model = qwen2.Model(qwen2.Config(**rule.TEXT['untied']))
  state = {key: rule.weights(key, tuple(shape)) for key, shape in about['untied'].items()}
  shapes = nn.unbox(jax.eval_shape(lambda key: qwen2.init(model, key), jax.random.key(0)))
  params = torch_format.from_state_dict(qwen2.torch_layouts(model.c)[0].table, state, shapes)
  c = next_token.Config(1.0, 1, 0.0, rule.NEW, tuple(about['greedy']['stop']))
  t_PS = jnp.array([[*prompt, *[0] * (9 - len(prompt))] for prompt in rule.PROMPTS])
  prompt_P = Prompt(t_PS, jnp.array([*map(len, rule.PROMPTS)]))
  out = generate(c, prompt_P, next_token.keys(jax.random.key(0), 2, 1), params, model)
  for tokens, mask, theirs in zip(
    out.tokens[:, 0], out.mask[:, 0], about['greedy']['rows'], strict=True
  ):
    assert tokens[: int(mask.sum())].tolist() == theirs
  assert len(about['greedy']['rows'][0]) < len(about['greedy']['rows'][1])
  np.testing.assert_allclose(out.sampler, 0, atol=1e-6)


@pytest.mark.parametrize(
  'sizes, weights',
  [((2, 2, 2), 'gathered'), pytest.param((1, 8, 1), 'sharded', marks=pytest.mark.slow)],
  ids=str,
)
def test_rows_on_a_mesh_are_rows_on_one_device(drawn, sizes, weights):
  devices = mesh.make(list(zip(mesh.AXES, sizes)))
  with jax.set_mesh(devices):
    everywhere = NamedSharding(devices, PartitionSpec())
    params = jax.device_put(PARAMS, rules.weight_shardings(BOXED, devices))
    prompt_P, keys_PR = jax.device_put(
      (prompts(), next_token.keys(jax.random.key(5), 2, 8)), everywhere
    )
    out = generate(dataclasses.replace(SAMPLER, weights=weights), prompt_P, keys_PR, params)
    scores = logprobs(SAMPLER, prompt_P, out.tokens, params)
  np.testing.assert_array_equal(out.tokens[:, :6], drawn.tokens)
  np.testing.assert_allclose(out.logp, out.mask * scores.logp, atol=1e-5)


# FLOPs of compiled programs; depth 1, since the body of a scan is counted once, as is that of the
# loop over tokens.


@pytest.fixture(scope='module')
def costs():
  """(FLOPs of (function of the weights and more, *more), the model, FLOPs of the prefill of 4
  prompts).
  """
  model = qwen2.Model(dataclasses.replace(MODEL.c, depth=1))
  params = conftest.random_weights(
    nn.unbox(jax.eval_shape(lambda key: qwen2.init(model, key), jax.random.key(0))), 0
  )
  cost = lambda f, *args: jax.jit(f).lower(params, *args).compile().cost_analysis()['flops']
  return cost, model, cost(jax.vmap(partial(next_token.begin, model), (None, 0)), blank(4))


def blank(P):
  return Prompt(jnp.zeros((P, 48), jnp.int32), jnp.full(P, 48))


def test_a_prompt_is_computed_once_for_its_group(costs):
  (cost, model, prefill), c = costs, dataclasses.replace(SAMPLER, length=4)
  keys = partial(next_token.keys, jax.random.key(0))
  generate = lambda P, R: cost(partial(next_token.generate, model, c), blank(P), keys(P, R))
  np.testing.assert_allclose(generate(32, 1) - generate(4, 8), prefill * (8 - 1), rtol=0.05)
  score = lambda P, R: cost(
    partial(next_token.logprobs, model, c), blank(P), jnp.zeros((P, R, 4), jnp.int32)
  )
  np.testing.assert_allclose(score(32, 1) - score(4, 8), prefill * (8 - 1), rtol=0.05)


@pytest.mark.slow
def test_the_gradient_goes_once_through_a_prompt(costs):
  (cost, model, prefill), c = costs, dataclasses.replace(SAMPLER, length=4)
  loss = lambda params, *args: next_token.logprobs(model, c, params, *args).logp.sum()
  train = lambda P, R: cost(jax.grad(loss), blank(P), jnp.zeros((P, R, 4), jnp.int32))
  assert train(32, 1) - train(4, 8) > 2.5 * prefill * (8 - 1)


def shapes_in(jaxpr):
  """Shapes of all that a program computes, its loops too."""
  for eqn in jaxpr.eqns:
    yield from (v.aval.shape for v in eqn.outvars)
    program = lambda x: hasattr(x, 'jaxpr') or hasattr(x, 'eqns')
    for inner in jax.tree.leaves(tuple(eqn.params.values()), is_leaf=program):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        yield from shapes_in(inner)


def test_no_token_copies_the_cache_nor_does_a_row_that_waits():
  """Of P x R x X x K x L x H numbers, in the loop; it is written in place."""
  arguments = PARAMS, prompts(), next_token.keys(jax.random.key(5), 2, 6)
  program = hlo.parse(
    jax.jit(partial(next_token.generate, MODEL, SAMPLER)).lower(*arguments).compile().as_text()
  )
  size = lambda shape: math.prod(
    map(int, filter(None, re.search(r'\[([\d,]*)\]', shape)[1].split(',')))
  )
  large = [
    op.kind
    for computation in program.computations.values()
    for op in computation.values()
    if 'while/body' in op.scope
    and not op.shape.startswith('(')
    and size(op.shape) >= 2 * 6 * 2 * 2 * 10 * 8
  ]
  assert large.count('dynamic-update-slice') == 2  # keys and values
  assert not {'copy', 'select', 'transpose', 'concatenate', 'scatter', 'gather'} & {*large}


def test_logits_of_all_positions_never_exist(monkeypatch):
  monkeypatch.setattr(groups, 'CHUNK', 8)
  t_PRL = jnp.zeros((2, 3, 40), jnp.int32)

  def loss(params, prompt_P):
    s = next_token.logprobs(MODEL, SAMPLER, params, prompt_P, t_PRL, reference=params)
    return (s.kl - s.logp).sum()

  program = jax.make_jaxpr(jax.grad(loss))(PARAMS, prompts()).jaxpr
  logits = [shape for shape in shapes_in(program) if 72 in shape and len(shape) > 2]
  assert max(map(np.prod, logits)) == 2 * 3 * 8 * 72


@pytest.mark.parametrize(
  'change',
  [dict(temperature=0.0), dict(top_k=-1), dict(top_p=1.5), dict(length=0), dict(weights='x')],
)
def test_a_sampler_that_means_nothing_is_refused(change):
  with pytest.raises(ValueError, match=f'rollout: .*{list(change)[0]}'):
    dataclasses.replace(SAMPLER, **change)
