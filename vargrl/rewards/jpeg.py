"""Compressibility: the size of the image as a JPEG file (https://arxiv.org/abs/2305.13301)."""

import io

from PIL import Image

from vargrl.io import numbers

HOST = True


def check(*, quality, sign):
  """ValueError for a quality that no file has."""
  numbers.check_number('quality', quality, whole=True)
  numbers.check_number('sign', sign)


def reward(samples, *, quality, sign):
  """r_B = -sign * kilobytes (of 1000): sign=1 for images that compress well, -1 for the others."""
  return [-sign * len(encode(image_yxc, quality)) / 1000 for image_yxc in samples.image_Byxc]


def encode(image_yxc, quality) -> bytes:
  """The JPEG file, with Pillow's defaults for all but the quality (so chroma is 4:2:0)."""
  file = io.BytesIO()
  Image.fromarray(image_yxc).save(file, 'JPEG', quality=quality)
  return file.getvalue()
