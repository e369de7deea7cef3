"""Text and pictures in turn: cached is teacher forcing; rows end by themselves; a prompt is read
once.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest
import small_unified as small

from vargrl.models.nets import unified as nets
from vargrl.parallel import mesh, rules
from vargrl.rollout import generate, plan, score, vmaps

SHORT = small.plan(4, 3)  # the beginning of small.PLAN, which is compiled in half the time


def beginning(out):
  """The data of a rollout of small.PLAN as one of SHORT has it."""
  return {segment.name: out.data[segment.name] for segment in SHORT}


@pytest.fixture(scope='module')
def drawn():
  return small.sample()


@pytest.fixture(scope='module')
def scores_of():
  return jax.jit(small.scores)


def rows(out):
  """(texts [L] by segment, pictures [L, e] by segment, logp [A], mask [A]) of each row as numpy."""
  flat = lambda x: np.asarray(x).reshape(12, *x.shape[2:])
  data = {name: flat(x['tokens']) for name, x in out.data.items()}
  for i, (logp, mask) in enumerate(zip(flat(out.logp), flat(out.mask))):
    one = {name: x[i] for name, x in data.items()}
    yield [one[n] for n in small.TEXTS], [one[n] for n in small.IMAGES], logp, mask


def test_logp_of_cached_sampling_is_logp_of_teacher_forcing(drawn, scores_of):
  scores = scores_of(small.SMOKE.params, small.prompts(), drawn.data, small.SMOKE.params)
  assert drawn.data['text_0']['tokens'].shape == (2, 6, 4)
  assert drawn.data['image_1']['tokens'].shape == (2, 6, 5, 4)
  assert drawn.logp.shape == scores.logp.shape == (2, 6, 20)
  np.testing.assert_allclose(drawn.logp, drawn.mask * scores.logp, atol=2e-5)
  np.testing.assert_allclose(scores.ref_logp, scores.logp, atol=1e-5)
  np.testing.assert_array_equal(scores.penalty, 0)
  pictures = np.array([[m[4], m[12]] for *_, m in rows(drawn)])
  assert 0 < pictures[:, 1].sum() < pictures[:, 0].sum() < 12


def test_a_picture_of_the_prompt_is_seen(drawn, scores_of):
  plain, other = small.prompts(), small.prompts()
  other['patches'] = -other['patches']
  logp = lambda prompt_P: scores_of(small.SMOKE.params, prompt_P, drawn.data).logp
  gap = abs(logp(plain) - logp(other)) * drawn.mask
  assert gap[0].max() > 1e-3 and gap[1].max() == 0  # only the first has one


def test_a_row_ends_where_its_text_does_not_begin_a_picture(drawn):
  for texts, pictures, logp, mask in rows(drawn):
    alive, place = True, 0
    for i, said in enumerate(texts):
      length = len(said)
      there = mask[place : place + length]
      ends = np.flatnonzero(np.isin(said, (small.START, small.STOP)) & (there > 0))
      count = (ends[0] + 1 if len(ends) else length) * alive
      np.testing.assert_array_equal(there, np.arange(length) < count)
      assert not said[count:].any() and not logp[place : place + length][count:].any()
      alive = alive and len(ends) > 0 and said[ends[0]] == small.START
      place += length
      if i == 2:
        break
      assert (mask[place : place + small.LENGTH] == alive).all()
      assert alive or not pictures[i].any()
      place += small.LENGTH


def test_the_mask_of_a_rollout_is_that_of_its_data_alone(drawn):
  one = lambda data: plan.row_mask(small.PLAN, data)
  np.testing.assert_array_equal(jax.vmap(jax.vmap(one))(drawn.data), drawn.mask)


def test_a_row_depends_on_its_own_prompt_and_key_alone_and_not_on_its_padding(drawn):
  one = small.sample(
    SHORT,
    prompt_P=jax.tree.map(lambda x: x[1:], small.prompts(S=11, T=16)),
    keys_PR=small.keys()[1][1:, 2:3],
  )
  jax.tree.map(
    lambda ours, theirs: np.testing.assert_array_equal(ours[0, 0], theirs[1, 2]),
    one.data,
    beginning(drawn),
  )
  pictures = np.concatenate([drawn.data[name]['tokens'] for name in small.IMAGES], -2)
  assert len(np.unique(pictures.reshape(12, -1), axis=0)) > 4


def test_a_picture_is_the_same_whether_its_text_is_sampled_or_part_of_the_prompt(drawn):
  (p, r), *_ = np.argwhere(np.asarray(drawn.mask)[:, :, 4] > 0)
  said = np.asarray(drawn.data['text_0']['tokens'][p, r])
  n, m = int(small.prompts()['length'][p]), int(drawn.mask[p, r, :4].sum())
  prompt = jax.tree.map(lambda x: np.asarray(x[p]).copy(), small.prompts(S=13))
  prompt['tokens'][n : n + m] = said[:m]
  after = prompt['position'][:, :n].max() + 1 + np.arange(m)
  prompt['position'][:, n : n + m] = after
  prompt['length'] = np.array(n + m)
  out = small.sample(
    small.plan(0, 0),
    jax.tree.map(lambda x: jnp.asarray(x)[None], prompt),
    small.keys()[1][p : p + 1, r : r + 1],
  )
  np.testing.assert_array_equal(
    out.data['image_0']['tokens'][0, 0], drawn.data['image_0']['tokens'][p, r]
  )
  np.testing.assert_allclose(out.logp[0, 0], drawn.logp[p, r, 4:9], atol=2e-5)


def test_reading_does_not_know_of_drawing():
  """What answers in words has no gradient in the decoder, and the same words whatever its weights
  are.
  """
  SMOKE, short = small.SMOKE, small.plan(6)
  out = small.sample(short)
  drawer = jax.tree.map(lambda x: x + 1, SMOKE.params['drawer'])
  other = SMOKE.params | {'drawer': drawer, 'start': -SMOKE.params['start']}
  jax.tree.map(np.testing.assert_array_equal, small.sample(short, params=other).data, out.data)
  loss = lambda p: small.scores(p, small.prompts(), out.data, plan=short).logp.sum()
  grads = jax.jit(jax.grad(loss))(SMOKE.params)
  moved = {
    name: max(float(abs(x).max()) for x in jax.tree.leaves(part)) for name, part in grads.items()
  }
  assert moved['lm'] > 0 and moved['vision'] > 0
  assert all(moved[name] == 0 for name in ('drawer', 'into', 'out', 'start'))


def test_a_prompt_is_read_once_for_its_group():
  """FLOPs that further rollouts add do not know how long the prompt is."""
  settings = dataclasses.replace(small.SETTINGS, uncond_prompt=(1, 3, 1, 1, 3, small.START))

  def flops(R, S):
    def run(params, prompt_P, keys_PR):
      net = small.net(params, settings)
      return generate.generate(net, small.plan(0, 0), prompt_P, keys_PR[:, 0], keys_PR)

    prompt_P = jax.tree.map(lambda x: x[:1], small.prompts(S=S))
    lowered = jax.jit(run).lower(small.SMOKE.params, prompt_P, small.keys(1, R)[1])
    return lowered.cost_analysis()['flops']

  def reading(S):
    prompt = jax.tree.map(lambda x: x[0], small.prompts(S=S))
    read = lambda params, prompt: small.net(params).prefill(prompt)
    return jax.jit(read).lower(small.SMOKE.params, prompt).cost_analysis()['flops']

  once = reading(41) - reading(9)
  # To attend to a longer prompt costs each row a little, to read it would cost five times as much.
  assert once < flops(5, 41) - flops(5, 9) < 2 * once, 'each row reads the prompt again'


@pytest.mark.parametrize('axes', [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 2, 2)])
def test_rows_on_a_mesh_are_rows_on_one_device(axes, drawn):
  SMOKE, where = small.SMOKE, mesh.make(list(zip(mesh.AXES, axes)))
  params = jax.device_put(SMOKE.params, rules.weight_shardings(SMOKE.boxed, where))
  eight = jax.tree.map(lambda x: jnp.concatenate([x] * 4), small.prompts())
  keys_PR = jnp.concatenate([small.keys()[1]] * 4)[:, :2]

  @jax.jit
  def run(params, prompt_P, keys_PR):
    placed = vmaps.place_for_decoding('gathered', SMOKE.model, params, nets.Net.CAST)
    net = small.net(placed)
    return generate.generate(net, SHORT, prompt_P, keys_PR[:, 0], keys_PR)

  with jax.set_mesh(where):
    spread = NamedSharding(where, PartitionSpec(rules.ROW_AXES))
    out = run(params, jax.device_put(eight, spread), jax.device_put(keys_PR, spread))
  jax.tree.map(
    lambda ours, alone: np.testing.assert_array_equal(ours[:2], alone[:, :2]),
    out.data,
    beginning(drawn),
  )


def test_the_released_positions_and_unconditional_branch_are_teacher_forced_too():
  """Of a prompt that shows a picture, after which positions are fewer than tokens."""
  SMOKE = small.wide()
  settings = nets.Settings(uncond_prompt=(), reference_impl=True)
  short, prompt_P = small.plan(0, 3), small.prompts(S=7)

  @jax.jit
  def run(params):
    net = nets.Net(SMOKE.model, SMOKE.vae, params, SMOKE.vq_params, settings)
    out = generate.generate(net, short, prompt_P, small.keys()[0], small.keys()[1])
    return out, score.score([net], short, prompt_P, out.data)[0]

  out, scores = run(SMOKE.params)
  np.testing.assert_allclose(out.logp, out.mask * scores.logp, atol=2e-5)
  assert len(np.unique(out.data['image_0']['tokens'][0].reshape(6, -1), axis=0)) > 2
  assert out.mask[..., 5:].any((1, 2)).all()  # and text after the pictures
