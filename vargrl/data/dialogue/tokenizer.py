"""The tokenizer of dialogues by its name in a config: a checkpoint's folder, or a built-in one."""

from vargrl.data import characters_tokenizer, scenes_tokenizer, text

IMAGE_TOKENS = (
  text.VISION_START,
  text.VISION_END,
  text.VISION_PAD,
  text.GEN_START,
  text.GEN_END,
  text.GEN_PAD,
)
TEXT_TOKENS = (text.END_OF_TEXT, text.TURN_START, text.TURN_END)


def load(tokenizer: str, *, images: bool) -> text.TextTokenizer:
  """The tokenizer of a checkpoint's folder, or that of 'scenes' or 'characters'.

  images: whether dialogues may have any. A folder's tokenizer without tokens for generated images
  gets them then, after its last token. Raises ValueError where it lacks a token that is needed."""
  if tokenizer == 'scenes':
    loaded = scenes_tokenizer.build()
  elif tokenizer == 'characters':
    loaded = characters_tokenizer.build()
  elif images:
    loaded = text.add_image_tokens(text.load(tokenizer))
  else:
    loaded = text.load(tokenizer)
  for token in (*TEXT_TOKENS, *(IMAGE_TOKENS if images else ())):
    text.token_id(loaded, token)
  return loaded


def has_images(data) -> bool:
  """Whether dialogues of a config's section may have images, shown or generated."""
  return bool(data.vision) or bool(data.size)


def image_token_ids(data) -> tuple[tuple[int, ...], int]:
  """((ids of GEN_START, GEN_END and GEN_PAD), size of the vocabulary) of a config's section; () for
  the ids where its dialogues have no images."""
  images = has_images(data)
  loaded = load(data.tokenizer, images=images)
  tokens = (text.GEN_START, text.GEN_END, text.GEN_PAD) if images else ()
  ids = tuple(text.token_id(loaded, token) for token in tokens)
  return ids, loaded.backend.get_vocab_size()
