"""The evaluators of a run on its last checkpoint."""

import contextlib

import jax
import numpy as np

from vargrl.commands import inference
from vargrl.eval import run as evaluators
from vargrl.io import paths
from vargrl.parallel import multihost
from vargrl.reporting import images
from vargrl.training import chain

FROZEN = ('tokenizer', 'classifier')  # the frozen weights that evaluators need


def main(flags):
  """Prints the numbers of the evaluators; their images go to eval/ in the folder of the run."""
  name, config = chain.select_run(flags.config, flags.run)
  root = paths.path(flags.workdir)
  run = multihost.on_all_hosts(lambda: inference.build(config, root, FROZEN))
  multihost.check_equal(chain.host_invariants({name: run}, root))
  with jax.set_mesh(run.mesh), contextlib.ExitStack() as stack:
    evals = multihost.on_all_hosts(lambda: evaluators.make(config.evals, run.built))
    stack.callback(evaluators.close, evals)
    params, frozen, step = inference.restore(run, root / name, FROZEN)
    lost = []
    for evaluator in evals:
      for key, value in evaluator.evaluate(params, frozen):
        if multihost.is_first_host():
          try:
            show(root / name, step, evaluator.name, key, value)
          except OSError as e:  # the numbers that are still to come are worth more than a picture
            lost.append(e)
    if lost:
      raise lost[0]


def show(workdir, step, evaluator, key, value):
  """Prints a number, or the path of an image that it writes."""
  path = workdir / 'eval' / f'{evaluator}_{key}_{step:08d}.png'
  if np.ndim(value) == 3:
    images.save_png(path, value)
  print(f'step {step}  {evaluator}/{key:16} {f"{value:.6g}" if np.ndim(value) == 0 else path}')
