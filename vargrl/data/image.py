"""Pictures: encoded bytes to pixels of one size, and pixels to floats and back."""

import io
import math

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

CROPS = ('none', 'center', 'random')
# Of CLIP's pixels in [0, 1] (https://github.com/openai/CLIP); BLIP, ImageReward and Qwen2-VL have
# the same.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Unreadable(ValueError):
  """The bytes are not a whole picture: empty, truncated, of another kind, or without a range."""


def decode(data) -> np.ndarray:
  """uint8 [y, x, 3], upright (EXIF), alpha over white; raises Unreadable, and nothing else.

  `data` is an encoded picture (bytes) or decoded pixels, uint8 [y, x, 1 or 3]. A flipped byte in a
  JPEG or WEBP decodes silently to wrong pixels: only a checksum could tell.
  """
  if isinstance(data, np.ndarray) and data.ndim == 3:
    return np.broadcast_to(data, (*data.shape[:2], 3))
  if not len(data):
    raise Unreadable('picture: 0 bytes')
  try:
    with Image.open(io.BytesIO(data)) as picture:
      picture.load()
      ImageOps.exif_transpose(picture, in_place=True)
      return np.asarray(_rgb(picture))
  except UnidentifiedImageError:
    raise Unreadable(
      f'picture of {len(data)} bytes: of no known kind, PNG, JPEG, WEBP or the like expected'
    ) from None
  except Exception as e:  # Pillow's readers raise OSError, SyntaxError, struct.error, IndexError...
    raise Unreadable(f'picture of {len(data)} bytes: {type(e).__name__}: {e}') from e


def png(image: np.ndarray) -> bytes:
  """The file of uint8 [y, x, 3]."""
  file = io.BytesIO()
  Image.fromarray(image).save(file, 'PNG')
  return file.getvalue()


def _rgb(picture: Image.Image) -> Image.Image:
  if picture.mode == 'F':
    raise ValueError('floating-point pixels have no fixed range; 8 or 16 bits expected')
  if picture.mode.startswith('I'):
    # convert('RGB') clips 16 bits at 255. The high byte is what Pillow keeps of 16-bit colour.
    high = np.clip(np.asarray(picture).astype(np.int64), 0, 65535) >> 8
    return Image.fromarray(high.astype(np.uint8)).convert('RGB')
  if not picture.has_transparency_data:
    return picture if picture.mode == 'RGB' else picture.convert('RGB')
  picture = picture.convert('RGBA')
  white = Image.new('RGBA', picture.size, 'white')
  return Image.alpha_composite(white, picture).convert('RGB')


def resize(
  image: np.ndarray, *, height: int, width: int, how=Image.Resampling.LANCZOS
) -> np.ndarray:
  """uint8 [height, width, 3] by Lanczos or `how`; the same array if it has that size already."""
  if image.shape[:2] == (height, width):
    return image
  picture = Image.fromarray(np.ascontiguousarray(image))
  return np.asarray(picture.resize((width, height), how))


def fit(image: np.ndarray, *, size: int, crop: str, rng: np.random.Generator | None) -> np.ndarray:
  """uint8 [size, size, 3]: squeezed to it ('none'), or cropped at the 'center' or at 'random'.

  A crop is VAR's: the shorter side becomes round(1.125 * size), the aspect ratio is kept.
  https://github.com/FoundationVision/VAR/blob/main/utils/data.py. Only 'random' draws from `rng`.
  """
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

  https://github.com/hiyouga/LLaMA-Factory/blob/main/src/llamafactory/data/mm_plugin.py
  """
  y, x = image.shape[:2]
  if y * x <= most:
    return image
  ratio = math.sqrt(most / (y * x))
  return resize(image, height=int(y * ratio), width=int(x * ratio), how=Image.Resampling.NEAREST)


def flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """The image, mirrored left to right with probability one half."""
  return image[:, ::-1] if rng.random() < 0.5 else image


def to_float(image: np.ndarray) -> np.ndarray:
  """float32 in [-1, 1] of uint8 pixels."""
  return 2 * image.astype(np.float32) / 255 - 1
