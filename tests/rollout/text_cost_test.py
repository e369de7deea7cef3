"""What sampling and scoring of text costs: a prompt is computed once for its group, no token copies
a cache, and the logits of all positions never exist.
"""

import dataclasses
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_models

from vargrl.models import qwen2
from vargrl.models.nets import language
from vargrl.parallel import hlo
from vargrl.rollout import generate, score, vmaps
from vargrl.rollout.kinds import text
from vargrl.rollout.plan import Segment

MODEL = qwen2.Model(dataclasses.replace(qwen2.SIZES['smoke'], vocab=72))
SAMPLER = text.Config(max_tokens=10, temperature=0.9, top_k=20, top_p=0.95, stop=(3, 17, 40))


def weights(model):
  shapes = jax.eval_shape(lambda key: qwen2.init(model, key), jax.random.key(0))
  return random_models.random_weights(nn.unbox(shapes), 0)


def prompts(P, S):
  return {'tokens': jnp.zeros((P, S), jnp.int32), 'length': jnp.full(P, S)}


def sample(model, c, params, prompt_P, keys_PR):
  net = language.Net(model, None, params, None)
  return generate.generate(net, (Segment('text', text, c),), prompt_P, keys_PR[:, 0], keys_PR)


def score_tokens(model, c, params, prompt_P, t_PRL, reference=None):
  nets = [language.Net(model, None, p, None) for p in (params, reference) if p is not None]
  plan = (Segment('text', text, c),)
  return score.score(nets, plan, prompt_P, {'text': {'tokens': t_PRL}})[0]


# FLOPs of compiled programs; depth 1, since the body of a scan is counted once, as is that of the
# loop over tokens.


@pytest.fixture(scope='module')
def costs():
  """(FLOPs of (function of the weights and more, *more), the model, FLOPs of the prefill of 4
  prompts).
  """
  model = qwen2.Model(dataclasses.replace(MODEL.c, depth=1))
  params = weights(model)
  cost = lambda f, *args: jax.jit(f).lower(params, *args).compile().cost_analysis()['flops']
  prefill = lambda params, prompt: language.Net(model, None, params, None).prefill(prompt)
  return cost, model, cost(jax.vmap(prefill, (None, 0)), prompts(4, 48))


def test_a_prompt_is_computed_once_for_its_group(costs):
  (cost, model, prefill), c = costs, dataclasses.replace(SAMPLER, max_tokens=4)

  def sampling(P, R):
    keys_PR = vmaps.row_keys(jax.random.key(0), P, R)
    return cost(lambda *args: sample(model, c, *args), prompts(P, 48), keys_PR)

  def scoring(P, R):
    t_PRL = jnp.zeros((P, R, 4), jnp.int32)
    return cost(lambda *args: score_tokens(model, c, *args), prompts(P, 48), t_PRL)

  for flops in (sampling, scoring):
    np.testing.assert_allclose(flops(32, 1) - flops(4, 8), prefill * (8 - 1), rtol=0.05)


@pytest.mark.slow
def test_the_gradient_goes_once_through_a_prompt(costs):
  (cost, model, prefill), c = costs, dataclasses.replace(SAMPLER, max_tokens=4)
  loss = lambda params, *args: score_tokens(model, c, params, *args).logp.sum()
  train = lambda P, R: cost(jax.grad(loss), prompts(P, 48), jnp.zeros((P, R, 4), jnp.int32))
  assert train(32, 1) - train(4, 8) > 2.5 * prefill * (8 - 1)


def test_no_token_copies_the_cache_nor_does_a_row_that_waits():
  """Of P x R x X x K x L x H numbers, in the loop; it is written in place."""
  arguments = weights(MODEL), prompts(2, 9), vmaps.row_keys(jax.random.key(5), 2, 6)
  program = jax.jit(lambda *args: sample(MODEL, SAMPLER, *args)).lower(*arguments).compile()

  def size(shape):
    return math.prod(map(int, filter(None, re.search(r'\[([\d,]*)\]', shape)[1].split(','))))

  large = [
    op.kind
    for computation in hlo.parse(program.as_text()).computations.values()
    for op in computation.values()
    if 'while/body' in op.scope
    and not op.shape.startswith('(')
    and size(op.shape) >= 2 * 6 * 2 * 2 * 10 * 8
  ]
  assert large.count('dynamic-update-slice') == 2  # keys and values
  assert not {'copy', 'select', 'transpose', 'concatenate', 'scatter', 'gather'} & {*large}


def shapes_in(jaxpr):
  """Shapes of all that a program computes, its loops too."""
  for eqn in jaxpr.eqns:
    yield from (v.aval.shape for v in eqn.outvars)
    program = lambda x: hasattr(x, 'jaxpr') or hasattr(x, 'eqns')
    for inner in jax.tree.leaves(tuple(eqn.params.values()), is_leaf=program):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        yield from shapes_in(inner)


def test_logits_of_all_positions_never_exist(monkeypatch):
  monkeypatch.setattr(vmaps, 'CHUNK', 8)
  c, params = dataclasses.replace(SAMPLER, max_tokens=40), weights(MODEL)
  t_PRL = jnp.zeros((2, 3, 40), jnp.int32)

  def loss(params, prompt_P):
    scores = score_tokens(MODEL, c, params, prompt_P, t_PRL, reference=params)
    return (scores.penalty - scores.logp).sum()

  program = jax.make_jaxpr(jax.grad(loss))(params, prompts(2, 9)).jaxpr
  logits = [shape for shape in shapes_in(program) if 72 in shape and len(shape) > 2]
  assert max(map(np.prod, logits)) == 2 * 3 * 8 * 72
