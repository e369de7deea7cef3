"""Held-out numbers are those of all images in one batch, whatever the calls and the mesh."""

import dataclasses

import fake_run
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.commands import experiment
from vargrl.data import digits, image
from vargrl.eval import held_out
from vargrl.parallel import mesh as meshes
from vargrl.parallel import rows
from vargrl.training import assemble
from vargrl.types import bounds

N = 70  # one whole call of 64, and six rows of the next
PIXELS, LABEL = digits.arrays('test')
IMAGE = image.to_float(PIXELS)
EVERY = {'data 8': (8, 1, 1), 'fsdp 8': (1, 8, 1), '2 x 2 x 2': (2, 2, 2)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return str(tmp_path_factory.getbasetemp() / 'tfds')


def traced(built, record, name):
  """The Built, and a list that grows by one whenever the function `name` of a record is traced."""
  found = getattr(built, record)
  seen, function = [], getattr(found, name)
  counting = lambda *args: (seen.append(1), function(*args))[1]
  return dataclasses.replace(
    built, **{record: dataclasses.replace(found, **{name: counting})}
  ), seen


def evaluated(built, kind, folder, *weights, limit=N):
  options = dict(dataset='digits', split='test', size=8, crop='none', dir=folder)
  return dict(held_out.make(built, kind=kind, limit=limit, **options)(*weights))


def close(found, expected):
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, rel=1e-5), name


def run(name):
  return assemble.build(experiment.load('experiments/quickstart.py:smoke')[name])


def test_tokenizer(smoke, folder):
  built, seen = traced(run('tokenizer'), 'tokenizer', 'reconstruct')
  found = evaluated(built, 'tokenizer', folder, {'policy': smoke.vq_params}, {})
  assert len(seen) == 1, 'compiled twice'

  out, _, t_NL = jax.jit(built.tokenizer.reconstruct)(smoke.vq_params, IMAGE[:N], None)
  scales = [set(np.unique(t_NL[:, a:b])) for a, b in bounds(built.policy.config.scales)]
  union = len(set.union(*scales)) / 32
  shares = {f'usage/scale_{i}': len(used) / 32 for i, used in enumerate(scales)}
  mse = np.mean((np.clip(out, -1, 1) - IMAGE[:N]) ** 2, dtype=np.float64)
  close(found, {'mse': mse, 'usage': union} | shares)
  # Neither the mean of the calls' own shares, nor all or nothing.
  of_calls = [len(np.unique(t_NL[part])) / 32 for part in (slice(64), slice(64, N))]
  assert np.mean(of_calls) < union < 1 and len(set(shares.values())) == 3


def test_next_scale(smoke, folder):
  built, seen = traced(run('pretrain'), 'policy', 'score')
  params, frozen = {'policy': smoke.params}, {'tokenizer': smoke.vq_params}
  found = evaluated(built, 'next_scale', folder, params, frozen)
  assert len(seen) == 1, 'compiled twice'

  @jax.jit
  def together(policy, frozen):
    t_NL = built.tokenizer.encode(frozen, IMAGE[:N])
    data = {'image': {'tokens': t_NL[:, None]}}
    return built.policy.score(policy, frozen, jnp.asarray(LABEL[:N]), data)

  scores = jax.tree.map(np.float64, together(smoke.params, frozen))
  by_scale = {
    f'nll/scale_{i}': -scores.logp[..., a:b].mean()
    for i, (a, b) in enumerate(bounds(built.policy.config.scales))
  }
  close(found, {'nll': -scores.logp.mean(), 'accuracy': scores.accuracy.mean()} | by_scale)


# A classifier whose verdict shows every pixel, so that no image can stand for another.


def linear(weight, image_Byxc):
  return jnp.einsum('Byxc,yxcV->BV', image_Byxc, weight)


WEIGHT = np.random.default_rng(0).normal(size=(8, 8, 3, 10)).astype(np.float32)


def judge(classify):
  return fake_run.built(fake_run.policy(dict(classes=10, image_size=8)), classify=classify)


def by_hand(n):
  logits_NV = np.einsum('Byxc,yxcV->BV', IMAGE[:n], WEIGHT).astype(np.float64)
  logp_NV = logits_NV - np.log(np.exp(logits_NV).sum(-1, keepdims=True))
  chosen_N = np.take_along_axis(logp_NV, LABEL[:n, None], -1)[:, 0]
  return {'accuracy': (logp_NV.argmax(-1) == LABEL[:n]).mean(), 'nll': -chosen_N.mean()}


@pytest.mark.parametrize('n', [1, 3, 63, 64, 65, N, 360])
def test_every_image_counts_once(folder, n):
  built, seen = traced(judge(linear), 'judges', 'classify')
  limit = 0 if n == 360 else n  # all of them
  close(evaluated(built, 'classify', folder, {'policy': WEIGHT}, {}, limit=limit), by_hand(n))
  assert len(seen) == 1, 'compiled twice'


@pytest.mark.parametrize('sizes', EVERY.values(), ids=EVERY)
@pytest.mark.parametrize('n', [3, N, 360])
def test_a_mesh_divides_the_rows_and_changes_no_number(folder, sizes, n):
  seen, devices = [], sizes[0] * sizes[1]

  def classify(weight, image_Byxc):
    jax.debug.inspect_array_sharding(
      image_Byxc, callback=lambda sharding: seen.append(sharding.shard_shape(image_Byxc.shape))
    )
    return linear(weight, image_Byxc)

  with jax.set_mesh(meshes.make(tuple(zip(meshes.AXES, sizes)), jax.devices()[:8])):
    found = evaluated(judge(classify), 'classify', folder, {'policy': WEIGHT}, {}, limit=n)
  close(found, by_hand(n))
  assert seen == [(min(64, -(-n // devices)), 8, 8, 3)]


def test_the_tokenizer_on_a_mesh(smoke, folder):
  built = run('tokenizer')
  alone = evaluated(built, 'tokenizer', folder, {'policy': smoke.vq_params}, {}, limit=21)
  with jax.set_mesh(meshes.make((('data', 2), ('fsdp', 4), ('tensor', 1)), jax.devices()[:8])):
    close(evaluated(built, 'tokenizer', folder, {'policy': smoke.vq_params}, {}, limit=21), alone)


@pytest.mark.parametrize('n', [1, 7, 64, 65, 70, 128, 1000])
def test_calls_are_of_one_length_and_count_every_row_once(n):
  for sizes in (None, *EVERY.values()):
    devices = meshes.make(tuple(zip(meshes.AXES, sizes)), jax.devices()[:8]) if sizes else None
    with jax.set_mesh(devices) if sizes else jax.default_device(None):
      calls, ways = list(rows.batches(n, 16)), rows.n_shards()
    assert ways == (sizes[0] * sizes[1] if sizes else 1)
    assert len({len(row_B) for row_B, _ in calls}) == 1
    size = len(calls[0][0])
    assert size % ways == 0 and size <= 16 * ways and (len(calls) - 1) * size < n
    assert max(row_B.max() for row_B, _ in calls) == n - 1
    assert np.concatenate([row_B[counts_B] for row_B, counts_B in calls]).tolist() == [*range(n)]


def test_rows_that_do_not_count_are_in_no_number():
  counts = np.array([True, False, True, False])
  t_BL = jnp.array([[0, 2], [5, 1], [2, 2], [7, 7]])
  np.testing.assert_array_equal(np.flatnonzero(held_out.used_codes(t_BL, counts, 8)), [0, 2])
  x_BL = jnp.array([[1.0, 3], [np.nan, 9], [5, 7], [np.inf, 0]])
  assert held_out.merge([held_out.mean_by_row(x_BL, counts)]) == 4


def test_usage_is_the_union_of_the_calls_and_averages_weigh_by_count():
  mine, other = np.array([True, False, False, False]), np.array([True, True, False, False])
  assert held_out.merge([mine, other, mine]) == 1 / 2
  x, counts = np.array([1.0, 2, 3, 40]), np.array([True, True, True, False])
  assert (
    held_out.merge([held_out.mean_by_row(x, counts), held_out.mean_by_row(x[3:], counts[:1])])
    == 46 / 4
  )
