"""Inception against numbers of torch_fidelity's network at full width
(tests/golden/make_inception.py).
"""

import pathlib
import re

from flax import traverse_util
import flax.linen as nn
import inception_rule as rule
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.checkpoint import torch_format
from vargrl.models.judges import inception

GOLDEN = np.load(pathlib.Path(__file__).parents[2] / 'golden' / 'inception.npz')


def shapes(size):
  model = inception.Model(inception.SIZES[size])
  return nn.unbox(jax.eval_shape(lambda: inception.init(model, jax.random.key(0))))


def state(layout, found):
  """The rule's state dict, by the shapes that the table says."""
  out, flat = {}, traverse_util.flatten_dict(found, sep='/')
  for ours, (key, pattern) in layout.table.items():
    left, right = (side.split() for side in pattern.split('->'))
    out[key] = rule.weights(key, tuple(flat[ours].shape[right.index(letter)] for letter in left))
  return out


def test_the_layout_names_every_tensor_of_the_published_file():
  [layout] = inception.torch_layouts(inception.SIZES['fid'])
  kept = {k for k in GOLDEN['keys'] if not any(re.fullmatch(p, k) for p in layout.ignored)}
  assert {key for key, _ in layout.table.values()} == kept and len(kept) == 94 * 5 + 2


def test_resizing_is_that_of_tensorflow_1():
  x_Byxc = jax.jit(inception.corner_bilinear, static_argnums=1)(rule.pictures(), 299)
  np.testing.assert_allclose(x_Byxc[:, ::23, ::23], GOLDEN['resized'], atol=1e-3)  # of 255


def test_features_and_logits_are_those_of_the_reference():
  c, found = inception.SIZES['fid'], shapes('fid')
  [layout] = inception.torch_layouts(c)
  params = torch_format.from_state_dict(layout.table, state(layout, found), found)
  model = inception.Model(c)
  pool_BD, logits_BV = jax.jit(lambda p, x: model.apply({'params': p}, x))(params, rule.pictures())
  assert pool_BD.shape == (2, 2048) and logits_BV.shape == (2, 1008)
  for ours, theirs in ((pool_BD, GOLDEN['pool']), (logits_BV, GOLDEN['logits'])):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * abs(theirs).max())
  np.testing.assert_allclose(
    (logits_BV - params['fc.b'][None])[:, ::16], GOLDEN['unbiased'], atol=1e-3
  )
  # The pictures differ by far more than the tolerance.
  assert abs(pool_BD[0] - pool_BD[1]).max() > 0.1


def test_an_average_leaves_out_what_is_not_there():
  x = jnp.ones((1, 4, 4, 1))
  np.testing.assert_allclose(inception.mean_pool(x), x, atol=1e-6)


@pytest.mark.parametrize('n', [299, 75])
def test_an_image_of_the_networks_size_stays_as_it_is(n):
  x = rule.pictures(1, 299)[:, :n, :n]
  np.testing.assert_array_equal(inception.corner_bilinear(x, n), x)
