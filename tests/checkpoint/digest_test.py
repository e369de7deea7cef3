"""Digests depend on every bit and every position, and on nothing else."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vargrl.checkpoint import digest

DTYPES = ('float32', 'bfloat16', 'float16', 'int32', 'uint32', 'int16', 'int8', 'uint8')


def bits(dtype, count=6):
  """Returns fixed bytes as dtype: negative numbers, NaN and denormals are among them."""
  size = np.dtype(jnp.dtype(dtype)).itemsize
  return np.random.RandomState(0).bytes(count * size)


def array(raw, dtype, shape):
  return jnp.asarray(np.frombuffer(raw, jnp.dtype(dtype)).reshape(shape))


@pytest.mark.parametrize('dtype', DTYPES)
def test_every_single_flipped_bit_changes_the_digest(dtype):
  raw = bits(dtype)
  trees = {'whole': array(raw, dtype, (2, 3))}
  for i in range(8 * len(raw)):
    flipped = bytearray(raw)
    flipped[i // 8] ^= 1 << i % 8
    trees[str(i)] = array(bytes(flipped), dtype, (2, 3))
  found = digest.digests(trees)
  assert len(set(found.values())) == 8 * len(raw) + 1


def test_every_exchange_of_two_elements_changes_the_digest():
  x = np.arange(64, dtype=np.float32)
  trees = {'whole': jnp.asarray(x)}
  for i, j in itertools.combinations(range(64), 2):
    y = x.copy()
    y[[i, j]] = y[[j, i]]
    trees[f'{i}-{j}'] = jnp.asarray(y)
  assert len(set(digest.digests(trees).values())) == len(trees)


def test_two_flipped_signs_do_not_cancel():
  x = np.arange(1, 65, dtype=np.float32)
  trees = {'whole': jnp.asarray(x), 'all': jnp.asarray(-x)}
  for i, j in itertools.combinations(range(64), 2):
    y = x.copy()
    y[[i, j]] *= -1
    trees[f'{i}-{j}'] = jnp.asarray(y)
  assert len(set(digest.digests(trees).values())) == len(trees)


def test_the_digests_of_fixed_arrays_never_change():
  # Written down once: another value means that checkpoints of older versions are refused.
  tree = {dtype: array(bits(dtype), dtype, (2, 3)) for dtype in ('float32', 'bfloat16', 'int8')}
  tree |= {
    'bool': jnp.array([True, False, True]),
    'scalar': jnp.float32(1.5),
    'empty': jnp.zeros((0, 4)),
    'key': jax.random.key(7),
  }
  assert digest.digests(tree) == {
    'float32': 'cad25554d62b2aa9',
    'bfloat16': '4b86009e33e9b45f',
    'int8': '00475a70f6ee7121',
    'bool': 'cc76aa97ec795bb9',
    'scalar': '0f92d7a7b93a4f64',
    'empty': '0000000000000000',
    'key': 'a49c1f093b670225',
  }


def test_the_digest_is_its_definition_in_plain_integers():
  def mix(v):
    v = (v ^ v >> 16) * 0x85EBCA6B % 2**32
    v = (v ^ v >> 13) * 0xC2B2AE35 % 2**32
    return v ^ v >> 16

  raw = bits('float32', 60)
  words = np.frombuffer(raw, np.uint32).tolist()
  first = [mix((v + i * 0x9E3779B1) % 2**32) for i, v in enumerate(words)]
  sums = [
    sum(v * (2 * i + 1) for i, v in enumerate(vs)) % 2**32
    for vs in (first, [mix(v ^ 0x85EBCA77) for v in first])
  ]
  found = digest.digests({'x': array(raw, 'float32', (3, 4, 5))})
  assert found == {'x': '{:08x}{:08x}'.format(*sums)}


def test_signs_of_zero_differ_and_copies_do_not():
  x = jnp.array([jnp.nan, -0.0, 0.0, jnp.inf])
  assert digest.digests({'a': x}) == digest.digests({'a': jnp.copy(x)})
  assert digest.digests({'a': jnp.float32(0.0)}) != digest.digests({'a': jnp.float32(-0.0)})


def test_names_are_paths_through_dictionaries_named_tuples_and_tuples():
  params = {'blocks': {'q': {'w': jnp.zeros((2,))}}}
  opt = optax.adam(1.0).init(params)
  names = digest.digests({'params': params, 'opt': opt, 'list': [jnp.ones(1)]})
  assert set(names) == {
    'params/blocks/q/w',
    'opt/0/count',
    'opt/0/mu/blocks/q/w',
    'opt/0/nu/blocks/q/w',
    'list/0',
  }
  assert digest.digests({}) == {}
  with pytest.raises(ValueError, match='a/b: the name of two leaves'):
    digest.digests({'a/b': jnp.zeros(1), 'a': {'b': jnp.zeros(1)}})
