"""A checkpoint that an earlier version has written is read as it was. To write one: python
store_old_test.py FOLDER.
"""

import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.checkpoint import store as stores

OLD = pathlib.Path(__file__).parents[1] / 'golden' / 'checkpoint_1'
DATA, META = (
  {'stream': 'labels', 'step': 7, 'seen': 56, 'skipped': 0},
  {'config': '{"seed": 0}', 'frozen': {}},
)


def state():
  """By a rule, so that the file is compared with more than itself."""
  w = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
  params = {'policy': {'blocks': {'q': {'w': w / 7}}, 'half': (w[0] / 3).astype(jnp.bfloat16)}}
  return jax.tree.map(
    jnp.asarray, {'params': params, 'opt': [{'count': np.int32(3), 'mu': w * 0.5}, ()]}
  )


def test_it_restores_and_its_parameters_load(tmp_path):
  shutil.copytree(OLD, tmp_path / 'checkpoints')
  store = stores.Store(tmp_path / 'checkpoints', every_steps=1, max_to_keep=1)
  step, found, data, meta = store.restore(jax.eval_shape(state))
  store.close()
  assert (step, data, meta) == (7, DATA, META)
  jax.tree.map(np.testing.assert_array_equal, found, state())
  _, params, _ = stores.load(OLD, jax.eval_shape(state)['params'], item='params')
  jax.tree.map(np.testing.assert_array_equal, params, state()['params'])


if __name__ == '__main__':
  store = stores.Store(sys.argv[1], every_steps=1, max_to_keep=1)
  store.save(7, state(), DATA, META, force=True)
  store.close()
