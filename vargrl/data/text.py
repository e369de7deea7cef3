"""The tokenizer and the chat template of a language model: text and dialogues to tokens and back.

Both are read from the files that a checkpoint comes with."""

from collections.abc import Sequence
import dataclasses
import shutil

import numpy as np

from vargrl.data import chat_template, tokenizer_files
from vargrl.io import paths
from vargrl.io import text as io_text

# Letters with the sign before them, single digits, runs of other signs, white space.
# https://github.com/QwenLM/Qwen/blob/main/tokenization_note.md
SPLIT_PATTERN = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
  r'|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
# Special tokens of Qwen2 and Qwen2-VL.
TURN_START, TURN_END, END_OF_TEXT = '<|im_start|>', '<|im_end|>', '<|endoftext|>'
VISION_PAD, VISION_START, VISION_END = '<|image_pad|>', '<|vision_start|>', '<|vision_end|>'
# What VARGPT-v1.1 adds, in this order: around a generated image, and for each of its tokens.
GEN_START, GEN_END, GEN_PAD = '<|image_gen_start|>', '<|image_gen_end|>', '<|image_gen_pad|>'
FILES = (
  'tokenizer.json',
  'tokenizer_config.json',
  'vocab.json',
  'merges.txt',
  'added_tokens.json',
  'special_tokens_map.json',
  'chat_template.jinja',
  'chat_template.json',
  'preprocessor_config.json',
)  # of a checkpoint's folder
TURNS = (
  '{% for message in messages %}'
  '<|im_start|>{{ message.role }}\n'
  '{% if message.content is string %}{{ message.content }}{% else %}{% for part in '
  'message.content %}'
  "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text "
  '}}{% endif %}'
  '{% endfor %}{% endif %}<|im_end|>\n{% endfor %}'
  '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
# Of a checkpoint that has no template; what Qwen2-VL's gives for these messages.
CHATML = (
  "{% if messages and messages[0].role != 'system' %}"
  '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}' + TURNS
)


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
  """A tokenizer and its chat template.

  Attributes:
    backend: a tokenizers.Tokenizer.
    template: the chat template, Jinja source.
    folder: where both were read from, for errors.
    special: {name: text} of special tokens that the template reads, such as bos_token.
  """

  backend: object
  template: str
  folder: str
  special: dict = dataclasses.field(default_factory=dict, hash=False)


def load(folder) -> TextTokenizer:
  """Reads the tokenizer and the chat template of a checkpoint's folder.

  The tokenizer is tokenizer.json, or vocab.json with merges.txt, and the added tokens of
  tokenizer_config.json. A folder without a template gets CHATML. Raises FileNotFoundError where
  there are no such files, and ValueError where they are not what they should be."""
  folder = paths.path(folder)
  config = read_config(folder / 'tokenizer_config.json')
  if (path := folder / 'tokenizer.json').is_file():
    tokenizer = tokenizer_files.load_json(path)
  elif (folder / 'vocab.json').is_file() and (folder / 'merges.txt').is_file():
    tokenizer = build_bpe(folder)
  else:
    raise FileNotFoundError(
      f'no tokenizer in {folder}: tokenizer.json, or vocab.json and merges.txt expected'
    )
  add_tokens(tokenizer, config.get('added_tokens_decoder') or {}, folder)
  return TextTokenizer(
    tokenizer,
    read_chat_template(folder, config),
    str(folder),
    tokenizer_files.special_tokens(read_config(folder / 'special_tokens_map.json') | config),
  )


def save(tokenizer: TextTokenizer, folder):
  """Writes tokenizer.json and tokenizer_config.json, from which `load` makes the same tokenizer.

  Other files of the folder are left alone."""
  folder = paths.path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  added = {
    str(n): {
      'content': t.content,
      'special': t.special,
      'normalized': t.normalized,
      'lstrip': t.lstrip,
      'rstrip': t.rstrip,
      'single_word': t.single_word,
    }
    for n, t in sorted(tokenizer.backend.get_added_tokens_decoder().items())
  }
  special = {'eos_token': TURN_END, 'pad_token': END_OF_TEXT} | tokenizer.special
  config = special | {
    'added_tokens_decoder': added,
    'chat_template': tokenizer.template,
    'tokenizer_class': 'PreTrainedTokenizerFast',
  }
  tokenizer.backend.save(str(folder / 'tokenizer.json'))
  io_text.write_json(folder / 'tokenizer_config.json', config)


def copy_files(tokenizer: TextTokenizer, folder):
  """Copies the files that a tokenizer was read from, unchanged; one that has none is saved."""
  source, folder = paths.path(tokenizer.folder), paths.path(folder)
  found = [source / name for name in FILES if (source / name).is_file()]
  if not found:
    save(tokenizer, folder)
  for path in found:
    if path.resolve() != (folder / path.name).resolve():
      shutil.copyfile(path, folder / path.name)


def add_image_tokens(tokenizer: TextTokenizer) -> TextTokenizer:
  """The tokenizer with the tokens of generated images, which follow all others if they are new."""
  from tokenizers import AddedToken, Tokenizer

  with tokenizer_files.told(tokenizer.folder, 'its tokenizer cannot be copied'):
    backend = Tokenizer.from_str(tokenizer.backend.to_str())
  backend.add_special_tokens(
    [AddedToken(t, special=True, normalized=False) for t in (GEN_START, GEN_END, GEN_PAD)]
  )
  return dataclasses.replace(tokenizer, backend=backend)


def read_config(path):
  """The dictionary in a JSON file, {} if there is no such file; ValueError if it is none."""
  return tokenizer_files.read_json(path) if path.is_file() else {}


def build_bpe(folder):
  """The tokenizers.Tokenizer of vocab.json and merges.txt: byte-level BPE, as Qwen2's."""
  from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

  vocab = tokenizer_files.read_vocab(folder / 'vocab.json')
  merges = tokenizer_files.read_merges(folder / 'merges.txt')
  with tokenizer_files.told(folder / 'vocab.json', 'found no tokenizer in it'):
    tokenizer = Tokenizer(models.BPE(vocab, merges))
  tokenizer.normalizer, tokenizer.decoder = normalizers.NFC(), decoders.ByteLevel()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(SPLIT_PATTERN), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
  return tokenizer


def add_tokens(backend, added, folder):
  """Adds tokens {id: {'content', 'special' ...}}; ValueError unless each of them gets its id."""
  path = folder / 'tokenizer_config.json'
  tokens = sorted(checked_tokens(added, path).items())
  with tokenizer_files.told(path, 'tokens that cannot be added'):
    backend.add_tokens([added_token(x) for _, x in tokens])  # at once: each call reads all again
  for number, metadata in tokens:
    if (found := backend.token_to_id(metadata['content'])) != number:
      raise ValueError(
        f'{folder}: token {metadata["content"][:80]!r} becomes number {found}, {number} expected '
        'by tokenizer_config.json; the tokenizer is of another model'
      )


def checked_tokens(added, path):
  """{id: metadata} of added_tokens_decoder; ValueError unless it is what it should be."""
  if not isinstance(added, dict):
    raise ValueError(
      f'{path}: added_tokens_decoder is a {type(added).__name__}, a dictionary expected'
    )
  out = {}
  for number, metadata in added.items():
    if not isinstance(metadata, dict) or not isinstance(metadata.get('content'), str):
      raise ValueError(f'{path}: added token {number[:20]!r} has no content, a text expected')
    id = int(number) if number.isascii() and number.isdigit() and len(number) < 20 else number
    out[tokenizer_files.check_id(path, metadata['content'], id)] = metadata
  return out


def added_token(metadata):
  """The tokenizers.AddedToken of one in added_tokens_decoder."""
  from tokenizers import AddedToken

  flags = {
    k: bool(metadata[k])
    for k in ('lstrip', 'rstrip', 'normalized', 'single_word', 'special')
    if metadata.get(k) is not None
  }
  return AddedToken(metadata['content'], **flags)


def read_chat_template(folder, config):
  """The first there is of chat_template.jinja, chat_template.json and tokenizer_config.json.

  config: the dictionary of tokenizer_config.json. CHATML if there is none; ValueError where there
  are several of which none is called default."""
  if (path := folder / 'chat_template.jinja').is_file():
    return io_text.read_text(path, max_bytes=tokenizer_files.MAX_BYTES)
  found = read_config(folder / 'chat_template.json').get('chat_template')
  found = config.get('chat_template') if found is None else found
  if found is None:
    return CHATML
  if isinstance(found, str):
    return found
  if not isinstance(found, list) or not all(is_named_template(item) for item in found):
    raise ValueError(
      f'{folder}: chat_template is a {type(found).__name__}, a text or a list of texts with names '
      'expected'
    )
  templates = {item['name']: item['template'] for item in found}
  if 'default' not in templates:
    raise ValueError(
      f'{folder}: chat templates {sorted(templates)[:10]} found, one of name default expected'
    )
  return templates['default']


def is_named_template(item):
  """True for {'name': text, 'template': text}."""
  return isinstance(item, dict) and all(isinstance(item.get(k), str) for k in ('name', 'template'))


def token_id(tokenizer: TextTokenizer, token: str) -> int:
  """The id of one token, such as TURN_END; ValueError if there is none."""
  found = tokenizer.backend.token_to_id(token)
  if found is None:
    raise ValueError(f'{tokenizer.folder}: no token {token} in this tokenizer')
  return found


def encode(tokenizer: TextTokenizer, text: str) -> np.ndarray:
  """ids int32 [L] of a text, in which special tokens stand for themselves."""
  return np.array(tokenizer_files.encoded(tokenizer.backend, text, tokenizer.folder).ids, np.int32)


def decode(tokenizer: TextTokenizer, ids: Sequence[int], *, special=False) -> str:
  """The text of ids; special: with special tokens."""
  with tokenizer_files.told(tokenizer.folder, 'its tokenizer cannot decode'):
    return tokenizer.backend.decode([int(i) for i in ids], skip_special_tokens=not special)


def render(tokenizer: TextTokenizer, messages: Sequence[dict], *, answer: bool, **variables) -> str:
  """The text of messages [{'role', 'content'}] by the chat template.

  content: a text, or a list of {'type': 'text', 'text'} and {'type': 'image'}. answer: the text
  ends where the assistant begins its answer. variables: what else the template reads, beside the
  special tokens. ValueError where the template refuses the messages."""
  given = {'tools': None, 'documents': None} | tokenizer.special | variables
  try:
    return chat_template.render(
      tokenizer.template, list(messages), add_generation_prompt=answer, **given
    )
  except ValueError as e:
    pictures = any(not isinstance(message.get('content'), str) for message in messages)
    odd = pictures and isinstance(e.__cause__, TypeError)
    hint = '; it may take texts alone, and a message here has pictures' if odd else ''
    raise ValueError(
      f'{tokenizer.folder}: the chat template refuses {len(messages)} messages ({e}){hint}'
    ) from e


def repeat_image_tokens(text: str, counts: Sequence[int]) -> str:
  """The text with its i-th VISION_PAD repeated counts[i] times, once per embedding of an image."""
  parts = text.split(VISION_PAD)
  return ''.join(
    part + VISION_PAD * count for part, count in zip(parts, [*counts[: len(parts) - 1], 0])
  )


def expand_image_tokens(text: str, counts: Sequence[int]) -> str:
  """`repeat_image_tokens` of a whole dialogue; ValueError unless it has len(counts) VISION_PAD."""
  if (found := text.count(VISION_PAD)) != len(counts):
    raise ValueError(
      f'dialogue: {found} places for images ({VISION_PAD}) by the template found, {len(counts)} '
      'expected'
    )
  return repeat_image_tokens(text, counts)


def encode_prompt(
  tokenizer: TextTokenizer, messages: Sequence[dict], *, counts: Sequence[int] = (), **variables
) -> np.ndarray:
  """ids int32 [L] of messages that the assistant is to answer; counts: embeddings of each image."""
  text = render(tokenizer, messages, answer=True, **variables)
  return encode(tokenizer, expand_image_tokens(text, counts))


def encode_dialogue(
  tokenizer: TextTokenizer, messages: Sequence[dict], *, counts: Sequence[int] = (), **variables
):
  """(ids int32 [L], answer_mask bool [L]) of a dialogue, with the assistant's answers in it.

  The mask is True for the tokens of an answer, TURN_END included. counts: embeddings of each image.
  ValueError where the template renders the beginning of a dialogue otherwise than in the whole."""
  partial = lambda part, answer: repeat_image_tokens(
    render(tokenizer, part, answer=answer, **variables), counts
  )
  text = expand_image_tokens(render(tokenizer, messages, answer=False, **variables), counts)
  spans = []
  for i, message in enumerate(messages):
    if message['role'] != 'assistant':
      continue
    before, until = partial(messages[:i], True), partial(messages[: i + 1], False)
    if not (until.startswith(before) and text.startswith(until)):
      raise ValueError(
        f'{tokenizer.folder}: the chat template changes what is before message {i} by what follows;'
        ' one that only adds expected'
      )
    end = until.rfind(TURN_END, len(before))
    spans.append((len(before), len(until) if end < 0 else end + len(TURN_END)))
  encoded = tokenizer_files.encoded(tokenizer.backend, text, tokenizer.folder)
  mask = [any(start <= a and b <= stop for start, stop in spans) for a, b in encoded.offsets]
  return np.array(encoded.ids, np.int32), np.array(mask, bool)


def pad_to(ids: np.ndarray, length: int, *, pad: int, what='prompt'):
  """(ids int32 [length] with `pad` after them, how many they were); ValueError if too many, or 0.

  what: the subject of the error's sentence."""
  if not 0 < len(ids) <= length:
    raise ValueError(f'{what}: {len(ids)} tokens found, 1 to {length} expected')
  out = np.full(length, pad, np.int32)
  out[: len(ids)] = ids
  return out, len(ids)
