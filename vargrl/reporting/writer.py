"""The writer that records metrics and images one step late: JSON lines and PNG files, beside them
TensorBoard and, where it is asked for, Weights & Biases."""

from collections.abc import Collection, Mapping
import io
import json
import math
import os
import re
import warnings

from clu.metrics import Average
import jax
import numpy as np
from PIL import Image

from vargrl.io import paths, text
from vargrl.reporting import tensorboard, wandb_run


def load(workdir: str | os.PathLike) -> list[dict]:
  """The rows of metrics.jsonl, of a run that is finished, running or killed."""
  return [row for _, row in _rows(paths.path(workdir) / 'metrics.jsonl')]


class Writer:
  """Scalars and images to `workdir`, with clu's method names, so that a clu writer drops in.

  A run that continues at step `first` writes the steps >= first again: what an earlier run left of
  them is removed, and the files become those of a run that was never interrupted. Every process
  opens a writer and only the first one writes, so that all of them stop at the same nan.

  allow_nonfinite: metrics that may be nan or infinite. wandb: a project of Weights & Biases, '' for
  none. What goes wrong in TensorBoard or Weights & Biases is said once and stops nothing."""

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    first: int,
    allow_nonfinite: Collection[str] = (),
    wandb: str = '',
  ):
    if '://' in str(workdir):
      raise ValueError(f'workdir: {workdir} found, a local folder expected')
    assert not isinstance(allow_nonfinite, str), allow_nonfinite
    self._workdir = paths.path(workdir)
    self._allowed = frozenset(allow_nonfinite)
    self._pending = None
    self.row = {}  # the last one that `add` has written
    self._files = {}
    self._sinks = {}
    self._active = jax.process_index() == 0
    if not self._active:
      return
    (self._workdir / 'images').mkdir(parents=True, exist_ok=True)
    _purge(self._workdir / 'metrics.jsonl', first)
    (self._workdir / 'metrics.jsonl').touch()
    for path in self._workdir.glob('images/*/*.png'):
      if path.stem.isdigit() and int(path.stem) >= first:
        path.unlink()
    self._open('TensorBoard events', tensorboard.EventFile, self._workdir / 'tensorboard', first)
    if wandb:
      self._open('Weights & Biases logs', wandb_run.WandbRun, self._workdir, wandb)

  def add(self, step: int, values: Mapping[str, Average | jax.Array | float]) -> None:
    """Records `values` when the next step is added, so that the host never waits for the step it
    has just dispatched. The parts of one step are merged into one row."""
    step = int(step)
    if self._pending and step < self._pending[0]:
      raise ValueError(f'step {step} added after step {self._pending[0]}')
    if self._pending and step > self._pending[0]:
      self._write_pending()
    if not self._pending:
      self._pending = (step, {})
    kept = self._pending[1]
    for name, value in values.items():
      _check(name, value)
      if name in kept and not (isinstance(value, Average) and isinstance(kept[name][0], Average)):
        raise ValueError(f'{name}: added twice at step {step}, and only averages merge')
      kept.setdefault(name, []).append(value)

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """One row, now; what waits from an earlier step goes first, so that rows stay in order."""
    if self._pending and self._pending[0] < step:
      self._write_pending()
    for name, value in scalars.items():
      _check(name, value)
    self._write_row(int(step), {name: float(value) for name, value in scalars.items()})

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """uint8 [y,x,3] to images/NAME/STEP.png, the file whole or absent."""
    if not self._active:
      return
    for name, image in images.items():
      image = np.asarray(image)
      if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        found = f'{image.dtype} {list(image.shape)}'
        raise ValueError(f'{name}: {found} found, uint8 [y, x, 3] expected')
      data = io.BytesIO()
      Image.fromarray(image).save(data, 'PNG')
      folder = self._workdir / 'images' / re.sub(r'[^\w-]+', '_', name)
      folder.mkdir(exist_ok=True)
      text.write_bytes(folder / f'{int(step):08d}.png', data.getvalue())
      self._send('write_images', step, {name: image})

  def flush(self) -> None:
    """Everything added is on disk. A loop calls it before it saves a state: a step that is not
    repeated after a restart must have its row by then."""
    self._write_pending()
    for file in self._files.values():
      if not file.closed:
        os.fsync(file.fileno())
    self._send('flush')

  def close(self) -> None:
    try:
      self.flush()
    finally:
      for file in self._files.values():
        file.close()
      self._send('close')
      self._sinks = {}

  def _write_pending(self):
    if not self._pending:
      return
    # Forgotten first: close() in a `finally` must not raise the same nan again.
    (step, values), self._pending = self._pending, None
    row = {}
    for name, parts in jax.device_get(values).items():
      if not isinstance(parts[0], Average):
        row[name] = float(np.asarray(parts[0]).reshape(()))
        continue
      count = sum(float(p.count) for p in parts)
      if count:  # an average of nothing has no value; it is not an error
        row[name] = sum(float(p.total) for p in parts) / count
    self.row = {'step': step} | row
    self._write_row(step, row)

  def _write_row(self, step, values):
    finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
    self._append('metrics.jsonl', {'step': step} | finite)
    self._send('write_scalars', step, {n: v for n, v in finite.items() if v is not None})
    bad = [f'{n}: {v}' for n, v in values.items() if finite[n] is None and n not in self._allowed]
    if bad:
      raise FloatingPointError(f'{", ".join(bad)} found at step {step}, finite values expected')

  def _append(self, name, row):
    if not self._active:
      return
    if name not in self._files:
      self._files[name] = (self._workdir / name).open('ab')
    self._files[name].write(_line(row))
    self._files[name].flush()  # to the system: a killed process loses nothing, fsync can wait

  def _open(self, name, sink, *args):
    """Opens a sink; its import too may fail: tensorboardX and protobuf do not always agree."""
    try:
      self._sinks[name] = sink(*args)
    except Exception as error:
      _warn(name, error)

  def _send(self, method, *args):
    """Calls a method of every sink; one that fails gets nothing more."""
    for name, sink in [*self._sinks.items()]:
      try:
        getattr(sink, method)(*args)
      except Exception as error:
        del self._sinks[name]
        _warn(name, error)


def _warn(name, error):
  warnings.warn(f'no {name} from here on: {type(error).__name__}: {error}', stacklevel=4)


def _check(name, value):
  if name == 'step':
    raise ValueError('step: found as the name of a metric, another name expected')
  parts = (value.total, value.count) if isinstance(value, Average) else (value,)
  for part in parts:
    if np.shape(part):
      raise ValueError(f'{name}: shape {np.shape(part)} found, a scalar or an Average expected')


def _line(row):
  return json.dumps(row, allow_nan=False).encode() + b'\n'


def _rows(path):
  """(line, row) of the complete rows: a kill cuts the last one, a crash leaves zeros anywhere."""
  rows = text.parse_rows(path.read_bytes())
  return [(line, row) for line, row in rows if isinstance(row.get('step'), int)]


def _purge(path, first):
  if path.exists():
    kept = b''.join(line for line, row in _rows(path) if row['step'] < first)
    if kept != path.read_bytes():
      text.write_bytes(path, kept)
