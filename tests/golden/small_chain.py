"""A workdir of the chain of experiments/scenes.py at its smallest, as its last run leaves it;
nothing is trained.
"""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import random_weights

from vargrl.checkpoint import store
from vargrl.commands import experiment
from vargrl.training import assemble
from vargrl.types import State

SCENES = 'experiments/scenes.py:smoke'
# What the language model says whatever was said: START, END, and two words of scenes.
SAID = {6: 0.4, 2: 0.2, 100: 0.2, 101: 0.2}


def loud(lm):
  """Its weights, changed so that it says SAID: one coordinate is large and the same everywhere, and
  all that the head reads; the others are what pictures are drawn from."""
  tokens, head = (5 * lm['tokens']).at[:, 0].set(20.0), jnp.zeros_like(lm['head']['w'])
  chances = np.full(head.shape[1], 1e-12)
  for token, chance in SAID.items():
    chances[token] = chance
  return lm | {
    'tokens': tokens,
    'head': {'w': head.at[0].set(np.log(chances) / len(head) ** 0.5)},
    'norm': {'scale': jnp.full_like(lm['norm']['scale'], 5.0).at[0].set(1.0)},
  }


@pytest.fixture(scope='session')
def spoken(tmp_path_factory):
  """chain: its config. workdir, with a checkpoint of the tokenizer and one of the last run, at step
  7, of a policy that says SAID. weights: {'policy', 'tokenizer'}."""
  root, whole = tmp_path_factory.mktemp('chain'), experiment.load(SCENES)
  config = whole.dpo
  built = assemble.build(config)
  shapes = lambda init: nn.unbox(jax.eval_shape(init, jax.random.key(0)))
  policy = random_weights(shapes(built.trained['policy']), 1)
  for bridge in ('into', 'out'):
    policy[bridge]['fc2']['b'] = policy[bridge]['fc2']['b'].at[0].set(20.0 * (bridge == 'into'))
  weights = {
    'policy': policy | {'lm': loud(policy['lm'])},
    'tokenizer': random_weights(shapes(built.frozen['tokenizer']), 2),
  }
  for run, name in (('tokenizer', 'tokenizer'), ('dpo', 'policy')):
    keep = store.Store(root / run / 'checkpoints', every_steps=1, max_to_keep=1)
    keep.save(7, State({'policy': weights[name]}, {'count': jnp.zeros((), jnp.int32)}), None, {})
    keep.close()
  return types.SimpleNamespace(chain=whole, workdir=root, weights=weights)
