"""Image r of class p is a function of the seed, p and r: not of what is drawn with it."""

import dataclasses
from functools import partial

import fake_run
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.commands import experiment
from vargrl.eval import samples
from vargrl.models import var
from vargrl.parallel import mesh as meshes
from vargrl.rollout import vmaps
from vargrl.tokenizers import vq
from vargrl.training import assemble

CLASSES = (3, 8, 3)


@pytest.fixture(scope='module')
def policy(small):
  """(Built, params, frozen, rows of every generate that was compiled): two scales, 4x4 pixels."""
  config, seen = experiment.load('experiments/quickstart.py:smoke').pretrain, []
  for section in (config.policy, config.tokenizer):
    section.update(scales=(1, 2))
  built = assemble.build(config)
  two = partial(dataclasses.replace, scales=(1, 2))
  weights = small(two(var.SIZES['smoke']), two(vq.SIZES['smoke']))

  def generate(policy, frozen, label_P, key_P, keys_PR):
    seen.append(keys_PR.size)
    return built.policy.generate(policy, frozen, label_P, key_P, keys_PR)

  counted = dataclasses.replace(built.policy, generate=generate)
  return (
    dataclasses.replace(built, policy=counted),
    {'policy': weights.params},
    {'tokenizer': weights.vq_params},
    seen,
  )


@pytest.fixture(scope='module')
def whole(policy):
  """uint8 [P, R, y, x, 3] of all P x R in one rollout, with the prefix of a class computed once."""
  built, params, frozen, _ = policy
  keys = built.policy.keys(jax.random.key(5), 3, 5)
  out = jax.jit(built.policy.generate)(params['policy'], frozen, jnp.array(CLASSES), *keys)
  tokens_BL = built.policy.latents(out.data, 2)
  image_Byxc = jax.jit(built.tokenizer.decode)(frozen, tokens_BL, None, None)
  return np.rint((np.asarray(image_Byxc) + 1) * 127.5).reshape(3, 5, 4, 4, 3)


def drawing(policy):
  """(per_class, batch) -> the images of CLASSES; all calls share one sampler."""
  built, params, frozen, _ = policy
  draw = samples.sampler(built)
  return lambda per_class, batch: draw(
    params, frozen, classes=CLASSES, per_class=per_class, seed=5, batch=batch
  )


def equal(image_Byxc, expected):
  assert image_Byxc.dtype == np.uint8
  # Half a grey level may round either way; another token moves pixels by dozens.
  difference = abs(image_Byxc - expected.reshape(image_Byxc.shape))
  assert difference.max() <= 1, difference.max()


def test_the_same_images_whatever_the_chunk(policy, whole):
  del policy[-1][:]
  draw = drawing(policy)
  # A call begins and ends in the middle of a class.
  image_Byxc, label_B = draw(per_class=5, batch=4)
  assert label_B.tolist() == [3] * 5 + [8] * 5 + [3] * 5
  equal(image_Byxc, whole)
  assert len({x.tobytes() for x in image_Byxc}) > 10  # the weights are random: so are the images
  equal(draw(per_class=2, batch=4)[0], whole[:, :2])  # fewer of each are the first
  assert policy[-1] == [4], 'one program, of no more rows than allowed'


def test_the_same_images_on_a_mesh(policy, whole):
  del policy[-1][:]
  with jax.set_mesh(meshes.make((('data', 2), ('fsdp', 4), ('tensor', 1)), jax.devices()[:8])):
    image_Byxc, _ = drawing(policy)(per_class=5, batch=1)
  equal(image_Byxc, whole)
  assert policy[-1] == [8]


# A policy that draws its class and its noise as a pixel.


def noise(key):
  return jax.random.randint(key, (), 0, 256)


def generate(policy, frozen, label_P, key_P, keys_PR):
  noise_PR = jax.vmap(jax.vmap(noise))(keys_PR)
  label_PR = jnp.repeat(label_P[:, None], keys_PR.shape[1], 1)
  return fake_run.rollout(jnp.stack([label_PR, noise_PR], -1))


def decode(frozen, t_BL, prompts, keys_B):
  pixel_B3 = jnp.stack([t_BL[:, 0] // 256, t_BL[:, 0] % 256, t_BL[:, 1]], -1)
  return pixel_B3[:, None, None] / 127.5 - 1


def pixel(generate=generate):
  return fake_run.built(fake_run.policy(dict(classes=1000), generate=generate), decode=decode)


def test_a_thousand_classes_are_drawn_in_bounded_calls():
  seen = []
  counted = lambda *args: (seen.append(args[-1].shape), generate(*args))[1]
  draw = samples.sampler(pixel(counted))
  image_Byxc, label_B = draw({'policy': {}}, {}, classes=1000, per_class=2, seed=0)
  assert seen == [(64, 1)]
  pixel_B3 = image_Byxc[:, 0, 0].astype(int)
  np.testing.assert_array_equal(label_B, np.repeat(np.arange(1000), 2))
  np.testing.assert_array_equal(pixel_B3[:, 0] * 256 + pixel_B3[:, 1], label_B)
  keys_B = vmaps.row_keys(jax.random.key(0), 1000, 2).reshape(-1)
  np.testing.assert_array_equal(pixel_B3[:, 2], jax.vmap(noise)(keys_B))


def test_the_grid_has_a_row_for_every_class():
  [(name, grid)] = samples.make(pixel(), classes=(7, 300, 1), per_class=2, seed=0, preset='')(
    {'policy': {}}, {}
  )
  assert name == 'grid' and grid.dtype == np.uint8
  assert grid.shape == (3 * 54 + 6, 2 * 54 + 6, 3)  # cells of 48, gaps of 6
  label_PR = grid[30::54, 30::54, 0].astype(int) * 256 + grid[30::54, 30::54, 1]
  assert label_PR.tolist() == [[7] * 2, [300] * 2, [1] * 2]
