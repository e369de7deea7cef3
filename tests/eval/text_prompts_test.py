"""Grids of given text features: the same prompts and keys, hence the same images, at every step."""

import fake_run
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.eval import prompts, samples

OPTIONS = dict(path='random', prompts=3, per_prompt=2, seed=0, preset='')


def built(**fields):
  """Draws a grey of the mean of a prompt's features, plus a little by key."""

  def generate(policy, frozen, prompt_P, key_P, keys_PR):
    noise_PR = jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, maxval=0.1)))(keys_PR)
    t_PRLe = jnp.tanh(prompt_P['text'].mean((1, 2)) * prompt_P['length'])[:, None] / 2 + noise_PR
    return fake_run.rollout(t_PRLe[..., None, None])

  decode = lambda frozen, t_BLe, prompts, keys_B: jnp.broadcast_to(
    t_BLe[..., None], (len(t_BLe), 4, 4, 3)
  )
  features = {'text': ((5, 3), 'float32'), 'length': ((), 'int32')}
  known = dict(config=dict(classes=0), generate=generate, features=features)
  return fake_run.built(fake_run.policy(**known | fields), decode=decode)


def test_a_grid_has_a_row_for_each_prompt_and_the_same_images_again():
  evaluate = prompts.make(built(), **OPTIONS)
  ((name, one),) = evaluate({'policy': {}}, {})
  ((_, again),) = evaluate({'policy': {}}, {})
  assert name == 'grid' and one.dtype == np.uint8 and one.ndim == 3
  np.testing.assert_array_equal(one, again)
  h = one.shape[0] // 3
  rows = [one[i * h : (i + 1) * h].astype(int) for i in range(3)]
  assert abs(rows[0] - rows[1]).max() > 5 and abs(rows[1] - rows[2]).max() > 5


def test_what_it_cannot_draw_of_is_told():
  with pytest.raises(ValueError, match='a policy of labels found'):
    prompts.make(built(features={}), **OPTIONS)
  with pytest.raises(ValueError, match='10 records found, at least 11'):
    prompts.make(built(), **OPTIONS | {'prompts': 11})
  with pytest.raises(ValueError, match='no such file'):
    prompts.make(built(), **OPTIONS | {'path': 'x.npz'})
  with pytest.raises(ValueError, match='prompts, per_prompt: 3, 0'):
    prompts.make(built(), **OPTIONS | {'per_prompt': 0})
  with pytest.raises(ValueError, match='eval.prompts draws'):
    samples.make(built(), classes=2, per_class=2, seed=0, preset='')
