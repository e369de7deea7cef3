"""A trained run without what only training needs, and the weights of its last checkpoint."""

from vargrl.io import paths
from vargrl.parallel import multihost
from vargrl.training import loop, weights
from vargrl.training.run import Run


def build(config, root, frozen=('tokenizer',)) -> Run:
  """The Run of a config without data, evaluators, rewards and reference.

  root: the workdir of the chain. frozen: the frozen weights that are needed."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.init = {k: v for k, v in config.init.items() if k in frozen}
  return Run(config, root, inference_only=True)


def restore(run, workdir, frozen=('tokenizer',)):
  """(params, frozen weights, step) of the last good checkpoint in `workdir`, under the mesh of
  `run`; of the policy the moving average, if the run has one. Raises FileNotFoundError where there
  is no checkpoint, and ValueError where the frozen weights are not those of the training."""
  if workdir != paths.path(run.root) and not (workdir / 'checkpoints').is_dir():
    others = sorted({path.parent.name for path in workdir.parent.glob('*/checkpoints')})
    raise FileNotFoundError(
      f'--run: no checkpoint of {workdir.name!r} in {workdir.parent}'
      + (f', but of {", ".join(others)}' if others else '')
    )
  step, params, meta = weights.load_trained(
    workdir / 'checkpoints', run.shapes.params, item='params'
  )
  frozen_weights = run.frozen(print if multihost.is_first_host() else lambda _: None, only=frozen)
  loop.check_frozen(meta, run.fingerprints(frozen_weights), workdir)
  return params, frozen_weights, step
