"""Images: encoded bytes to pixels of one size, and pixels to floats."""

import io
import math

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vargrl.io import pictures

CROPS = ('none', 'center', 'random')
# Statistics of CLIP's pixels in [0, 1] (https://github.com/openai/CLIP); BLIP, ImageReward and
# Qwen2-VL have the same.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Unreadable(ValueError):
  """An image that cannot be decoded: empty, truncated, of an unknown format or a float format."""


def decode(data) -> np.ndarray:
  """Decodes an image: uint8 [y, x, 3], upright by its EXIF tag, alpha over white.

  data: the bytes of a file, or pixels, uint8 [y, x, 1 or 3]. Raises Unreadable, and nothing else. A
  flipped byte in a JPEG or WEBP decodes silently to wrong pixels: only a checksum could tell."""
  if isinstance(data, np.ndarray) and data.ndim == 3:
    return np.broadcast_to(data, (*data.shape[:2], 3))
  if not len(data):
    raise Unreadable('picture: 0 bytes')
  try:
    with pictures.open_image(data) as picture:
      picture.load()
      ImageOps.exif_transpose(picture, in_place=True)
      return np.asarray(_to_rgb(picture))
  except UnidentifiedImageError:
    raise Unreadable(
      f'picture of {len(data)} bytes: of no known kind, PNG, JPEG, WEBP or the like expected'
    ) from None
  except Exception as e:  # Pillow's readers raise OSError, SyntaxError, struct.error, IndexError...
    raise Unreadable(f'picture of {len(data)} bytes: {type(e).__name__}: {e}') from e


def encode_png(image: np.ndarray) -> bytes:
  """The bytes of a PNG of uint8 [y, x, 3]."""
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'PNG')
  return file.getvalue()


def _to_rgb(picture: Image.Image) -> Image.Image:
  """The same in mode RGB, alpha over white; ValueError for pixels without a known range."""
  if picture.mode == 'F':
    raise ValueError('floating-point pixels have no fixed range; 8 or 16 bits expected')
  if picture.mode.startswith('I'):
    values = np.asarray(picture).astype(np.int64)
    wide = picture.mode == 'I' and picture.format == 'TIFF'  # 32 bits; in other files 16
    if wide and not 0 <= values.min() <= values.max() <= 65535:
      raise ValueError(
        f'32-bit pixels from {values.min()} to {values.max()} found, 0 to 255 or 0 to 65535 '
        'expected'
      )
    if not wide or values.max() > 255:
      # convert('RGB') clips 16 bits at 255. The high byte is what Pillow keeps of 16-bit colour.
      values = np.clip(values, 0, 65535) >> 8
    return Image.fromarray(values.astype(np.uint8)).convert('RGB')
  if not picture.has_transparency_data:
    return picture if picture.mode == 'RGB' else picture.convert('RGB')
  picture = picture.convert('RGBA')
  white = Image.new('RGBA', picture.size, 'white')
  return Image.alpha_composite(white, picture).convert('RGB')


def resize(
  image: np.ndarray, *, height: int, width: int, resample=Image.Resampling.LANCZOS
) -> np.ndarray:
  """uint8 [height, width, 3] by Pillow's `resample`; the array itself if it has that size."""
  if image.shape[:2] == (height, width):
    return image
  picture = Image.fromarray(np.ascontiguousarray(image))
  return np.asarray(picture.resize((width, height), resample))


def fit(image: np.ndarray, *, size: int, crop: str, rng: np.random.Generator | None) -> np.ndarray:
  """Resizes uint8 [y, x, 3] to [size, size, 3]; crop: one of CROPS.

  'none' changes the aspect ratio. 'center' and 'random' are VAR's: the shorter side becomes
  round(1.125 * size), the aspect ratio is kept, and a square is cut out. Only 'random' draws from
  `rng`. https://github.com/FoundationVision/VAR/blob/main/utils/data.py"""
  if crop == 'none':
    return resize(image, height=size, width=size)
  if crop not in CROPS:
    raise ValueError(f'crop: {crop!r} found, one of {CROPS} expected')
  y, x = image.shape[:2]
  short = round(1.125 * size)
  # The longer side is truncated, not rounded, as torchvision's Resize does.
  y, x = (short, int(short * x / y)) if y <= x else (int(short * y / x), short)
  image = resize(image, height=y, width=x)
  if crop == 'center':
    top, left = round((y - size) / 2), round((x - size) / 2)
  else:
    top, left = rng.integers(y - size + 1), rng.integers(x - size + 1)
  return image[top : top + size, left : left + size]


def cover(image: np.ndarray, *, height: int, width: int) -> np.ndarray:
  """uint8 [height, width, 3]: resized to the least size that covers it, then center-cropped."""
  y, x = image.shape[:2]
  ratio = max(height / y, width / x)
  y, x = max(height, round(y * ratio)), max(width, round(x * ratio))
  image, top, left = resize(image, height=y, width=x), (y - height) // 2, (x - width) // 2
  return image[top : top + height, left : left + width]


def crop_to_aspect(image: np.ndarray, *, height: int, width: int) -> np.ndarray:
  """The center of uint8 [y, x, 3] with the aspect ratio height : width, unresized.

  It is the part of the image that `cover` keeps."""
  y, x = image.shape[:2]
  tall, wide = min(y, max(1, round(x * height / width))), min(x, max(1, round(y * width / height)))
  top, left = (y - tall) // 2, (x - wide) // 2
  return image[top : top + tall, left : left + wide]


def limit_pixels(image: np.ndarray, *, max_pixels: int) -> np.ndarray:
  """uint8 [y, x, 3] of at most `max_pixels` pixels, resized by nearest neighbour if it has more.

  As LLaMA-Factory does, and VARGPT-v1.1 with it:
  https://github.com/hiyouga/LLaMA-Factory/blob/main/src/llamafactory/data/mm_plugin.py"""
  y, x = image.shape[:2]
  if y * x <= max_pixels:
    return image
  ratio = math.sqrt(max_pixels / (y * x))
  return resize(
    image, height=int(y * ratio), width=int(x * ratio), resample=Image.Resampling.NEAREST
  )


def flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """The image, mirrored left to right with probability 0.5."""
  return image[:, ::-1] if rng.random() < 0.5 else image


def to_float(image: np.ndarray) -> np.ndarray:
  """float32 in [-1, 1] of uint8 pixels."""
  return 2 * image.astype(np.float32) / 255 - 1
