"""Images for people: a captioned grid, and files that are whole or not there at all."""

import io
import os
import unicodedata

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vargrl.io import paths, pictures
from vargrl.io import text as io_text

GAP = 6  # white pixels between cells and around them
LINES = 2  # a caption longer than this is cut: it is a label, not a text
FRAME, INK = (228, 228, 231), (39, 39, 42)


def grid(
  images: np.ndarray, captions: list[str] | None = None, *, columns: int, cell: int = 96
) -> np.ndarray:
  """images [N,y,x,3], uint8 or float32 in [-1,1] -> uint8 [Y,X,3], row by row; an image smaller
  than `cell` is enlarged by an integer with nearest neighbour, because a smoothed 16 pixel sample
  looks better than it is."""
  images = np.asarray(images)
  images = pixels(images) if images.dtype == np.float32 else images
  _check(images, captions, columns)
  n, y, x, _ = images.shape
  factor = max(1, round(cell / max(y, x)))
  y, x = y * factor, x * factor
  columns = min(columns, n)
  rows = -(-n // columns)

  font = ImageFont.load_default(size=max(11, min(18, round(x / 9))))
  texts = [[] for _ in range(n)] if captions is None else [_wrap(c, font, x) for c in captions]
  line = sum(font.getmetrics()) + 1
  strip = max(map(len, texts)) * line + (3 if any(texts) else 0)

  size = (GAP + columns * (x + GAP), GAP + rows * (y + strip + GAP))
  canvas = Image.new('RGB', size, 'white')
  draw = ImageDraw.Draw(canvas)
  for i, (image, lines) in enumerate(zip(images, texts, strict=True)):
    left = GAP + i % columns * (x + GAP)
    top = GAP + i // columns * (y + strip + GAP)
    # One pixel outside the image: without it a white image is a hole in a white page.
    draw.rectangle((left - 1, top - 1, left + x, top + y), outline=FRAME)
    canvas.paste(Image.fromarray(image.repeat(factor, 0).repeat(factor, 1)), (left, top))
    for j, text in enumerate(lines):
      draw.text((left, top + y + 3 + j * line), text, fill=INK, font=font)
  return np.asarray(canvas)


def pixels(images: np.ndarray) -> np.ndarray:
  """Floats in [-1,1] -> uint8; what lies outside is clipped."""
  images = np.asarray(images)
  return np.clip(np.round((images.astype(np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def save_png(path: str | os.PathLike, array: np.ndarray) -> None:
  """Writes uint8 [y,x,3] as a PNG, folders included."""
  array = np.asarray(array)
  if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
    raise ValueError(f'{path}: {array.dtype} {list(array.shape)} found, uint8 [y, x, 3] expected')
  data = io.BytesIO()
  Image.fromarray(array).save(data, 'PNG')
  io_text.write_bytes(path, data.getvalue())


def embeddable(path: str | os.PathLike, budget: float) -> tuple[str, bytes, tuple[int, int]]:
  """(kind, bytes, (x, y)) for a page: the file itself, or of a larger one a JPEG of about `budget`
  bytes; x and y are those of the file. Raises OSError, which names it, for what is no image."""
  data = paths.path(path).read_bytes()
  try:
    image = pictures.open_image(data)
    size, kind = image.size, 'png'
    image = image.convert('RGB') if len(data) > budget else image
  except Exception as e:  # Pillow's readers raise what they like
    raise OSError(f'{path}: no picture ({type(e).__name__}: {e})') from e
  while len(data) > budget and min(image.size) > 64:
    out = io.BytesIO()
    image.save(out, 'JPEG', quality=85)
    kind, data = 'jpeg', out.getvalue()
    image = image.resize([round(0.8 * n) for n in image.size], Image.Resampling.LANCZOS)
  return kind, data, size


def _check(images, captions, columns):
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
    found = f'{images.dtype} {list(images.shape)}'
    raise ValueError(f'images: {found} found, uint8 or float32 [N, y, x, 3] with N > 0 expected')
  if captions is not None and len(captions) != len(images):
    raise ValueError(
      f'captions: {len(captions)} found, one for each of {len(images)} images expected'
    )
  if not columns >= 1:
    raise ValueError(f'columns: {columns} found, at least 1 expected')


def _wrap(text, font, width):
  """At most LINES lines no wider than `width` pixels, with an ellipsis where text was left out.
  A caption with a line break keeps its lines: the second is often the reward."""
  # Pillow's own font has few letters beyond ASCII, and an empty box says less than a bare e.
  text = unicodedata.normalize('NFKD', text.replace('ß', 'ss'))
  text = ''.join(c for c in text if not unicodedata.combining(c))
  lines = io_text.split_lines(text.encode('ascii', 'replace').decode())
  if len(lines) == 1:
    lines = _broken(lines[0], font, width)
  ends = [''] * min(len(lines), LINES)
  if len(lines) > LINES:
    ends[-1] = '…'
  return [_fit(line, end, font, width) for line, end in zip(lines, ends, strict=False)]


def _broken(text, font, width):
  lines = ['']
  for word in text.split():
    longer = f'{lines[-1]} {word}'.strip()
    if lines[-1] and font.getlength(longer) > width:
      lines.append(word)
    else:
      lines[-1] = longer
  return lines


def _fit(line, end, font, width):
  while line and font.getlength(line + end) > width:
    line, end = line[:-1].rstrip(), '…'
  return line + end
