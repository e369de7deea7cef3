"""What a step costs and what it learns from, by hand: FLOPs by objective, tokens and pictures of
packed rows, of VMR and of pairs, and what the timer makes of them."""

import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'objectives'))

import tiny_configs  # noqa: E402
import toys  # noqa: E402

from vargrl.models import qwen2, unified, var  # noqa: E402
from vargrl.parallel import mesh as meshes  # noqa: E402
from vargrl.training import flops, timing  # noqa: E402
from vargrl.training.run import Run  # noqa: E402
from vargrl.types import Experience, RowShape  # noqa: E402


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """A run is made for all devices of the machine; one will do."""
  before = meshes.make
  one = lambda axes, devices=None: before(axes, devices or jax.devices()[:1])
  monkeypatch.setattr(meshes, 'make', one)


def run(objective, policy, **changes):
  c = tiny_configs.config(objective, policy)
  for path, value in changes.items():
    *sections, key = path.split('__')
    section = c
    for name in sections:
      section = section[name]
    section[key] = value
  return Run(c, '', inference_only=True)


P, R, K = 8, 4, 2  # prompts, rollouts and continuations of the tiny configs


def picture(length, skip=0):
  """FLOPs of one forward pass over the tokens skip .. length of a picture of VAR."""
  c = var.SIZES['smoke']
  return var.flops(c, RowShape(length, 0, 1, length, skip, 0, 0))['']


LENGTH = 21  # scales 1, 2, 4


@pytest.mark.parametrize(
  'objective, changes, passes',
  [
    # Rollout, log-probabilities, those of the reference in the reward; the update's forward and
    # backward pass and its reference.
    ('grpo', {}, R * (1 + 1 + 1 + 3 + 1)),
    ('grpo', dict(objective__collect__kl_reward=0.0), R * (1 + 1 + 3 + 1)),
    (
      'grpo',
      dict(objective__collect__kl_reward=0.0, objective__collect__old_logp='sampler'),
      R * (1 + 3 + 1),
    ),
    ('grpo', dict(minibatches=2, epochs=3), R * (1 + 2 + 3 * (3 + 1))),
    ('grpo', dict(rollout__image__guidance=2.0), R * (2 + 2 + 3 + 1)),  # sampled in pairs
    (
      'grpo',
      dict(rollout__image__guidance=2.0, rollout__image__logp_of='guided_stopgrad'),
      R * (2 + 4 + (3 + 1) + 2),
    ),
    (
      'grpo',
      dict(rollout__image__guidance=2.0, rollout__image__logp_of='guided'),
      R * (2 + 4 + 6 + 2),
    ),
    ('dpo', {}, 2 * (1 + 3)),
    ('dpo_groups', {}, R * 1 + 2 * 1 + 2 * 3),
    ('sft', {}, 3),
  ],
)
def test_a_step_is_so_many_forward_passes(objective, changes, passes):
  found = flops.step_flops(run(objective, 'var', **changes))
  assert found == pytest.approx(P * passes * picture(LENGTH))


def test_a_prefix_step_learns_from_prefixes_and_a_suffix_step_from_whole_pictures():
  r = run('vmr', 'var')
  assert flops.step_flops(r, 'prefix') == pytest.approx(
    P * (R * picture(1) + R * K * picture(LENGTH, 1) + R * (1 + 1 + 3 + 1) * picture(1))
  )
  assert flops.step_flops(r, 'suffix') == pytest.approx(
    P * (picture(1) + R * picture(LENGTH, 1) + R * (1 + 1 + 3 + 1) * picture(LENGTH))
  )
  assert picture(1) + picture(LENGTH, 1) == pytest.approx(picture(LENGTH))


def test_packed_rows_count_their_tokens_pictures_and_patches():
  r = run('sft', 'qwen2')
  (text,) = qwen2.flops(r.policy.config, RowShape(40, 40, 0, 0, 0, 0, 0)).values()
  assert flops.step_flops(r) == pytest.approx(P * 3 * text)
  r = run('sft', 'unified')
  # 256 places, of which two pictures of 5 tokens are not predicted as text.
  parts = unified.flops(r.policy.config, RowShape(256, 246, 2, 5, 0, 72, 128))
  assert flops.step_flops(r) == pytest.approx(P * 3 * sum(parts.values()))


def test_rows_of_text_count_a_prompt_as_context_alone():
  r = run('grpo', 'qwen2')
  (text,) = qwen2.flops(r.policy.config, RowShape(5, 5, 0, 0, 0, 29, 0)).values()
  assert flops.step_flops(r) == pytest.approx(P * R * 7 * text)


def test_of_a_guidance_pair_the_text_is_sampled_once():
  guided = dict(rollout__image__guidance=2.0, rollout__uncond_prompt=(1, 6))
  r = run('grpo', 'unified', rollout__reference_impl=False, **guided)
  both = RowShape(9, 4, 1, 5, 0, 52, 0)  # up to 4 tokens, and a picture of 5
  count = lambda shape: sum(unified.flops(r.policy.config, shape).values())
  expected = P * R * (count(both) + count(both._replace(length=5, text=0)))
  assert flops.program_flops(r, 'rollout') == pytest.approx(expected)


def test_what_trains_no_policy_is_counted_from_its_program():
  for objective, policy in (('tokenizer', 'vq'), ('classify', 'classifier')):
    r = run(objective, policy)
    assert flops.step_passes(r) == {} and flops.program_flops(r, 'prepare') == 0
    assert flops.step_flops(r) == flops.program_flops(r, 'update') > 1e5


def test_an_objective_that_does_not_say_its_passes_is_refused(monkeypatch):
  r = run('sft', 'var')
  monkeypatch.setattr(r.objective, 'passes', lambda policy, collect: {})
  with pytest.raises(ValueError) as e:
    flops.step_flops(r)
  assert str(e.value) == (
    'objective: objectives.sft says no passes, expected those of a step of models.var, see '
    'types.Pass'
  )


def test_products_of_a_program_are_counted_in_loops_too():
  def program(x_BD, w_XDD):
    return jax.lax.scan(lambda x, w: (x @ w, None), x_BD, w_XDD)[0]

  jaxpr = jax.make_jaxpr(program)(jnp.ones((3, 4)), jnp.ones((5, 4, 4))).jaxpr
  assert flops.jaxpr_flops(jaxpr) == 5 * 2 * 3 * 4 * 4
  convolve = lambda x, w: jax.lax.conv_general_dilated(
    x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  jaxpr = jax.make_jaxpr(convolve)(jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 7))).jaxpr
  assert flops.jaxpr_flops(jaxpr) == 2 * (2 * 6 * 6 * 7) * (3 * 3 * 3)


# What a step learns from. A picture of scales 1 and 2 has 5 tokens.


def learned(experience, at):
  return tuple(float(x) for x in flops.learning_counts(experience, at))


def data(at, P, R):
  """Tokens of these spans."""
  return {s.name: {'tokens': jnp.zeros((P, R, s.stop - s.start))} for s in at}


def test_of_packed_rows_tokens_and_pictures_that_count():
  text, image = toys.spans(('text', 6), ('image', (1, 2)))
  image = image._replace(stop=16, part_A=np.tile(image.part_A, 2))
  mask = np.zeros((2, 1, 16))
  mask[0, 0, 2:5], mask[1, 0, 0] = 0.25, 0.25  # 4 tokens
  mask[0, 0, 6:11] = 2.0  # the first picture of the first row
  batch = Experience(data=data((text, image), 2, 1), loss_mask=jnp.asarray(mask))
  assert learned(batch, (text, image)) == (4 + 5, 1)


@pytest.mark.parametrize('old_logp', [True, False])
def test_of_vmr_prefixes_or_suffixes(old_logp):
  at = toys.spans(('image', (1, 2)))
  row_mask = jnp.array([[1.0, 0, 1, 1]] * 2)
  prefix = Experience(data={'image': {'tokens': jnp.zeros((2, 4, 1))}}, row_mask=row_mask)
  suffix = Experience(data=data(at, 2, 4), row_mask=row_mask)
  suffix = suffix.replace(loss_mask=jnp.broadcast_to(jnp.array([0.0, 1, 1, 1, 1]), (2, 4, 5)))
  if old_logp:
    prefix, suffix = (
      x.replace(old_logp=jnp.zeros((2, 4, n))) for x, n in ((prefix, 1), (suffix, 5))
    )
  assert learned(prefix, at) == (6, 6)
  assert learned(suffix, at) == (6 * 4, 6)


def test_of_pairs_both_rows_of_those_that_differ():
  at = toys.spans(('text', 3), ('image', (1, 2)))
  mask = jnp.concatenate([jnp.array([[[1.0, 1, 0], [1, 0, 0]]] * 2), jnp.ones((2, 2, 5))], -1)
  batch = Experience(data=data(at, 2, 2), loss_mask=mask, ref_logp=jnp.zeros((2, 2, 8)))
  assert learned(batch, at) == (2 * (3 + 10), 4)
  batch = batch.replace(row_mask=jnp.array([[1.0, 1], [0, 0]]))
  assert learned(batch, at) == (3 + 10, 2)
  pictures = Experience(data=data(at[1:], 2, 2))
  assert learned(pictures, toys.spans(('image', (1, 2)))) == (20, 4)


def test_of_rows_that_ended_before_their_picture():
  at = toys.spans(('text', 2), ('image', (1, 2)), ('text_1', 2), ('image_1', (1, 2)))
  mask = np.zeros((1, 2, 14))
  mask[0, 0, :9], mask[0, 1, :1] = 1, 1
  batch = Experience(data=data(at, 1, 2), loss_mask=jnp.asarray(mask))
  assert learned(batch, at) == (10, 1)


def test_of_tokenizers_and_classifiers_pictures_alone():
  assert learned(Experience(image=jnp.zeros((6, 2, 2, 3))), ()) == (0, 6)


def test_the_timer_divides_by_the_seconds_of_learning(monkeypatch, tmp_path):
  """Of a step that saves and evaluates for a while."""
  r = run('dpo', 'var')
  monkeypatch.setattr(flops, 'peak', lambda kind: 2e12)
  batch = Experience(data={'image': {'tokens': jnp.zeros((P, 2, LENGTH))}})
  with timing.timer(r, tmp_path, lambda: None, time.perf_counter()) as timer:
    for name in ('save', 'eval', 'data', 'rollout'):
      time.sleep(0.01)
      timer.phase(name, batch)
    m = timer.rates(batch, '')
  parts = ('save', 'eval', 'data', 'rollout', 'dispatch')
  assert m['time/step'] == pytest.approx(sum(m[f'time/{name}'] for name in parts))
  assert all(m[f'time/{name}'] >= 0.01 for name in parts[:-1])
  seconds = m['time/step'] - m['time/save'] - m['time/eval']
  assert float(m['speed/tokens']) * seconds == pytest.approx(P * 2 * LENGTH)
  assert float(m['speed/images']) * seconds == pytest.approx(P * 2)
  total = P * 2 * (1 + 3) * picture(LENGTH)
  assert m['speed/tflops_per_device'] * seconds * r.mesh.size * 1e12 == pytest.approx(total)
  assert m['speed/mfu'] == pytest.approx(m['speed/tflops_per_device'] / 2)
