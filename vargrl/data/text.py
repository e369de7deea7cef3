"""Text and dialogues to tokens and back, by the tokenizer and the chat template that a checkpoint
comes with.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
import pathlib
import shutil

import numpy as np

from vargrl.data import clip_bpe

# Words with the sign before them, single digits, runs of other signs, white space.
# https://github.com/QwenLM/Qwen/blob/main/tokenization_note.md
WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
  r'|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
# Special tokens of Qwen2 and Qwen2-VL.
START, END, TEXT_END = '<|im_start|>', '<|im_end|>', '<|endoftext|>'
IMAGE, IMAGE_START, IMAGE_END = '<|image_pad|>', '<|vision_start|>', '<|vision_end|>'
# And what VARGPT-v1.1 adds to them, in this order: around a picture that is drawn, and for each of
# its tokens.
DRAW_START, DRAW_END, DRAW = '<|image_gen_start|>', '<|image_gen_end|>', '<|image_gen_pad|>'
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
class Words:
  """A handle on what `read` found in a folder."""

  tokenizer: object
  template: str
  folder: str


def read(folder) -> Words:
  """The tokenizer of a checkpoint's folder: tokenizer.json, or vocab.json and merges.txt, with the
  added tokens of tokenizer_config.json; and its chat template, or CHATML. FileNotFoundError, or
  ValueError that says what is wrong."""
  folder = pathlib.Path(folder).expanduser()
  config = described(folder / 'tokenizer_config.json')
  try:
    if (path := folder / 'tokenizer.json').is_file():
      tokenizer = whole(path)
    elif (path := folder / 'vocab.json').is_file() and (folder / 'merges.txt').is_file():
      tokenizer = byte_pairs(folder)
    else:
      raise FileNotFoundError(
        f'no tokenizer in {folder}: tokenizer.json, or vocab.json and merges.txt expected'
      )
  except FileNotFoundError:
    raise
  except Exception as e:  # tokenizers raises Exception itself
    raise ValueError(f'{path}: found no tokenizer in it ({e})') from e
  add(tokenizer, config.get('added_tokens_decoder', {}), folder)
  return Words(tokenizer, chat_template(folder, config), str(folder))


def write(words: Words, folder):
  """tokenizer.json and tokenizer_config.json, from which `read` makes the same Words; the folder
  may hold more.
  """
  folder = pathlib.Path(folder)
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
    for n, t in sorted(words.tokenizer.get_added_tokens_decoder().items())
  }
  config = {
    'added_tokens_decoder': added,
    'chat_template': words.template,
    'eos_token': END,
    'pad_token': TEXT_END,
    'tokenizer_class': 'PreTrainedTokenizerFast',
  }
  words.tokenizer.save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(json.dumps(config, indent=2), encoding='utf-8')


def copy(words: Words, folder):
  """The files that `words` was read from, as they are; of a tokenizer that has none, what `write`
  makes of it.
  """
  source, folder = pathlib.Path(words.folder).expanduser(), pathlib.Path(folder).expanduser()
  found = [source / name for name in FILES if (source / name).is_file()]
  if not found:
    write(words, folder)
  for path in found:
    if path.resolve() != (folder / path.name).resolve():
      shutil.copyfile(path, folder / path.name)


def with_drawing(words: Words) -> Words:
  """The same with the tokens that VARGPT-v1.1 adds, after all others where they are missing."""
  from tokenizers import AddedToken, Tokenizer

  tokenizer = Tokenizer.from_str(words.tokenizer.to_str())
  tokenizer.add_special_tokens(
    [AddedToken(t, special=True, normalized=False) for t in (DRAW_START, DRAW_END, DRAW)]
  )
  return dataclasses.replace(words, tokenizer=tokenizer)


def described(path):
  """A dictionary in JSON, {} if there is no such file."""
  if not path.is_file():
    return {}
  try:
    return dict(**json.loads(path.read_text(encoding='utf-8')))
  except (ValueError, TypeError) as e:
    raise ValueError(f'{path}: no dictionary in JSON ({e}); download it again') from e


def whole(path):
  from tokenizers import Tokenizer

  tokenizer = Tokenizer.from_file(str(path))
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer


def byte_pairs(folder):
  from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

  vocab = json.loads((folder / 'vocab.json').read_text(encoding='utf-8'))
  lines = (folder / 'merges.txt').read_text(encoding='utf-8').split('\n')
  tokenizer = Tokenizer(models.BPE(vocab, clip_bpe.merges(lines)))
  tokenizer.normalizer, tokenizer.decoder = normalizers.NFC(), decoders.ByteLevel()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(WORDS), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
  return tokenizer


def add(tokenizer, added, folder):
  """Adds tokens {id: {'content', 'special' ...}}, each of which must get its id."""
  from tokenizers import AddedToken

  for number, about in sorted(added.items(), key=lambda item: int(item[0])):
    flags = {
      k: about[k]
      for k in ('lstrip', 'rstrip', 'normalized', 'single_word', 'special')
      if k in about
    }
    token = AddedToken(about['content'], **flags)
    (tokenizer.add_special_tokens if about.get('special') else tokenizer.add_tokens)([token])
    if (found := tokenizer.token_to_id(about['content'])) != int(number):
      raise ValueError(
        f'{folder}: token {about["content"]} becomes number {found}, {number} expected by '
        'tokenizer_config.json; the tokenizer is of another model'
      )


def chat_template(folder, config):
  """Of chat_template.jinja, chat_template.json or tokenizer_config.json, the first there is; or
  CHATML.
  """
  if (path := folder / 'chat_template.jinja').is_file():
    return path.read_text(encoding='utf-8')
  found = described(folder / 'chat_template.json').get(
    'chat_template', config.get('chat_template', CHATML)
  )
  if isinstance(found, str):
    return found
  named = {item['name']: item['template'] for item in found}
  if 'default' not in named:
    raise ValueError(
      f'{folder}: chat templates {sorted(named)} found, one of name default expected'
    )
  return named['default']


def number(words: Words, token: str) -> int:
  """Of one token, such as END; ValueError if there is none."""
  found = words.tokenizer.token_to_id(token)
  if found is None:
    raise ValueError(f'{words.folder}: no token {token} in this tokenizer')
  return found


def encode(words: Words, text: str) -> np.ndarray:
  """ids int32 [L]; special tokens in the text are themselves."""
  return np.array(words.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def decode(words: Words, ids: Sequence[int], *, special=False) -> str:
  """Text of ids, without special tokens unless they are asked for."""
  return words.tokenizer.decode([int(i) for i in ids], skip_special_tokens=not special)


@functools.lru_cache(16)
def compiled(template):
  import jinja2
  from jinja2 import sandbox  # a template is a program from elsewhere

  def refuse(message):
    raise jinja2.exceptions.TemplateError(message)

  world = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols']
  )
  world.filters['tojson'] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
  world.globals['raise_exception'] = refuse
  return world.from_string(template)


def render(words: Words, messages: Sequence[dict], *, answer: bool, **variables) -> str:
  """[{'role', 'content'}] -> text by the chat template. content: a text, or a list of {'type':
  'text', 'text'} and {'type': 'image'}. answer: it ends where the assistant begins to speak.
  variables: what else the template reads."""
  import jinja2

  try:
    return compiled(words.template).render(
      messages=list(messages), add_generation_prompt=answer, **variables
    )
  except jinja2.exceptions.TemplateError as e:
    raise ValueError(
      f'{words.folder}: the chat template refuses {len(messages)} messages ({e})'
    ) from e


def expanded(text: str, counts: Sequence[int]) -> str:
  """The text with the first IMAGE as often as the first picture has embeddings, and so on."""
  parts = text.split(IMAGE)
  return ''.join(part + IMAGE * count for part, count in zip(parts, [*counts[: len(parts) - 1], 0]))


def prompt(
  words: Words, messages: Sequence[dict], *, counts: Sequence[int] = (), **variables
) -> np.ndarray:
  """ids int32 [L] of a dialogue that the assistant is to continue. counts: embeddings of each
  picture.
  """
  return encode(words, pictured(words, render(words, messages, answer=True, **variables), counts))


def pictured(words, text, counts):
  if (found := text.count(IMAGE)) != len(counts):
    raise ValueError(
      f'dialogue: {found} places for pictures ({IMAGE}) by the template, {len(counts)} pictures '
      'expected'
    )
  return expanded(text, counts)


def dialogue(words: Words, messages: Sequence[dict], *, counts: Sequence[int] = (), **variables):
  """(ids int32 [L], mask bool [L]) of a whole dialogue; the mask is True for what the assistant
  says, END included.

  ValueError where the template says something else of a dialogue's beginning than of the dialogue.
  """
  say = lambda part, answer: expanded(render(words, part, answer=answer, **variables), counts)
  text = pictured(words, render(words, messages, answer=False, **variables), counts)
  spans = []
  for i, message in enumerate(messages):
    if message['role'] != 'assistant':
      continue
    before, until = say(messages[:i], True), say(messages[: i + 1], False)
    if not (until.startswith(before) and text.startswith(until)):
      raise ValueError(
        f'{words.folder}: the chat template changes what is before message {i} by what follows; '
        'one '
        'that only adds expected'
      )
    spans.append(
      (
        len(before),
        until.rfind(END, len(before)) + len(END) if END in until[len(before) :] else len(until),
      )
    )
  encoded = words.tokenizer.encode(text, add_special_tokens=False)
  mask = [any(start <= a and b <= stop for start, stop in spans) for a, b in encoded.offsets]
  return np.array(encoded.ids, np.int32), np.array(mask, bool)


def padded(ids: np.ndarray, length: int, *, pad: int, what='prompt'):
  """(ids int32 [length], how many are true); ValueError if they are too many."""
  if not 0 < len(ids) <= length:
    raise ValueError(f'{what}: {len(ids)} tokens found, 1 to {length} expected')
  out = np.full(length, pad, np.int32)
  out[: len(ids)] = ids
  return out, len(ids)
