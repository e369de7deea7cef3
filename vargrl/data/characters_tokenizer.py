"""The tokenizer of small language models trained from scratch: every character is a token."""

import string

from vargrl.data import text

SPECIAL = (text.END_OF_TEXT, text.TURN_START, text.TURN_END)
ROLES = ('system', 'user', 'assistant')  # a token each, for the chat template
UNKNOWN = '<|unknown|>'


def vocabulary():
  """{token: id} of special tokens, roles, the line break and printable ASCII, in this order."""
  printable = string.digits + string.ascii_letters + string.punctuation + ' '
  return {token: i for i, token in enumerate((*SPECIAL, UNKNOWN, *ROLES, '\n', *printable))}


def build() -> text.TextTokenizer:
  """The tokenizer, with a chat template that adds no system message.

  Text of printable ASCII is decoded to what it was; any other character is UNKNOWN."""
  from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

  tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNKNOWN))
  tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s\S]'), 'removed', invert=True)
  tokenizer.decoder = decoders.Fuse()
  tokenizer.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in SPECIAL])
  roles = [AddedToken(x, special=False, normalized=False, single_word=True) for x in ROLES]
  tokenizer.add_tokens(roles)
  return text.TextTokenizer(tokenizer, text.TURNS, 'characters')
