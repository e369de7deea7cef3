"""What a host reward sees. Imports neither jax nor flax: a worker process must not touch a chip."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class HostSamples:
  """types.Samples of B rows in numpy and Python values.

  image_Byxc: uint8 [B, y, x, 3], or None for rows of text alone. texts: {name of a segment: B
  strings}, what each row said in that segment. record: B dicts, each row's prompt as the data has
  it: 'prompt' (a string, where the data has one), 'label' (an int) and the record's other metadata.
  group: int [B], ascending, which prompt each row answers; the rows of one prompt lie together."""

  image_Byxc: Any
  texts: dict
  record: list
  group: Any

  def rows(self, start, stop):
    """The rows start .. stop - 1."""
    return HostSamples(
      None if self.image_Byxc is None else self.image_Byxc[start:stop],
      {name: said[start:stop] for name, said in self.texts.items()},
      self.record[start:stop],
      self.group[start:stop],
    )

  def check(self):
    """Raises ValueError unless all fields are of the same B rows."""
    B, image = len(self.record), self.image_Byxc
    if image is not None and (image.dtype != np.uint8 or image.ndim != 4 or len(image) != B):
      raise ValueError(
        f'samples: pictures {image.dtype} {image.shape} and {B} records found, uint8 '
        f'(B, y, x, 3) and B records expected'
      )
    for name, said in {**self.texts, 'group': self.group}.items():
      if len(said) != B:
        raise ValueError(
          f'samples: {len(said)} of {name!r} and {B} records found, B of each expected'
        )
