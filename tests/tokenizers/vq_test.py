"""The multi-scale residual quantizer: one latent, built three ways; where gradients go."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.models import var
from vargrl.tokenizers import vq
from vargrl.types import bounds


def call(m, method, *args, params=None):
  return m.vae.apply({'params': m.vq_params if params is None else params}, *args, method=method)


@pytest.fixture(scope='module')
def picture(smoke):
  size = smoke.vae.c.image_size
  return jax.random.uniform(jax.random.key(3), (2, size, size, 3), minval=-1)


@pytest.fixture(scope='module')
def encoded(smoke, picture):
  """(f, t_BL, cumulative latents)"""
  f = call(smoke, 'features', picture)
  return f, *call(smoke, 'quantize', f)


@pytest.mark.parametrize(
  'count,expected',
  [
    (5, [0, 1, 2, 2, 3]),
    (8, [0, 0, 1, 1, 2, 2, 3, 3]),
    (9, [0, 0, 1, 1, 2, 2, 2, 3, 3]),
    (10, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]),
    (14, [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]),
  ],
)
def test_scales_share_the_convolutions_as_the_official_ones_do(count, expected):
  assert vq.phi_of_scale(count, 4) == expected


def test_the_released_tokenizer_has_the_official_number_of_parameters():
  for name in 'var', 'var-512':
    model = vq.Model(vq.SIZES[name])
    shapes = nn.unbox(jax.eval_shape(lambda key: vq.init(model, key), jax.random.key(0)))
    size = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    quantizer = {k: v for k, v in shapes.items() if k.startswith('phi') or k == 'codebook'}
    assert size(shapes['encoder']) == 44_107_872
    assert size(shapes['decoder']) == 64_653_923
    assert size(quantizer) == 4096 * 32 + 4 * (32 * 32 * 9 + 32) == 168_064
    assert size(shapes['quant_conv']) == size(shapes['post_quant_conv']) == 9_248
    assert size(shapes) == 108_948_355  # the official usage record is a buffer and not among them


def test_nearest_is_the_nearest_code_and_the_first_of_equals(smoke):
  z = jax.random.normal(jax.random.key(0), (2, 5, smoke.vae.c.channels))
  book = np.asarray(smoke.vq_params['codebook'])
  brute = np.square(np.asarray(z)[:, :, None] - book).sum(-1).argmin(-1)
  np.testing.assert_array_equal(call(smoke, 'nearest', z), brute)
  doubled = {**smoke.vq_params, 'codebook': jnp.array(book).at[9].set(book[4])}
  assert call(smoke, 'nearest', book[None, 9:10] * 0 + book[4], params=doubled).tolist() == [[4]]


def test_codes_are_their_own_nearest(smoke):
  book = smoke.vq_params['codebook']
  assert call(smoke, 'nearest', book[None]).tolist() == [list(range(len(book)))]


def test_quantize_is_residual_quantization_written_out(smoke, encoded):
  """rest -> the scale's size -> nearest code -> back, smoothed -> subtracted."""
  f, t_BL, steps = encoded
  c = smoke.vae.c
  rest = np.asarray(f)
  for i, (a, b) in enumerate(bounds(c.scales)):
    s, k = c.scales[i], c.grid // c.scales[i]  # 1, 2 and 4 divide 4: area is the mean of k x k
    small = rest.reshape(2, s, k, s, k, -1).mean((2, 4)).reshape(2, s * s, -1)
    np.testing.assert_array_equal(call(smoke, 'nearest', small), t_BL[:, a:b])
    rest = rest - np.asarray(call(smoke, 'scale_latent', t_BL[:, a:b], i))
    np.testing.assert_allclose(steps[i], np.asarray(f) - rest, atol=1e-5)


def test_the_latent_of_quantize_is_the_one_that_decode_and_step_build(smoke, encoded):
  _, t_BL, steps = encoded
  z, inputs = call(smoke, 'zeros', 2), []
  for i, (a, b) in enumerate(bounds(smoke.vae.c.scales)):
    z, next_BLC = call(smoke, 'step', z, t_BL[:, a:b], i)
    np.testing.assert_allclose(z, steps[i], atol=1e-5)
    inputs.append(next_BLC)
  assert inputs.pop() is None
  np.testing.assert_allclose(call(smoke, 'embed', t_BL), jnp.concatenate(inputs, 1), atol=1e-6)
  image = call(smoke, 'decode', t_BL)
  clipped = jnp.clip(call(smoke, 'decode_latent', steps[-1]), -1, 1)
  np.testing.assert_allclose(image, clipped, atol=1e-4)
  assert abs(image).max() <= 1


def test_inputs_of_a_scale_ignore_the_tokens_of_that_scale_and_later(smoke, encoded):
  _, t_BL, _ = encoded
  for a, b in bounds(smoke.vae.c.scales)[1:]:
    changed = t_BL.at[:, a:].set((t_BL[:, a:] + 1) % smoke.vae.c.vocab)
    before, after = call(smoke, 'embed', t_BL), call(smoke, 'embed', changed)
    np.testing.assert_array_equal(before[:, : b - 1], after[:, : b - 1])
    assert (before[:, b - 1 :] != after[:, b - 1 :]).any() or b == smoke.vae.c.length


def test_with_a_zero_code_and_plain_phi_the_residual_never_grows(smoke, encoded):
  """At the last scale, with phi the identity, the nearest code is never farther than the zero."""
  f, _, _ = encoded
  params = dict(smoke.vq_params)
  params['codebook'] = params['codebook'].at[0].set(0.0)
  for i in range(smoke.vae.c.n_shared_convs):
    params[f'phi_{i}'] = {'w': jnp.zeros((3, 3, 4, 4)).at[1, 1].set(jnp.eye(4)), 'b': jnp.zeros(4)}
  _, steps = call(smoke, 'quantize', f, params=params)
  rest = [np.square(f - z).sum((1, 2, 3)) for z in steps]
  assert (rest[-1] <= rest[-2] + 1e-4).all()
  # A scale of one pixel takes its code from the mean, exactly: |mean - code| <= |mean - 0|.
  assert (rest[0] <= np.square(f).sum((1, 2, 3)) + 1e-4).all()


def test_tokens_of_a_latent_on_the_last_scale_alone_are_found_again(small):
  """One scale, phi the identity: encoding what tokens build gives these tokens, a fixed point."""
  c = vq.Config(
    vocab=32, channels=4, width=32, mults=(1, 1), blocks=1, scales=(4,), codebook_std=1.0
  )
  m = small(var.Config(1, 32, 2, scales=(4,), vocab=32, channels=4, classes=2), c)
  params = m.vq_params | {
    'phi_0': {'w': jnp.zeros((3, 3, 4, 4)).at[1, 1].set(jnp.eye(4)), 'b': jnp.zeros(4)}
  }
  t_BL = jax.random.randint(jax.random.key(0), (3, 16), 0, 32)
  z = call(m, 'scale_latent', t_BL, 0, params=params)
  again, steps = call(m, 'quantize', z, params=params)
  np.testing.assert_array_equal(again, t_BL)
  np.testing.assert_allclose(steps[-1], z, atol=1e-6)


def test_encode_is_quantize_of_features_and_reconstruct_uses_its_tokens(smoke, picture, encoded):
  f, t_BL, steps = encoded
  np.testing.assert_array_equal(call(smoke, 'encode', picture), t_BL)
  image, loss_B, tokens = call(smoke, 'reconstruct', picture)
  np.testing.assert_array_equal(tokens, t_BL)
  np.testing.assert_allclose(image, call(smoke, 'decode_latent', steps[-1]), atol=1e-4)
  # (1 / K) sum over scales of (1 + commitment) mse(z, f)
  expected = np.mean([1.25 * np.square(z - f).mean((1, 2, 3)) for z in steps], 0)
  np.testing.assert_allclose(loss_B, expected, rtol=1e-5)


@pytest.fixture(scope='module')
def gradients(smoke, picture):
  """Of the picture and of the quantizer's loss, by the weights."""

  def parts(params):
    image, loss_B, _ = call(smoke, 'reconstruct', picture, params=params)
    return jnp.sum(image * jnp.cos(jnp.arange(3.0))[None, None, None]), loss_B.sum()

  return jax.jit(lambda p: [jax.grad(lambda q: parts(q)[i])(p) for i in range(2)])(smoke.vq_params)


def largest(tree):
  return max(float(abs(x).max()) for x in jax.tree.leaves(tree))


def test_the_picture_trains_encoder_and_decoder_and_not_the_codes(gradients):
  image, _ = gradients
  for name in 'encoder', 'quant_conv', 'decoder', 'post_quant_conv':
    assert largest(image[name]) > 1e-4
  for name in image:
    if name == 'codebook' or name.startswith('phi'):
      assert largest(image[name]) == 0


def test_the_quantizer_loss_trains_encoder_and_codes_and_not_the_decoder(smoke, gradients):
  _, loss = gradients
  used = sorted(set(vq.phi_of_scale(len(smoke.vae.c.scales), 4)))
  for name in 'encoder', 'quant_conv', 'codebook', *(f'phi_{i}' for i in used):
    assert largest(loss[name]) > 1e-4, name
  for name in 'decoder', 'post_quant_conv':
    assert largest(loss[name]) == 0


def test_straight_through_hands_features_the_gradient_of_the_latent(smoke, encoded, gradients):
  """d picture / d quant_conv's bias = the sum over positions of d decoder / d latent."""
  _, _, steps = encoded
  weigh = lambda z: jnp.sum(
    call(smoke, 'decode_latent', z) * jnp.cos(jnp.arange(3.0))[None, None, None]
  )
  at_latent = jax.jit(jax.grad(weigh))(steps[-1])
  np.testing.assert_allclose(
    gradients[0]['quant_conv']['b'], at_latent.sum((0, 1, 2)), rtol=1e-3, atol=1e-3
  )


def test_bfloat16_convolutions_give_float32_features_and_pictures(smoke, picture, encoded):
  half = vq.Model(dataclasses.replace(smoke.vae.c, dtype='bfloat16'))
  apply = lambda method, x: half.apply({'params': smoke.vq_params}, x, method=method)
  f, image = apply('features', picture), apply('decode_latent', encoded[2][-1])
  assert f.dtype == image.dtype == jnp.float32
  gap = abs(f - encoded[0])
  assert 1e-5 < gap.mean() < 0.05 * encoded[0].std()
