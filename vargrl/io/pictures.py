"""Files of pictures: the kinds that are meant, by name.

Pillow knows kinds that start programs: PostScript runs in Ghostscript.
"""

import io

from PIL import Image

KINDS = (
  'PNG',
  'JPEG',
  'MPO',
  'WEBP',
  'GIF',
  'BMP',
  'DIB',
  'TIFF',
  'PPM',
  'JPEG2000',
  'AVIF',
  'TGA',
  'ICO',
)


def open_image(data: bytes) -> Image.Image:
  """The picture of a file's bytes, of one of KINDS; its pixels are read by `load`.

  Raises PIL.UnidentifiedImageError for other kinds, and what Pillow's readers raise."""
  Image.init()
  return Image.open(io.BytesIO(data), formats=[kind for kind in KINDS if kind in Image.OPEN])
