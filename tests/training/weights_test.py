"""The seeds of weights: a run's models are drawn with keys of their own."""

import jax
import numpy as np

from vargrl.training import weights


def test_weights_of_names_that_are_anagrams_have_other_keys():
  keys = [
    tuple(np.asarray(jax.random.key_data(weights.key_of(0, name))))
    for name in ('policy', 'critic', 'tokenizer', 'reference', 'abc', 'bca')
  ]
  assert len(set(keys)) == len(keys)


def test_a_key_is_the_same_in_every_process():
  """crc32 of 'policy' is 0xf07d0516 wherever it is computed; hash() is not."""
  expected = jax.random.fold_in(jax.random.key(3), 0xF07D0516)
  assert weights.key_of(3, 'policy') == expected
