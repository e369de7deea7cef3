"""A small byte-pair vocabulary, as OpenAI's and Hugging Face's files would hold it, and texts that
are hard to cut.
"""

import gzip
import json

from vargrl.data import clip_bpe

WORDS = (
  'photo',
  'painting',
  'the',
  'of',
  'cat',
  'dog',
  'goldfish',
  'it',
  'don',
  'hello',
  'world',
  'cafe',
  'in',
  'ing',
)
TEXTS = (
  'a photo of a tench',
  'A Painting of the GOLDFISH, in oil.',
  "it's the dog's 2024th photo!!!",
  "I'LL don't we've you'd",
  '',
  '   ',
  ' leading,\tand\n\ntrailing  ',
  'naïve café — Zürich',
  '日本語のテスト',
  'smile 😀🐟 ok',
  'a' * 100,
  'photo ' * 100,
  '12345 67',
  'x_y-z/@#$%^',
  'the cat' + ' ' * 50 + 'of the world',
  "''s '",
  'é',
  'ÀÉÎ',
  '...the...',
  'a\u00a0b',
  'tab\u3000wide',
)
# Here open_clip unescapes HTML or repairs Unicode (ftfy) and transformers does not; the ids differ.
ODD = ('fish &amp;amp; chips &lt;b&gt;', 'ﬁsh', 'ＦＵＬＬ width', 'cafÃ©', '\x07bell', 'don’t')


def merges():
  """Each of WORDS from its left."""
  out = []
  for word in WORDS:
    symbols = [*word[:-1], word[-1] + '</w>']
    left = symbols[0]
    for right in symbols[1:]:
      if (left, right) not in out:
        out.append((left, right))
      left += right
  return out


def write(folder):
  """bpe_simple_vocab_16e6.txt.gz, and below hf/ vocab.json and merges.txt."""
  lines = ['#version: 0.2', *(' '.join(pair) for pair in merges())]
  with gzip.open(folder / 'bpe_simple_vocab_16e6.txt.gz', 'wb') as file:
    file.write('\n'.join(lines).encode())
  symbols = [*clip_bpe.bytes_to_unicode().values()]
  words = [
    *symbols,
    *(s + '</w>' for s in symbols),
    *(a + b for a, b in merges()),
    '<|startoftext|>',
    '<|endoftext|>',
  ]
  (folder / 'hf').mkdir()
  (folder / 'hf' / 'vocab.json').write_text(json.dumps({word: i for i, word in enumerate(words)}))
  (folder / 'hf' / 'merges.txt').write_text('\n'.join(lines) + '\n')
