"""A small tokenizer as Qwen's files would hold it, chat templates, dialogues and texts that are
hard to cut.
"""

import json

import small_bpe

from vargrl.data import clip_bpe, text

WORDS = (
  'Ġthe',
  'Ġa',
  'Ġcat',
  'Ġdog',
  'Ġis',
  'user',
  'assistant',
  'system',
  'You',
  'Ġare',
  'Ġhelpful',
  'Ġof',
  'ing',
  'ĊĊ',
  'Ġimage',
  'hello',
  'Ġworld',
  'ĠĠ',
)
SPECIAL = (
  text.END_OF_TEXT,
  text.TURN_START,
  text.TURN_END,
  text.VISION_START,
  text.VISION_END,
  text.VISION_PAD,
)
TEXTS = (
  *small_bpe.TEXTS,
  'cafe\u0301',
  "I'LL'VE",
  'x\r\n\r\ny  \n z',
  'a  b   c',
  f'say {text.TURN_END} now',
  '１２３ ٣',
  '\u200d👩‍🔬',
)
# What transformers makes of white space around blocks, of loop controls and of tojson is a part of
# the language.
BLOCKS = """
{%- set count = namespace(value=0) %}
{% for message in messages %}
    {%- if message.role == 'tool' %}{% continue %}{% endif %}
    {%- set count.value = count.value + 1 %}
  {{- '<|im_start|>' ~ message.role ~ '\\n' }}
  {%- if message.content is string %}
    {{- message.content | trim }}
  {%- else %}
    {{- message.content | tojson }}
  {%- endif %}
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if count.value > 5 %}
  {{ raise_exception('too many') }}
{%- endif %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TEMPLATES = {'chatml': text.CHATML, 'blocks': BLOCKS}
SEEN = [
  {'type': 'text', 'text': 'What is in '},
  {'type': 'image'},
  {'type': 'text', 'text': ' and in '},
  {'type': 'image'},
]
DIALOGUES = (
  [{'role': 'user', 'content': 'hello world'}],
  [
    {'role': 'system', 'content': 'You are a cat.'},
    {'role': 'user', 'content': ' the dog\n'},
    {'role': 'assistant', 'content': '\n\nthe cat is "helpful"  '},
    {'role': 'user', 'content': 'naïve 12 é?'},
    {'role': 'assistant', 'content': ''},
  ],
  [{'role': 'user', 'content': SEEN}, {'role': 'assistant', 'content': 'a dog\nhello'}],
)


def merges():
  """Each of WORDS from its left."""
  pairs = []
  for word in WORDS:
    for i in range(1, len(word)):
      if (word[:i], word[i]) not in pairs:
        pairs.append((word[:i], word[i]))
  return pairs


def write(folder, template=None, **more):
  """vocab.json, merges.txt, tokenizer_config.json with `more`. -> {special token: its number}"""
  folder.mkdir(parents=True, exist_ok=True)
  words = [*clip_bpe.bytes_to_unicode().values(), *dict.fromkeys(a + b for a, b in merges())]
  numbers = {token: len(words) + i for i, token in enumerate(SPECIAL)}
  (folder / 'vocab.json').write_text(json.dumps({word: i for i, word in enumerate(words)}))
  (folder / 'merges.txt').write_text(
    '\n'.join(['#version: 0.2', *(' '.join(pair) for pair in merges())]) + '\n'
  )
  flags = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)
  config = {
    'added_tokens_decoder': {str(n): {'content': token, **flags} for token, n in numbers.items()},
    'tokenizer_class': 'Qwen2Tokenizer',
    'eos_token': text.TURN_END,
    'pad_token': text.END_OF_TEXT,
    'unk_token': None,
    'additional_special_tokens': [*SPECIAL[1:]],
  }
  if template is not None:
    config['chat_template'] = template
  (folder / 'tokenizer_config.json').write_text(json.dumps(config | more))
  return numbers
