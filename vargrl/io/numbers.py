"""Numbers that a user types. Every comparison with nan is False, so `x <= 0` lets it pass."""

import math
import numbers


def check_no_nan(name: str, value) -> None:
  """Raises ValueError, a sentence that begins with the place, such as `optim.scale[0][1]`, where a
  number in nested dictionaries, lists and tuples is nan. name: of `value`, '' of the whole."""
  if hasattr(value, 'items'):
    for key, item in value.items():
      check_no_nan(f'{name}.{key}' if name else str(key), item)
  elif isinstance(value, (list, tuple)):
    for i, item in enumerate(value):
      check_no_nan(f'{name}[{i}]', item)
  elif isinstance(value, numbers.Real) and math.isnan(value):
    raise ValueError(f'{name}: {value!r} found, a number expected')


def check_number(
  name: str,
  value,
  *,
  above: float = -math.inf,
  least: float = -math.inf,
  below: float = math.inf,
  most: float = math.inf,
  whole: bool = False,
  finite: bool = True,
):
  """Returns a number within the bounds; ValueError, a sentence that begins with `name`, otherwise.

  above, below: bounds that it may not have; least, most: bounds that it may have. whole: an
  integer. finite: inf is refused, as nan always is."""
  number = isinstance(value, numbers.Integral if whole else numbers.Real)
  if (
    number
    and not isinstance(value, bool)
    and (math.isfinite(value) or not (finite or math.isnan(value)))
    and least <= value <= most
    and (above == -math.inf or value > above)
    and (below == math.inf or value < below)
  ):
    return value
  bounds = [
    f'{word} {bound:g}'
    for word, bound in (('above', above), ('at least', least), ('below', below), ('at most', most))
    if math.isfinite(bound)
  ]
  unbounded = number and math.isinf(value) or not bounds
  kind = 'an integer' if whole else 'a finite number' if finite and unbounded else 'a number'
  raise ValueError(
    f'{name}: {value!r} found, {" ".join([kind, " and ".join(bounds)]).strip()} expected'
  )
