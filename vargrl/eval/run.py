"""Evaluators from the config: {nickname: dict(name='eval.judge', every=100, **options)}."""

import inspect

from vargrl import contracts
from vargrl.types import lookup


def make(config, models):
  """[(nickname, evaluate, every)]; every 0 means only before the first and after the last step.

  evaluate(params, frozen, poll=None) yields (name, value): a number, or a picture uint8 [y, x, 3].
  It calls poll() every few images, which may raise (notice.Stop); it may have processes, which its
  `close` ends. Whatever an evaluator cannot work with, a data set that is not there for one, is a
  ValueError here, a file that is not there a FileNotFoundError."""
  out = []
  try:
    for nickname, section in config.items():
      try:
        out.append((nickname, evaluator(section, models), section['every']))
      except (ValueError, FileNotFoundError) as e:
        raise type(e)(f'evals.{nickname}: {e}') from e
  except BaseException:
    close(out)
    raise
  return out


def close(evals):
  """Ends what the evaluators have started."""
  for _, evaluate, _ in evals:
    getattr(evaluate, 'close', lambda: None)()


def evaluator(section, models):
  """What the module's `make` makes of its options: its keyword-only arguments, all of them."""
  if missing := {'name', 'every'} - set(section.keys()):
    raise ValueError(f'keys {sorted(section.keys())} found, {sorted(missing)} expected too')
  every = section['every']
  if type(every) is not int or every < 0:
    raise ValueError(
      f'every: {every!r} found, a number of steps, or 0 for the first and the last, expected'
    )
  function = getattr(lookup(section['name']), 'make', lambda: None)
  parameters = inspect.signature(function).parameters
  if next(iter(parameters), '') != 'models':
    raise ValueError(
      f"name: {section['name']!r} found, an evaluator such as 'eval.samples' expected"
    )
  options = {k: v for k, v in section.items() if k not in ('name', 'every')}
  expected = {p.name for p in parameters.values() if p.kind == p.KEYWORD_ONLY}
  if error := contracts.key_error('evals.', options, expected):
    raise ValueError(error)
  return function(models, **options)
