"""An event file of TensorBoard, with the method names of clu's writers."""

from collections.abc import Mapping
import pathlib
import time

import numpy as np

FLUSH_SECONDS = 30  # TensorBoard sees what is older than this, or what was flushed


class EventFile:
  """Scalars and images of a run as events in a new file in `folder`.

  It hides the steps >= `first` of earlier files. Errors of the disk and of tensorboardX are raised.
  Not a SummaryWriter: its thread dies when the disk is full, and the eleventh event after that
  waits forever."""

  def __init__(self, folder: pathlib.Path, first: int):
    from tensorboardX import event_file_writer
    from tensorboardX.proto import event_pb2

    folder.mkdir(exist_ok=True)
    # The name has the second only: two runs within one would write over each other.
    suffix = f'.{time.time_ns() % 10**9:09d}'
    self.events = event_file_writer.EventsWriter(str(folder / 'events'), suffix)
    self._flushed = time.monotonic()
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self.events.write_event(event_pb2.Event(step=first, wall_time=time.time(), session_log=start))

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    from tensorboardX import summary

    for name, value in scalars.items():
      self._write(step, summary.scalar(name, value))

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """images: uint8 [y, x, 3]."""
    from tensorboardX import summary

    for name, image in images.items():
      self._write(step, summary.image(name, image, dataformats='HWC'))

  def flush(self) -> None:
    self.events.flush()

  def close(self) -> None:
    self.events.close()

  def _write(self, step, summary):
    from tensorboardX.proto import event_pb2

    self.events.write_event(event_pb2.Event(step=int(step), wall_time=time.time(), summary=summary))
    if time.monotonic() - self._flushed > FLUSH_SECONDS:
      self._flushed = time.monotonic()
      self.events.flush()
