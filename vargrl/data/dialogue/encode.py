"""Dialogues as arrays: tokens, the loss mask, and images, both those shown and those generated.

A message marks the place of an image that the user shows by IMAGE, of one that the assistant
generates by IMAGE_GEN. Among the tokens, a shown image has one token text.VISION_PAD for each of
its embeddings; a generated one is a token text.GEN_START, a fixed number of tokens text.GEN_PAD and
a token text.GEN_END. Where letters are shapes, S is the tokens of a dialogue, T the patches of the
images it shows, G the images it generates, [y, x] their pixels."""

from collections.abc import Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from vargrl import contracts
from vargrl.data import image as imaging
from vargrl.data import patches as patching
from vargrl.data import text
from vargrl.data.dialogue import tokenizer as tokenizers
from vargrl.data.dialogue.messages import (
  IMAGE,
  IMAGE_GEN,
  Dialogue,
  image_placeholders,
  to_chat_messages,
  unmark,
)

EMPTY_DIALOGUE = (('user', ''), ('assistant', IMAGE_GEN))
CROPS, LOSS_ON, POSITIONS = (
  ('cover', 'vargpt', 'none'),
  ('assistant', 'all'),
  ('mrope', 'sequential'),
)
MAX_SOURCE_PIXELS = 512 * 512  # what crop 'vargpt' first reduces every image to
VISION_KEYS = ('patch', 'merge', 'frames', 'min_pixels', 'max_pixels')


class DoesNotFit(ValueError):
  """A dialogue without room in a row. It is skipped, as one with an unreadable image is."""


@dataclasses.dataclass(frozen=True)
class DialogueFormat:
  """How dialogues become arrays.

  Attributes:
    tokenizer: of their text.
    patch, merge, frames, min_pixels, max_pixels: of images that are shown, see
      patches.to_patches; patch is 0 where none are.
    size: (y, x) of generated images, () where there are none.
    crop: 'cover' resizes generated images to cover `size` and crops them at the center, as it does
      with shown images of dialogues that generate one. 'vargpt' does as VARGPT-v1.1 did: all images
      lose pixels down to MAX_SOURCE_PIXELS, generated ones are cropped at random. 'none' where no
      image is generated.
  """

  tokenizer: text.TextTokenizer
  patch: int
  merge: int
  frames: int
  min_pixels: int
  max_pixels: int
  size: tuple[int, ...]
  crop: str

  @property
  def text_alone(self):
    """Whether no image is shown or generated."""
    return not self.patch and not self.size

  @property
  def patch_width(self):
    """Numbers in a patch, p."""
    return 3 * self.frames * self.patch**2


class VisionPatches(NamedTuple):
  """Shown images, cut into patches.

  Attributes:
    patches: float32 [T, p].
    position: int32 [2, T], row and column in the image.
    segment: int32 [T], the image of each patch, from 1 on.
    sizes: [(h, w)], patches of each image.
  """

  patches: np.ndarray
  position: np.ndarray
  segment: np.ndarray
  sizes: list


class EncodedDialogue(NamedTuple):
  """A dialogue of S tokens; the last four are None in a prompt. Indices count from its beginning.

  Attributes:
    tokens: int32 [S].
    position: int32 [3, S], by time, row and column.
    image_index: int32 [S], the embedding of `vision` that replaces a token, -1 for none.
    vision: the shown images.
    loss_mask: float32 [S], 1 where predicting this token counts.
    image: float32 [G, y, x, 3] in [-1, 1], the generated images.
    image_start: int32 [G], the index of the first GEN_PAD of each.
    context: [int32 [M_i]] of length G, the indices of the tokens that each is generated from: all
      before its GEN_START but the GEN_PAD of other images.
  """

  tokens: np.ndarray
  position: np.ndarray
  image_index: np.ndarray
  vision: VisionPatches
  loss_mask: Any = None
  image: Any = None
  image_start: Any = None
  context: Any = None


def make_format(*, tokenizer: str, vision, size: Sequence[int], crop: str) -> DialogueFormat:
  """The DialogueFormat of a config's section `data`.

  tokenizer: see tokenizer.load. vision: {one of VISION_KEYS: int}, {} where no image is shown.
  size: () where none is generated. Raises ValueError for unknown keys, for a crop that is none of
  CROPS and for a size that does not fit it."""
  contracts.check_keys('data.vision', vision, VISION_KEYS if vision else ())
  if crop not in CROPS:
    raise ValueError(f'data.crop: {crop!r} found, one of {CROPS} expected')
  size = tuple(size)
  if len(size) not in (0, 2) or (size and crop == 'none'):
    raise ValueError(f"data.size: {size} found with crop {crop!r}, (y, x), or () with 'none'")
  if crop == 'vargpt' and len(set(size)) > 1:
    y, x = size
    raise ValueError(f"data.size: {y} x {x} found with crop 'vargpt', a square expected")
  loaded = tokenizers.load(tokenizer, images=bool(vision) or bool(size))
  options = dict(vision) or dict(patch=0, merge=1, frames=0, min_pixels=0, max_pixels=0)
  return DialogueFormat(tokenizer=loaded, size=size, crop=crop, **options)


def check_images(format: DialogueFormat, places):
  """Raises DoesNotFit for images, [IMAGE or IMAGE_GEN], where there are none of their kind."""
  if IMAGE in places and not format.patch:
    raise DoesNotFit(f'{IMAGE} found, text alone expected with data.vision {{}}')
  if IMAGE_GEN in places and not format.size:
    raise DoesNotFit(f'{IMAGE_GEN} found, text alone expected with data.size ()')


def image_token(format: DialogueFormat, token: str) -> int:
  """The id of a token of images; -1, which no token is, in text alone."""
  return -1 if format.text_alone else text.token_id(format.tokenizer, token)


def load_image(source) -> np.ndarray:
  """uint8 [y, x, 3] of an image of a Dialogue; raises image.Unreadable, which names its path."""
  if not isinstance(source, str):
    return imaging.decode(source)
  try:
    with open(source, 'rb') as file:
      return imaging.decode(file.read())
  except OSError as e:
    raise imaging.Unreadable(f'picture {source}: {e.strerror or e}, a file expected') from e
  except imaging.Unreadable as e:
    raise imaging.Unreadable(f'{source}: {e}') from e


def load_target(format: DialogueFormat, source, seed: int) -> np.ndarray:
  """float32 [y, x, 3] in [-1, 1] of an image to generate; `seed` is that of its crop."""
  image, (y, x) = load_image(source), format.size
  if format.crop == 'cover':
    return imaging.to_float(imaging.cover(image, height=y, width=x))
  image = imaging.limit_pixels(image, max_pixels=MAX_SOURCE_PIXELS)
  rng = np.random.default_rng(seed)
  return imaging.to_float(imaging.fit(image, size=y, crop='random', rng=rng))


def encode_images(format: DialogueFormat, sources, *, framed: bool) -> VisionPatches:
  """The VisionPatches of shown images.

  framed: crop them at the center to the aspect ratio of generated images, as the sources of edits
  are. Raises image.Unreadable, and DoesNotFit for an image that is too long."""
  cuts = []
  for source in sources:
    image = load_image(source)
    if format.crop == 'vargpt':
      image = imaging.limit_pixels(image, max_pixels=MAX_SOURCE_PIXELS)
    elif framed:
      y, x = format.size
      image = imaging.crop_to_aspect(image, height=y, width=x)
    try:
      options = {key: getattr(format, key) for key in VISION_KEYS}
      cuts.append(patching.to_patches(image, **options))
    except ValueError as e:
      raise DoesNotFit(str(e)) from e
  sizes = [size for _, size in cuts]
  positions = [patching.patch_positions(h, w, merge=format.merge) for h, w in sizes]
  return VisionPatches(
    np.concatenate([np.zeros((0, format.patch_width), np.float32), *(x for x, _ in cuts)]),
    np.concatenate([np.zeros((2, 0), np.int32), *positions], 1),
    np.repeat(np.arange(len(cuts)) + 1, [h * w for h, w in sizes]).astype(np.int32),
    sizes,
  )


def encode(
  format: DialogueFormat,
  dialogue: Dialogue,
  rng: np.random.Generator,
  *,
  image_tokens: int,
  loss_on: str,
  positions: str,
  prompt_drop: float,
) -> EncodedDialogue:
  """The EncodedDialogue to train on, up to the end of the assistant's last answer.

  image_tokens: how many GEN_PAD a generated image has. For the other options see train.make. Raises
  ValueError for a text that has tokens of images in it, image.Unreadable and DoesNotFit."""
  messages, images = dialogue.messages, dialogue.images
  kinds = image_placeholders(messages)
  check_images(format, kinds)
  targets = [image for image, kind in zip(images, kinds, strict=True) if kind == IMAGE_GEN]
  if targets and rng.random() < prompt_drop:
    targets = [targets[rng.integers(len(targets))]]
    messages, images, kinds = EMPTY_DIALOGUE, targets, [IMAGE_GEN]
  seed = int(rng.integers(2**63))
  shown = [image for image, kind in zip(images, kinds) if kind == IMAGE]
  vision = encode_images(format, shown, framed=bool(targets))
  tokens, mask = encode_text(format, messages)
  pad = image_token(format, text.GEN_PAD)
  repeats = token_repeats(format, tokens, vision) + (image_tokens - 1) * (tokens == pad)
  image_start = (np.cumsum(repeats) - repeats)[tokens == pad].astype(np.int32)
  tokens, mask = np.repeat(tokens, repeats), np.repeat(mask, repeats)
  mask = loss_mask(format, tokens, mask, everything=bool(targets) and loss_on == 'all')
  image = [load_target(format, target, seed) for target in targets]
  position, image_index = mrope_positions(format, tokens, vision)
  if positions == 'sequential':
    position = np.tile(np.arange(len(tokens), dtype=position.dtype), (3, 1))
  return EncodedDialogue(
    tokens,
    position,
    image_index,
    vision,
    mask,
    np.stack(image) if image else np.zeros((0, *format.size, 3), np.float32),
    image_start,
    [np.flatnonzero(tokens[: start - 1] != pad).astype(np.int32) for start in image_start],
  )


def encode_text(format: DialogueFormat, messages):
  """(tokens int32 [L], answer_mask bool [L]) of messages up to the end of the last answer, with one
  VISION_PAD or GEN_PAD for each image.

  Raises ValueError for a text that has tokens of images in it, and what the template does."""
  places = image_placeholders(messages)
  tokens, mask = text.encode_dialogue(
    format.tokenizer, to_chat_messages(messages), counts=[1] * places.count(IMAGE)
  )
  if not mask.any():
    raise ValueError('dialogue: no token of an answer found by the chat template, some expected')
  tokens, mask = (x[: np.flatnonzero(mask)[-1] + 1] for x in (tokens, mask))
  found, wanted = int((tokens == image_token(format, text.GEN_PAD)).sum()), places.count(IMAGE_GEN)
  if found != wanted:
    raise ValueError(
      f'dialogue: {found} tokens {text.GEN_PAD} found, one for each of {wanted} {IMAGE_GEN} '
      'expected'
    )
  return tokens, mask


def encode_prompt_text(format: DialogueFormat, messages) -> np.ndarray:
  """int32 [L]: the tokens of messages up to where the assistant begins its answer, with one
  VISION_PAD for each image; raises like `encode_text`."""
  places = image_placeholders(messages)
  return text.encode_prompt(
    format.tokenizer, to_chat_messages(messages), counts=[1] * places.count(IMAGE)
  )


def check_text(format: DialogueFormat, dialogue: Dialogue, *, prompt: bool):
  """Raises for the text of a dialogue what `encode` would, or of a prompt what `encode_prompt`
  would; its images are not read."""
  messages = dialogue.messages[:-1] if prompt else dialogue.messages
  check_images(format, image_placeholders(dialogue.messages))
  if not prompt:
    encode_text(format, messages)
  elif IMAGE_GEN not in image_placeholders(messages):  # which fits no prompt
    encode_prompt_text(format, messages)


def loss_mask(format, tokens, answer_mask, *, everything):
  """float32 [S]: 1 where predicting a token counts, never for the first one, nor for GEN_PAD.

  everything: for all others; otherwise for the assistant's answers (answer_mask, bool [S]), GEN_END
  left out, which always follows the last GEN_PAD."""
  if everything:
    mask = np.ones(len(tokens), bool)
  else:
    mask = answer_mask & (tokens != image_token(format, text.GEN_END))
  mask &= tokens != image_token(format, text.GEN_PAD)
  mask[0] = False
  return mask.astype(np.float32)


def token_repeats(format, tokens, vision):
  """int64 [S]: how often each token is repeated, a VISION_PAD once for each embedding."""
  repeats = np.ones(len(tokens), np.int64)
  at = tokens == image_token(format, text.VISION_PAD)
  repeats[at] = [h * w // format.merge**2 for h, w in vision.sizes]
  return repeats


def mrope_positions(format, tokens, vision):
  """(position int32 [3, S], image_index int32 [S]) of tokens with repeated VISION_PAD."""
  pad = image_token(format, text.VISION_PAD)
  image_index = np.full(len(tokens), -1, np.int32)
  image_index[tokens == pad] = np.arange((tokens == pad).sum())
  position = patching.mrope_positions(tokens, vision.sizes, pad=pad, merge=format.merge)
  return position, image_index


def encode_prompt(
  format: DialogueFormat, dialogue: Dialogue, *, prefill_image: bool
) -> EncodedDialogue:
  """The EncodedDialogue of what is before the assistant's last answer.

  prefill_image: and of that answer up to its first GEN_START, included. Raises DoesNotFit for an
  IMAGE_GEN before the last answer, and where there is none in it that could be prefilled."""
  *before, (_, answer) = dialogue.messages
  kinds = image_placeholders(before)
  check_images(format, image_placeholders(dialogue.messages))
  if IMAGE_GEN in kinds:
    raise DoesNotFit(f'prompt: {IMAGE_GEN} before the last answer found, which no prompt can hold')
  if prefill_image and IMAGE_GEN not in answer:
    raise DoesNotFit(f'prompt: no {IMAGE_GEN} in the last answer found, one expected')
  vision = encode_images(format, dialogue.images[: len(kinds)], framed=IMAGE_GEN in answer)
  tokens = encode_prompt_text(format, before)
  tokens = np.repeat(tokens, token_repeats(format, tokens, vision))
  if prefill_image:
    tokens = np.concatenate([tokens, answer_prefix(format, answer)])
  return EncodedDialogue(tokens, *mrope_positions(format, tokens, vision), vision)


def answer_prefix(format: DialogueFormat, answer: str) -> np.ndarray:
  """int32 [S]: the tokens of an answer up to its first GEN_START, included."""
  return text.encode(format.tokenizer, unmark(answer.split(IMAGE_GEN)[0]) + text.GEN_START)
