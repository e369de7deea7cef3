"""A run of Weights & Biases (https://docs.wandb.ai), with the method names of clu's writers.

Tried: with the package wandb 0.31 in WANDB_MODE=offline, and against a stand-in that records calls.
Not tried: the service itself, with an account: uploads, resuming a run that was uploaded, and what
its pages look like.
"""

from collections.abc import Mapping
import importlib.util
import pathlib
import uuid

import numpy as np

from vargrl.io import text

LOGIN_SECONDS = 30  # a question for a key that nobody answers must not hold up the training
FINISH_SECONDS = 120  # nor must an upload without a network, at the end of a run


def check_installed(project: str) -> None:
  """Raises ValueError where a project was named and the package is missing."""
  spec = importlib.util.find_spec('wandb') if project else None
  if project and (spec is None or spec.origin is None):  # a mere folder wandb/ has no origin
    raise ValueError(f'--wandb: {project!r} found, but no package wandb: pip install wandb')


class WandbRun:
  """Scalars and images of the run in `workdir`, in a project of Weights & Biases.

  The config is that of config.json, the name the last two folders of the workdir. The id of the run
  lies in WORKDIR/wandb_id: a run that continues continues there too, where the points of steps that
  are repeated appear a second time, with the same values. The x axis is the metric `step`. Errors
  of wandb are raised."""

  def __init__(self, workdir: pathlib.Path, project: str):
    import wandb

    self._wandb = wandb
    id_file, config = workdir / 'wandb_id', workdir / 'config.json'
    if not id_file.exists() or not text.read_text(id_file):  # a crash may have left it empty
      text.write_text(id_file, uuid.uuid4().hex[:12])
    self._run = wandb.init(
      project=project,
      id=text.read_text(id_file),
      name='/'.join(workdir.resolve().parts[-2:]),
      config=text.read_own_json(config) or {},
      resume='allow',
      dir=str(workdir),
      settings=wandb.Settings(
        console='off', login_timeout=LOGIN_SECONDS, finish_timeout=FINISH_SECONDS
      ),
    )
    # An image of a step comes before the numbers of the step before, which wandb's own counter of
    # steps, that may not fall, would drop.
    self._run.define_metric('*', step_metric='step')

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    self._run.log({'step': int(step), **scalars})

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """images: uint8 [y, x, 3]."""
    shown = {name: self._wandb.Image(image) for name, image in images.items()}
    self._run.log({'step': int(step), **shown})

  def flush(self) -> None:
    """Nothing: wandb's own process has what was logged."""

  def close(self) -> None:
    """Waits for the upload, at most FINISH_SECONDS."""
    self._run.finish()
