"""Pictures as a vision transformer reads them: patches of a size that follows from the picture's;
and where they are in a sequence of tokens. As Qwen2-VL's processor does it
(https://arxiv.org/abs/2409.12191)."""

from collections.abc import Sequence
import math

import numpy as np
from PIL import Image

from vargrl.data import image as pictures

ASPECT = 200  # a longer picture is refused


def fit_size(
  height: int, width: int, *, unit: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
  """(height, width) that an image is resized to: multiples of `unit`, about its aspect ratio.

  Its pixels are between min_pixels and max_pixels as far as these multiples allow. ValueError for
  an aspect ratio above MAX_ASPECT."""
  if max(height, width) > MAX_ASPECT * min(height, width):
    raise ValueError(
      f'picture: {height} x {width} pixels found, a ratio of at most {ASPECT} expected'
    )
  y, x = round(height / unit) * unit, round(width / unit) * unit
  if y * x > most:
    ratio = math.sqrt(height * width / most)
    return tuple(max(unit, math.floor(side / ratio / unit) * unit) for side in (height, width))
  if y * x < least:
    ratio = math.sqrt(least / (height * width))
    return tuple(math.ceil(side * ratio / unit) * unit for side in (height, width))
  return y, x


def cut(image: np.ndarray, *, patch=14, merge=2, frames=2, least=56 * 56, most=28 * 28 * 1280):
  """uint8 [y, x, 3] -> (float32 [L, 3 * frames * patch * patch], (h, w)): its h * w = L patches,
  resized and normalised as for CLIP.

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


def grid(h: int, w: int, *, merge=2) -> np.ndarray:
  """int32 [2, h * w]: row and column of the patches, in the order of `cut`."""
  place = np.stack(np.mgrid[:h, :w]).reshape(2, h // merge, merge, w // merge, merge)
  return place.transpose(0, 1, 3, 2, 4).reshape(2, -1).astype(np.int32)


def batch(images: Sequence[np.ndarray], *, length: int, merge=2, **options):
  """Pictures of several sizes -> what vit.Model takes, with padding after the patches of each:
  (patches [I, length, p], positions [2, I, length], seen [I, length] bool, [(h, w)]). options: of
  `cut`."""
  cuts = [cut(image, merge=merge, **options) for image in images]
  for i, (_, (h, w)) in enumerate(cuts):
    if h * w <= length:
      continue
    raise ValueError(
      f'picture {i}: {h} x {w} patches found, at most {length} expected; lower `most`'
    )
  patches = np.zeros((len(cuts), length, cuts[0][0].shape[1]), np.float32)
  places = np.zeros((2, len(cuts), length), np.int32)
  for i, (patch, (h, w)) in enumerate(cuts):
    patches[i, : h * w], places[:, i, : h * w] = patch, grid(h, w, merge=merge)
  sizes = [size for _, size in cuts]
  return (
    patches,
    places,
    np.arange(length)[None] < np.array([h * w for h, w in sizes])[:, None],
    sizes,
  )


def positions(
  tokens: np.ndarray, sizes: Sequence[tuple[int, int]], *, pad: int, merge=2
) -> np.ndarray:
  """int32 [3, S], M-RoPE: by time, row and column of every token.

  A text's go on one by one, the same for all three. A picture, h x w patches of `sizes` for each
  run of tokens `pad` as long as it has embeddings, stands at one time; what follows it begins after
  its longer side."""
  out, start, at = np.zeros((3, len(tokens)), np.int32), 0, 0
  for first, (h, w) in [*runs(tokens, sizes, pad=pad, merge=merge), (len(tokens), (0, 0))]:
    out[:, at:first] = start + np.arange(first - at)
    start += first - at
    y, x = np.mgrid[:h, :w].reshape(2, -1)
    out[:, first : first + h * w] = start + np.stack([0 * y, y, x])
    start, at = start + max(h, w), first + h * w
  return out


def runs(tokens, sizes, *, pad, merge):
  """[(first token, (h, w) embeddings)] of each picture; ValueError unless the tokens `pad` are the
  pictures'.
  """
  sizes = [(h // merge, w // merge) for h, w in sizes]
  at, out, used = np.flatnonzero(np.asarray(tokens) == pad), [], 0
  if len(at) != sum(h * w for h, w in sizes):
    raise ValueError(
      f'pictures: {len(at)} tokens {pad} in the text, {sum(h * w for h, w in sizes)} expected of '
      f'{len(sizes)} pictures of {sizes} embeddings'
    )
  for h, w in sizes:
    if at[used + h * w - 1] - at[used] != h * w - 1:
      raise ValueError(
        f'pictures: the {h * w} tokens {pad} of a picture are not next to each other'
      )
    out.append((int(at[used]), (h, w)))
    used += h * w
  return out


def places(
  tokens: np.ndarray, sizes: Sequence[tuple[int, int]], *, pad: int, length: int, merge=2
) -> np.ndarray:
  """int32 [S]: which embedding stands for a token, -1 where none: of all pictures, `length` patches
  each.
  """
  out = np.full(len(tokens), -1, np.int32)
  for i, (first, (h, w)) in enumerate(runs(tokens, sizes, pad=pad, merge=merge)):
    out[first : first + h * w] = i * (length // merge**2) + np.arange(h * w)
  return out
