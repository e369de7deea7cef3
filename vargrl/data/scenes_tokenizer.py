"""A tokenizer for models that start from nothing: the words of `scenes`, and single letters for
what is written.
"""

import string

from vargrl.data import text
from vargrl.scenes import captions
from vargrl.scenes import world as worlds

SPECIAL = (
  text.TEXT_END,
  text.START,
  text.END,
  text.IMAGE_START,
  text.IMAGE_END,
  text.IMAGE,
  text.DRAW_START,
  text.DRAW_END,
  text.DRAW,
)
UNKNOWN = '<|unknown|>'
SIGNS = '\n.,:?!"\'-'
OTHERS = (
  'system user assistant you helpful a an the it this and or of to in on for with is are there '
  'that not '
  'draw make change turn remove take away add put move replace exchange write picture image shows '
  'show '
  'light background word text written anything instead short here output '
  'what which where how many who does has color colors shape shapes size same relative object '
  'objects '
  'small large smaller larger left right top bottom middle above below somewhere yes no'
).split()
# What stands between two words is a space, but not before a point or within what is written.
JOINED = (
  r'(?<=\|>) | (?=<\|)',
  r' (?=[.,?!:])',
  r'(?<=[A-Z]) (?=[A-Z])',
  r'(?<=") (?=[A-Z])',
  r'(?<=[A-Z]) (?=")',
)


def vocabulary():
  """{token: its number}: special ones, signs, digits, capitals, words."""
  things = [
    *worlds.SHAPES,
    *map(captions.plural, worlds.SHAPES),
    *worlds.COLOURS,
    *worlds.SIZES,
    *captions.NUMBERS,
  ]
  tokens = [
    *SPECIAL,
    UNKNOWN,
    *SIGNS,
    *string.digits,
    *string.ascii_uppercase,
    *sorted({*things, *OTHERS}),
  ]
  return {token: i for i, token in enumerate(tokens)}


def words() -> text.Words:
  """The tokenizer, whose chat template says nothing but what the messages do.

  Capitals in a row are written letters, a token each; any other capital is a small letter. Texts of
  `scenes` come back as they were."""
  from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

  tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNKNOWN))
  alone = [
    normalizers.Replace(Regex(f'(?<![A-Z]){x}(?![A-Z])'), x.lower()) for x in string.ascii_uppercase
  ]
  tokenizer.normalizer = normalizers.Sequence(alone)
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex('[ \t]+'), 'removed'),
      pre_tokenizers.Split(Regex(r'[a-z]+|[\s\S]'), 'removed', invert=True),
    ]
  )
  spaced = decoders.WordPiece(prefix=UNKNOWN * 2, cleanup=False)  # a space between all tokens
  lines = decoders.Replace(Regex(r' ?\n ?'), '\n')
  tokenizer.decoder = decoders.Sequence(
    [spaced, decoders.Fuse(), lines, *(decoders.Replace(Regex(x), '') for x in JOINED)]
  )
  tokenizer.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in SPECIAL])
  return text.Words(tokenizer, text.TURNS, 'scenes')
