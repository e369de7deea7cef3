"""What every kind of segment must hold, alone and in plans, on any net: one suite; a new kind is a
new entry of plan_cases.CASES. Every kind is scored in chunks of 8 actions here, of a
segment that has more, and sampled all at once.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import plan_cases
from plan_cases import P, R
import pytest

from vargrl.parallel import mesh
from vargrl.rollout import plan as plans
from vargrl.rollout import vmaps

RNG = jax.random.key(3)


def gap(a, b):
  """The largest absolute difference of two trees of numbers."""
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  difference = lambda x, y: np.abs(np.float32(x) - np.float32(y)).max(initial=0)
  return max(float(difference(*jax.device_get(pair))) for pair in pairs)


def near(params):
  """Other weights, not far from these."""
  return jax.tree.map(lambda x: x + 0.02 * jnp.cos(jnp.arange(x.size).reshape(x.shape)), params)


def programs(case):
  """(sample, learn): the rollout, and Scores beside a reference with the gradient of the sum of
  logp and penalty by weight_PRA, in chunks of 8."""

  def learn(params, reference, prompt_P, data_PR, weight_PRA):
    def value(params):
      scores, _ = case.scores(params, prompt_P, data_PR, reference)
      return ((scores.logp + scores.penalty) * weight_PRA).sum(), scores

    return jax.grad(value, has_aux=True)(params)

  return jax.jit(case.sample), jax.jit(learn)


# The others, among them all plans of the library's kinds that kinds/ tests, take longer.
SHORT = ('scales', 'text', 'masked', 'gaussian')
SHORT += tuple(f'text-{name}-text' for name in ('codes', 'remask', 'flow'))
CASES = [pytest.param(x, marks=() if x in SHORT else pytest.mark.slow) for x in plan_cases.CASES]


@pytest.fixture(scope='module', params=CASES)
def run(request):
  """A plan's programs and what they make of P x R rows."""
  case = plan_cases.CASES[request.param]()
  sample, learn = programs(case)
  keys = vmaps.group_keys(RNG, P), vmaps.row_keys(RNG, P, R)
  draw = lambda *keys: sample(case.params, case.prompt_P, *keys)
  out = draw(*keys)
  mask = np.ones(out.logp.shape, np.float32) if out.mask is None else np.asarray(out.mask)
  other = near(case.params)
  score = lambda data, weight=mask, reference=other: learn(
    case.params, reference, case.prompt_P, data, weight
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(vmaps, 'CHUNK', 8)
    for segment in case.plan:
      patch.setattr(segment.kind, 'CHUNK', 1)  # else few actions are one chunk
    gradient, forced = score(out.data)
  return types.SimpleNamespace(
    case=case, keys=keys, draw=draw, score=score, out=out, mask=mask, forced=forced,
    gradient=gradient,
  )  # fmt: skip


def test_cached_sampling_has_the_log_probabilities_of_teacher_forcing(run):
  assert gap(run.out.logp, run.forced.logp * run.mask) < 1e-5
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(run.out)))
  assert np.abs(run.forced.penalty * run.mask).max() > 1e-5  # the reference is another policy
  assert gap(run.forced.logp, run.forced.ref_logp) > 1e-4


def test_what_is_after_the_end_of_a_row_is_nothing(run):
  alive_PR, mask, shares = np.ones((P, R), bool), run.mask > 0, []
  for segment, span in zip(run.case.plan, plans.spans(run.case.plan)):
    own = mask[..., span.start : span.stop]
    assert not own[~alive_PR].any() and not (segment.given and own.any())
    of_rows = jax.vmap(jax.vmap(lambda data, s=segment: s.kind.mask(s.c, data)))
    whole, goes_on = jax.device_get(of_rows(run.out.data[segment.name]))
    assert segment.given or (own[alive_PR] == whole[alive_PR]).all()
    alive_PR &= goes_on | segment.given
    shares.append(alive_PR.mean())
  for x in (run.out.logp, run.out.sampler_logp):
    assert not np.asarray(x)[~mask].any()
  assert (run.out.mask is None) == (not plans.rows_end(run.case.plan))
  if len(shares) > 1 and run.case.plan[0].kind.TEXT:
    assert 0 < shares[0] < 1  # some rows go on and some do not


def test_rows_follow_their_keys(run):
  order = np.random.default_rng(0).permutation(R)
  key_P, keys_PR = run.keys
  assert gap(run.draw(key_P, keys_PR[:, order]), jax.tree.map(lambda x: x[:, order], run.out)) == 0
  changed = run.draw(key_P, keys_PR.at[1, 2].set(jax.random.key(99)))
  others = np.ones((P, R), bool)
  others[1, 2] = False
  pick = lambda tree, at: jax.tree.map(lambda x: x[at], tree)
  assert gap(pick(changed, others), pick(run.out, others)) == 0
  assert gap(pick(changed, ~others).data, pick(run.out, ~others).data) > 0


def test_a_policy_has_no_penalty_against_itself(run):
  _, itself = run.score(run.out.data, reference=run.case.params)
  assert not np.asarray(itself.penalty * run.mask).any()
  np.testing.assert_allclose(itself.ref_logp, itself.logp, atol=1e-6)


def test_dead_rows_have_no_gradient_whatever_their_data(run):
  dead = lambda x: np.where(np.arange(R).reshape(1, R, *[1] * (x.ndim - 2)) % 2, 0, x)
  weight = dead(run.mask)
  gradients, _ = run.score(run.out.data, weight)
  blank, _ = run.score(jax.tree.map(dead, run.out.data), weight)
  largest = max(float(abs(x).max()) for x in jax.tree.leaves(gradients))
  assert np.isfinite(largest) and largest > 0
  assert gap(blank, gradients) <= 1e-5 * largest


def spread(case, sizes, keys):
  """(Rollout, its Scores) on a mesh of data x fsdp devices."""
  sample, learn = programs(case)
  axes = list(zip(mesh.AXES, (*sizes, 1)))
  where = mesh.make(axes, jax.devices()[: sizes[0] * sizes[1]])
  with jax.set_mesh(where):
    put = lambda x, *axes: jax.device_put(x, jax.NamedSharding(where, jax.P(*axes)))
    prompt_P, key_P = put((case.prompt_P, keys[0]), 'data')
    out = sample(put(case.params), prompt_P, key_P, put(keys[1], 'data', 'fsdp'))
    assert out.sampler_logp.sharding.shard_shape((P, R))[:2] == (P // sizes[0], R // sizes[1])
    weight = jnp.ones(out.logp.shape)
    _, scores = learn(put(case.params), put(near(case.params)), prompt_P, out.data, weight)
  return out, scores


MESHES = [(name, sizes) for name in plan_cases.CASES for sizes in ((2, 4), (2, 1), (1, 8))]
SHORT_MESHES = [('text-flow-text', (2, 4)), ('remask', (2, 4))]
MESHES = [pytest.param(*x, marks=() if x in SHORT_MESHES else pytest.mark.slow) for x in MESHES]


@pytest.mark.parametrize('run, sizes', MESHES, indirect=['run'])
def test_a_mesh_makes_the_same_rows(run, sizes):
  out, scores = spread(run.case, sizes, run.keys)
  assert gap((out.data, out.logp), (run.out.data, run.out.logp)) < 1e-5
  # Guided logits, g cond - (g - 1) uncond over a temperature, have so many times the rounding.
  assert gap(out.sampler_logp, run.out.sampler_logp) < 5e-5
  assert gap(scores, run.forced) < 1e-4


@pytest.mark.parametrize('name', ['masked', 'remask'])
def test_a_canvas_hides_the_tokens_that_it_asks_for(name):
  # That a re-mask is scored as it was sampled holds by itself: its logp comes from scoring.
  case = plan_cases.toy(plan_cases.picture(name))
  sample, score = jax.jit(case.sample), jax.jit(case.scores)
  keys = vmaps.group_keys(RNG, P), vmaps.row_keys(RNG, P, R)
  data = sample(case.params, case.prompt_P, *keys).data['image']
  logp = lambda tokens: score(case.params, case.prompt_P, {'image': data | {'tokens': tokens}})
  step_PRL, rows = np.asarray(data['step']), np.ix_(range(P), range(R))
  at_PR = step_PRL.argmax(-1)  # a token of the last canvas
  assert (step_PRL[*rows, at_PR] == (0 if name == 'remask' else 2)).all()
  tokens = np.array(data['tokens'])
  tokens[*rows, at_PR] = (tokens[*rows, at_PR] + 1) % plan_cases.MODEL.c.codes
  moved = np.abs(np.asarray(logp(tokens)[0].logp - logp(data['tokens'])[0].logp))
  own_PR = moved[*rows, at_PR]
  moved[*rows, at_PR] = 0
  assert (own_PR > 1e-4).mean() > 0.9 and not moved[step_PRL >= 0].any()
  if name == 'remask':  # shared by the rows of a prompt, not by prompts
    assert (step_PRL == step_PRL[:, :1]).all() and (step_PRL[0] != step_PRL[1]).any()
