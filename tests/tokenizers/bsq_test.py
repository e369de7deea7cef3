"""Bits of all scales, square or not: what is encoded, shown, corrected, learned."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.models.layers import norms
from vargrl.tokenizers import bsq
from vargrl.tokenizers.resize import area, bilinear, resize
from vargrl.types import bounds, sides

# Counted on the official tokenizers.
COUNTS = {'d32': 110_118_051, 'd56': 81_624_209}


@pytest.mark.parametrize('name', COUNTS)
def test_released_sizes_have_the_official_number_of_parameters(name):
  shapes = jax.eval_shape(lambda key: bsq.init(bsq.Model(bsq.SIZES[name]), key), jax.random.key(0))
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(nn.unbox(shapes))) == COUNTS[name]


def test_image_sizes_follow_the_schedule():
  size = lambda name, scales: dataclasses.replace(bsq.SIZES[name], scales=scales).image_size
  assert (
    size('d32', '0.25M') == size('d56', '0.25M') == 512
  )  # a patch of the 8B model's is as large
  assert size('d32', '1M 1.333') == (1152, 864) and bsq.SIZES['d56'].bits == 56
  assert [bsq.SIZES[name].image_size for name in ('small', 'small-64', 'smoke')] == [32, 64, (8, 4)]


def direct(f_BhwC, scales, flips):
  """(bits, sum of codes, inputs) by the definition, on numpy arrays; flips of each scale."""
  resized = lambda x, to, how: np.asarray(
    resize(jnp.asarray(x), *(how(n, m) for n, m in zip(x.shape[1:3], to)))
  )
  total, found, inputs = np.zeros_like(f_BhwC), [], []
  for i, scale in enumerate(scales):
    t = (resized(f_BhwC - total, sides(scale), area) > 0).astype(np.int32)
    found.append(t.reshape(len(t), -1, t.shape[-1]))
    code = (2 * (t ^ flips[i].reshape(t.shape)) - 1) / np.float32(np.sqrt(t.shape[-1]))
    total = total + resized(code, f_BhwC.shape[1:3], bilinear)
    if i + 1 == len(scales):
      break
    inputs.append(resized(total, sides(scales[i + 1]), bilinear).reshape(len(t), -1, t.shape[-1]))
  return np.concatenate(found, 1), total, np.concatenate(inputs, 1)


@pytest.mark.parametrize('scales', [(1, 2, 4), (1, (2, 1), (3, 2), (5, 4))], ids=str)
def test_self_correction_tells_the_bits_before_the_flip_and_shows_those_after(scales):
  c = dataclasses.replace(bsq.SIZES['smoke'], scales=scales)
  model, rng = bsq.Model(c), np.random.default_rng(0)
  f_BhwC = rng.standard_normal((2, *c.grid, c.channels)).astype(np.float32)
  flips_BLe = (rng.random((2, c.length, c.bits)) < 0.3).astype(np.int32)
  call = lambda *args, method: model.apply({'params': {}}, *args, method=method)
  for flips in (flips_BLe, np.zeros_like(flips_BLe)):
    t_BLe, z_BhwC = call(jnp.asarray(f_BhwC), flips, method='quantize')
    expected = direct(f_BhwC, scales, [flips[:, a:b] for a, b in bounds(scales)])
    np.testing.assert_array_equal(t_BLe, expected[0])
    np.testing.assert_allclose(z_BhwC, expected[1], atol=1e-5)
    np.testing.assert_allclose(call(t_BLe ^ flips, method='embed'), expected[2], atol=1e-5)
  first = bounds(scales)[0][1]
  clean, turned = (
    call(jnp.asarray(f_BhwC), *flips, method='quantize')[0] for flips in ((), (flips_BLe,))
  )
  np.testing.assert_array_equal(clean[:, :first], turned[:, :first])
  assert (clean != turned).any()  # later bits correct


def test_a_zero_is_the_bit_zero_and_codes_have_length_one(bits):
  t_BLe, _ = bits.vae.apply({'params': {}}, jnp.zeros((1, 4, 2, 4)), method='quantize')
  assert not t_BLe[:, 0].any()
  code = bits.vae.apply({'params': {}}, jnp.ones((1, 8, 4), jnp.int32), 2, method='scale_latent')
  np.testing.assert_allclose(code, np.full((1, 4, 2, 4), 0.5))


def test_steps_are_what_embed_shows_and_decode_adds(bits, said):
  _, t_BLe, x_BLC = said
  call = lambda *args, method: bits.vae.apply({'params': bits.vq_params}, *args, method=method)
  z, shown = bits.vae.zeros(2), []
  for i, (a, b) in enumerate(bounds(bits.c.scales)):
    z, following = call(z, t_BLe[:, a:b], i, method='step')
    shown.append(following)
  assert shown.pop() is None
  np.testing.assert_allclose(jnp.concatenate(shown, 1), x_BLC, atol=1e-6)
  np.testing.assert_allclose(call(t_BLe[:, :5], method='embed'), x_BLC[:, :4], atol=1e-6)
  image = call(t_BLe, method='decode')
  assert image.shape == (2, 8, 4, 3)
  np.testing.assert_allclose(image, jnp.clip(call(z, method='decode_latent'), -1, 1), atol=1e-5)


def test_patches_are_pixel_unshuffle():
  x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
  found = bsq.to_patches(x, 2)
  assert found.shape == (2, 6, 12)
  for c in range(3):
    for dy in range(2):
      for dx in range(2):
        np.testing.assert_array_equal(found[:, 4, 4 * c + 2 * dy + dx], x[:, 2 + dy, 2 + dx, c])
  np.testing.assert_array_equal(bsq.from_patches(found, (2, 3), 2), x)
  c = dataclasses.replace(bsq.SIZES['smoke'], patch=2)
  t_BLe = jnp.zeros((1, 13, 16), jnp.int32)
  assert (c.bits, c.grid, c.image_size) == (16, (8, 4), (16, 8))
  assert bsq.Model(c).apply({'params': {}}, t_BLe, method='embed').shape == (1, 12, 16)


def test_reconstruction_is_straight_through_and_its_loss_is_the_formula(bits):
  image = jax.random.uniform(jax.random.key(0), (3, 8, 4, 3), minval=-1.0)
  c = bits.vae.c

  @jax.jit
  def run(params, keep_Bs):
    call = lambda *args, method: bits.vae.apply({'params': params}, *args, method=method)

    def value(params):
      out, loss_B, t_BLe = bits.vae.apply({'params': params}, image, keep_Bs, method='reconstruct')
      return (out, loss_B), t_BLe

    found, pull, t_BLe = jax.vjp(value, params, has_aux=True)
    (grads,) = jax.vmap(pull)(
      tuple(
        jnp.stack([x, y])
        for x, y in (
          (jnp.ones_like(found[0]), jnp.zeros_like(found[0])),
          (jnp.zeros_like(found[1]), jnp.ones_like(found[1])),
        )
      )
    )
    f = call(image, method='features')
    tokens, z = call(f, method='quantize')
    return (*found, t_BLe), grads, f, tokens, call(z, method='decode_latent')

  every = jnp.ones((3, 3))
  (out, loss_B, t_BLe), grads, f, tokens, decoded = run(bits.vq_params, every)
  np.testing.assert_array_equal(t_BLe, tokens)
  np.testing.assert_allclose(out, decoded, atol=1e-5)
  size = lambda part, of: max(float(abs(g[of]).max()) for g in jax.tree.leaves(grads[part]))
  assert (
    min(size('encoder', 0), size('decoder', 0), size('encoder', 1)) > 1e-4
    and size('decoder', 1) == 0
  )

  def aux(r_BhwC):
    """Of one scale: commitment_B, entropies of places [B], frequency of ones [B, C]."""
    u = np.asarray(norms.l2_normalize(r_BhwC))
    p = 1 / (1 + np.exp(-400 / np.sqrt(c.channels) * u.astype(np.float64)))
    H = lambda p: -p * np.log(p + 1e-8) - (1 - p) * np.log(1 - p + 1e-8)
    commitment = ((u - np.where(u > 0, 1, -1) / np.sqrt(c.channels)) ** 2).mean((1, 2, 3))
    return commitment, H(p).sum(-1).mean((1, 2)), p.mean((1, 2)), H

  total, expected = np.zeros_like(f), 0
  for i, (a, b) in enumerate(bounds(c.scales)):
    r = resize(jnp.asarray(f - total), *(area(n, m) for n, m in zip(c.grid, sides(c.scales[i]))))
    commitment, place, often, H = aux(r)
    expected += (c.commitment * commitment + c.entropy / 100 * (place - H(often.mean(0)).sum())) / 3
    total = total + np.asarray(
      bits.vae.apply({'params': {}}, t_BLe[:, a:b], i, method='scale_latent')
    )
  np.testing.assert_allclose(loss_B, expected, rtol=1e-4, atol=1e-6)

  # An image that goes without its second scale is that of the other two alone, whatever the others
  # have.
  (some, _, kept), *_ = run(bits.vq_params, every.at[1, 1].set(0))
  np.testing.assert_allclose(some[0], out[0], atol=1e-5)
  assert abs(some[1] - out[1]).max() > 1e-3
  np.testing.assert_array_equal(kept[1, :5], t_BLe[1, :5])


def test_scale_dropout_keeps_the_last_scale_and_the_asked_share_of_the_others():
  c = dataclasses.replace(bsq.SIZES['smoke'], scale_dropout=0.5)
  keep_Bs = bsq.sample_scale_dropout(c, jax.random.key(0), 2000)
  assert (keep_Bs[:, -1] == 1).all() and set(np.unique(keep_Bs)) == {0.0, 1.0}
  np.testing.assert_allclose(keep_Bs[:, :-1].mean(0), 0.5, atol=0.05)
  assert bsq.sample_scale_dropout(bsq.SIZES['smoke'], jax.random.key(0), 4) is None


@pytest.mark.parametrize(
  'change', [dict(width=40), dict(dtype='int8'), dict(scale_dropout=1.0), dict(scales='1M 7')]
)
def test_a_tokenizer_that_means_nothing_is_refused(change):
  with pytest.raises(ValueError, match=list(change)[0]):
    dataclasses.replace(bsq.SIZES['smoke'], **change)
