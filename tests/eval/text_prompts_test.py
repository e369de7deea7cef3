"""Grids of given text features: the same prompts and keys, hence the same images, at every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.eval import prompts, samples
from vargrl.rollout import next_scale
from vargrl.types import Models, Rollout

OPTIONS = dict(path='random', prompts=3, per_prompt=2, seed=0, preset='')


def models(**fields):
  """Draws a grey of the mean of a prompt's features, plus a little by key."""

  def generate(policy, frozen, prompt_P, keys_PR):
    noise_PR = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, maxval=0.1)))(keys_PR)
    t_PRLe = jnp.tanh(prompt_P['text'].mean((1, 2)) * prompt_P['length'])[:, None] / 2 + noise_PR
    return Rollout(t_PRLe[..., None, None], None, None)

  decode = lambda frozen, t_BLe: jnp.broadcast_to(t_BLe[..., None], (len(t_BLe), 4, 4, 3))
  return Models(
    init=None,
    config=None,
    keys=next_scale.keys,
    generate=generate,
    decode=decode,
    **{'given': {'text': ((5, 3), 'float32'), 'length': ((), 'int32')}} | fields,
  )


def test_a_grid_has_a_row_for_each_prompt_and_the_same_images_again():
  evaluate = prompts.make(models(), **OPTIONS)
  ((name, one),) = evaluate({'policy': {}}, {})
  ((_, again),) = evaluate({'policy': {}}, {})
  assert name == 'grid' and one.dtype == np.uint8 and one.ndim == 3
  np.testing.assert_array_equal(one, again)
  h = one.shape[0] // 3
  rows = [one[i * h : (i + 1) * h].astype(int) for i in range(3)]
  assert abs(rows[0] - rows[1]).max() > 5 and abs(rows[1] - rows[2]).max() > 5


def test_what_it_cannot_draw_of_is_told():
  with pytest.raises(ValueError, match='a policy of labels found'):
    prompts.make(models(given={}), **OPTIONS)
  with pytest.raises(ValueError, match='10 records found, at least 11'):
    prompts.make(models(), **OPTIONS | {'prompts': 11})
  with pytest.raises(ValueError, match='no such file'):
    prompts.make(models(), **OPTIONS | {'path': 'x.npz'})
  with pytest.raises(ValueError, match='prompts, per_prompt: 3, 0'):
    prompts.make(models(), **OPTIONS | {'per_prompt': 0})
  with pytest.raises(ValueError, match='eval.prompts draws'):
    samples.make(models(), classes=2, per_class=2, seed=0, preset='')
