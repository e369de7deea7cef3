"""Images as patches for a vision transformer, and the positions of their embeddings among tokens.

As Qwen2-VL's processor does it (https://arxiv.org/abs/2409.12191): an image keeps its aspect ratio,
and merge x merge patches become one embedding."""

from collections.abc import Sequence
import math

import numpy as np
from PIL import Image

from vargrl.data import image as imaging

MAX_ASPECT = 200  # longer side / shorter side


def fit_size(
  height: int, width: int, *, unit: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
  """(height, width) that an image is resized to: multiples of `unit`, about its aspect ratio.

  Its pixels are between min_pixels and max_pixels as far as these multiples allow. ValueError for
  an aspect ratio above MAX_ASPECT."""
  if max(height, width) > MAX_ASPECT * min(height, width):
    raise ValueError(
      f'image: {height} x {width} pixels found, a ratio of sides of at most {MAX_ASPECT} expected'
    )
  y, x = round(height / unit) * unit, round(width / unit) * unit
  if y * x > max_pixels:
    ratio = math.sqrt(height * width / max_pixels)
    return tuple(max(unit, math.floor(side / ratio / unit) * unit) for side in (height, width))
  if y * x < min_pixels:
    ratio = math.sqrt(min_pixels / (height * width))
    return tuple(math.ceil(side * ratio / unit) * unit for side in (height, width))
  return y, x


def to_patches(
  image: np.ndarray,
  *,
  patch=14,
  merge=2,
  frames=2,
  min_pixels=56 * 56,
  max_pixels=28 * 28 * 1280,
):
  """Cuts an image uint8 [y, x, 3] into (patches float32 [L, p], (h, w)), L = h * w.

  The image is resized, see `fit_size`, and normalised as for CLIP. A patch is patch x patch pixels,
  p = 3 * frames * patch ** 2 numbers in the order channel, frame (all the same), row, column. The
  merge x merge patches of an embedding follow one another."""
  y, x = fit_size(
    *image.shape[:2], unit=patch * merge, min_pixels=min_pixels, max_pixels=max_pixels
  )
  image = imaging.resize(image, height=y, width=x, resample=Image.Resampling.BICUBIC)
  mean, std = (np.asarray(value, np.float32) for value in (imaging.MEAN, imaging.STD))
  pixels = ((image.astype(np.float64) / 255).astype(np.float32) - mean) / std
  h, w = y // patch, x // patch
  pixels = pixels.reshape(h // merge, merge, patch, w // merge, merge, patch, 3).transpose(
    0, 3, 1, 4, 6, 2, 5
  )
  pixels = np.broadcast_to(pixels[..., None, :, :], (*pixels.shape[:5], frames, patch, patch))
  return pixels.reshape(h * w, -1), (h, w)


def patch_positions(h: int, w: int, *, merge=2) -> np.ndarray:
  """int32 [2, h * w]: row and column of each patch of an image, in the order of `to_patches`."""
  position = np.stack(np.mgrid[:h, :w]).reshape(2, h // merge, merge, w // merge, merge)
  return position.transpose(0, 1, 3, 2, 4).reshape(2, -1).astype(np.int32)


def batch_images(images: Sequence[np.ndarray], *, length: int, merge=2, **options):
  """I images of any sizes as arrays of one shape, each padded to `length` patches.

  Returns (patches float32 [I, length, p], positions int32 [2, I, length], valid bool [I, length],
  [(h, w)]), which vit.Model takes. options: those of `to_patches`. ValueError for an image of more
  patches."""
  cuts = [to_patches(image, merge=merge, **options) for image in images]
  for i, (_, (h, w)) in enumerate(cuts):
    if h * w > length:
      raise ValueError(
        f'image {i}: {h} x {w} patches found, at most {length} expected; lower `max_pixels`'
      )
  patches = np.zeros((len(cuts), length, cuts[0][0].shape[1]), np.float32)
  positions = np.zeros((2, len(cuts), length), np.int32)
  for i, (patch, (h, w)) in enumerate(cuts):
    patches[i, : h * w] = patch
    positions[:, i, : h * w] = patch_positions(h, w, merge=merge)
  sizes = [size for _, size in cuts]
  valid = np.arange(length)[None] < np.array([h * w for h, w in sizes])[:, None]
  return patches, positions, valid, sizes


def mrope_positions(
  tokens: np.ndarray, sizes: Sequence[tuple[int, int]], *, pad: int, merge=2
) -> np.ndarray:
  """int32 [3, S], M-RoPE: the time, row and column of each of S tokens.

  Tokens of text count up, all three alike. An image of h x w patches in `sizes` has one token `pad`
  for each embedding; all stand at one time, and what follows starts after its longer side."""
  out, start, at = np.zeros((3, len(tokens)), np.int32), 0, 0
  for first, (h, w) in [*image_runs(tokens, sizes, pad=pad, merge=merge), (len(tokens), (0, 0))]:
    out[:, at:first] = start + np.arange(first - at)
    start += first - at
    y, x = np.mgrid[:h, :w].reshape(2, -1)
    out[:, first : first + h * w] = start + np.stack([0 * y, y, x])
    start, at = start + max(h, w), first + h * w
  return out


def image_runs(tokens, sizes, *, pad, merge):
  """[(index of its first token, (h, w) in embeddings)] of each image; sizes: (h, w) in patches.

  ValueError unless each image has a run of as many tokens `pad` as it has embeddings."""
  sizes = [(h // merge, w // merge) for h, w in sizes]
  at, out, used = np.flatnonzero(np.asarray(tokens) == pad), [], 0
  if len(at) != sum(h * w for h, w in sizes):
    raise ValueError(
      f'images: {len(at)} tokens {pad} in the text found, {sum(h * w for h, w in sizes)} expected '
      f'of {len(sizes)} images of {sizes} embeddings'
    )
  for h, w in sizes:
    if at[used + h * w - 1] - at[used] != h * w - 1:
      raise ValueError(f'images: the {h * w} tokens {pad} of an image are not next to each other')
    out.append((int(at[used]), (h, w)))
    used += h * w
  return out


def image_index(
  tokens: np.ndarray, sizes: Sequence[tuple[int, int]], *, pad: int, length: int, merge=2
) -> np.ndarray:
  """int32 [S]: the index of the embedding that replaces each of S tokens, -1 for none.

  Embeddings are counted over all images, of which each has room for `length` patches."""
  out = np.full(len(tokens), -1, np.int32)
  for i, (first, (h, w)) in enumerate(image_runs(tokens, sizes, pad=pad, merge=merge)):
    out[first : first + h * w] = i * (length // merge**2) + np.arange(h * w)
  return out
