"""The tokenizer of models trained from scratch on `scenes`: its words, and single letters."""

import string

from vargrl.data import text
from vargrl.scenes import captions
from vargrl.scenes import world as worlds

SPECIAL = (
  text.END_OF_TEXT,
  text.TURN_START,
  text.TURN_END,
  text.VISION_START,
  text.VISION_END,
  text.VISION_PAD,
  text.GEN_START,
  text.GEN_END,
  text.GEN_PAD,
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
# Where decoding leaves out the space between two tokens: before a sign and within a written word.
NO_SPACE = (
  r'(?<=\|>) | (?=<\|)',
  r' (?=[.,?!:])',
  r'(?<=[A-Z]) (?=[A-Z])',
  r'(?<=") (?=[A-Z])',
  r'(?<=[A-Z]) (?=")',
)


def vocabulary():
  """{token: id} of special tokens, signs, digits, capitals and words, in this order."""
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


def build() -> text.TextTokenizer:
  """The tokenizer, with a chat template that adds no system message.

  Capitals in a row are letters of a written word, a token each; any other capital is lowered. Texts
  of `scenes` are decoded to what they were."""
  from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

  tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNKNOWN))
  lower_single = [
    normalizers.Replace(Regex(f'(?<![A-Z]){x}(?![A-Z])'), x.lower()) for x in string.ascii_uppercase
  ]
  tokenizer.normalizer = normalizers.Sequence(lower_single)
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex('[ \t]+'), 'removed'),
      pre_tokenizers.Split(Regex(r'[a-z]+|[\s\S]'), 'removed', invert=True),
    ]
  )
  spaced = decoders.WordPiece(prefix=UNKNOWN * 2, cleanup=False)  # a space between all tokens
  lines = decoders.Replace(Regex(r' ?\n ?'), '\n')
  tokenizer.decoder = decoders.Sequence(
    [spaced, decoders.Fuse(), lines, *(decoders.Replace(Regex(x), '') for x in NO_SPACE)]
  )
  tokenizer.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in SPECIAL])
  return text.TextTokenizer(tokenizer, text.TURNS, 'scenes')
