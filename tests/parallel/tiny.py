"""A GRPO run that is quick on many devices: the smoke variant of an experiment, without its
evaluators.
"""

import importlib.util
import pathlib

FILE = pathlib.Path(__file__).parents[2] / 'experiments' / 'grpo_var_d16_jpeg.py'


def get_config(arg=''):
  spec = importlib.util.spec_from_file_location('experiment', FILE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config('smoke')
  c.steps, c.save_every, c.show_every, c.keep, c.evals = 8, 1000, 1, 3, {}
  c.mesh, c.max_replicated_share = (('data', 1), ('fsdp', -1), ('tensor', 1)), 0.1
  c.policy.dtype, c.policy.remat = 'float32', 'none'
  c.objective.collect.rollouts, c.objective.collect.old_logp = 2, 'sampler'
  c.objective.collect.rewards = dict(brightness=dict(name='hosts_reward.brightness', weight=1.0))
  c.rollout.image.guidance, c.rollout.image.logp_of = 1.0, 'cond'
  c.reference, c.objective.loss.penalty = False, 0.0
  # A large eps keeps Adam from making a full step of a gradient that is rounding alone, as those of
  # biases are.
  c.optim.peak, c.optim.eps = 1e-2, 1e-2
  return c
