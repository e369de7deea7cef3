"""What a forward pass of Infinity's decoder (vargrl/models/infinity.py) costs."""

from vargrl.types import bounds


def flops(c, row):
  """{'': FLOPs of one forward pass} over one row, a types.RowShape of whole scales, with a prompt
  of `text_length` tokens. A multiply-add is two."""
  return {'': picture_flops(c, row.picture_tokens, row.skip)}


def picture_flops(c, length, skip=0, context=0):
  """FLOPs of one forward pass over the first `length` tokens of a picture, of which the first
  `skip` were computed before, with a prompt of `text_length` tokens, or a memory of `context`
  tokens that another model has made.

  Attention is counted block-causally: a token of scale i meets the keys of scales <= i alone.
  """
  count, new = context or c.text_length, length - skip
  dense = 2 * c.depth * (6 * c.width + 2 * c.mlp) * c.width * new
  memory = 4 * count * c.depth * c.width**2
  if not context:
    memory += 2 * count * (c.width**2 + 3 * c.text * c.width)
  rank = 2 * c.depth * c.lora_rank
  adapters = rank * (14 * c.width + 2 * c.mlp) * new + rank * 4 * c.width * count * (not skip)
  scales = [(a, b) for a, b in bounds(c.scales) if skip <= a < length]
  attention = c.depth * sum(4 * c.width * (b - a) * (b + count) for a, b in scales)
  ends = 2 * c.width * c.bits * (3 * new - (not skip))
  once = memory + 2 * c.width**2 * 8
  return dense + adapters + attention + ends + once * (not skip)
