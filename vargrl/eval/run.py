"""Evaluators from the config: {nickname: dict(name='eval.judge', every=100, **options)}."""
import inspect

from vargrl.types import lookup


def make(config, models):
  """[(nickname, evaluate, every)]; every 0 means only before the first and after the last step.

  evaluate(params, frozen) yields (name, value): a number, or a picture uint8 [y, x, 3].
  """
  out = []
  for nickname, section in config.items():
    module = lookup(section.name)
    options = {k: v for k, v in section.items() if k not in ('name', 'every')}
    expected = {p.name for p in inspect.signature(module.make).parameters.values()
                if p.kind == p.KEYWORD_ONLY}
    if set(options) != expected:
      raise ValueError(f'evals.{nickname}: keys {sorted(options)}, expected {sorted(expected)}')
    out.append((nickname, module.make(models, **options), section.every))
  return out
