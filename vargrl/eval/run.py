"""Evaluators from the config: {name: dict(name='eval.judge', every_steps=100, **options)}."""

from collections.abc import Callable
import dataclasses
import inspect

from vargrl import contracts


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """What measures the weights of a run now and then.

  name: what the config calls it; its numbers are NAME/value. evaluate: (params, frozen, poll=None)
  -> pairs (value's name, value), a number or a picture uint8 [y, x, 3]. It calls poll() every few
  images, which may raise (preemption.Stop) or do nothing; it may have processes, which its
  attribute `close` ends. every_steps: of training; 0: only before the first and after the last."""

  name: str
  evaluate: Callable
  every_steps: int


def make(config, built):
  """[Evaluator] of the config's section `evals`. built: the functions of the run, a
  training.assemble.Built.

  Whatever an evaluator cannot work with, a data set that is not there for one, is a ValueError
  here, a file that is not there a FileNotFoundError."""
  out = []
  try:
    for name, section in config.items():
      try:
        out.append(Evaluator(name, evaluate(section, built), section['every_steps']))
      except (ValueError, FileNotFoundError) as e:
        raise type(e)(f'evals.{name}: {e}') from e
  except BaseException:
    close(out)
    raise
  return out


def close(evals):
  """Ends what the evaluators have started."""
  for evaluator in evals:
    getattr(evaluator.evaluate, 'close', lambda: None)()


def evaluate(section, built):
  """The function that the module's `make` makes of its options: its keyword-only arguments."""
  check_common(section)
  function = contracts.module(section['name'], 'evaluator').make
  parameters = inspect.signature(function).parameters
  if next(iter(parameters), '') != 'built':
    raise ValueError(
      f"name: {section['name']!r} found, an evaluator such as 'eval.samples' expected"
    )
  options = {k: v for k, v in section.items() if k not in ('name', 'every_steps')}
  expected = {p.name for p in parameters.values() if p.kind == p.KEYWORD_ONLY}
  if error := contracts.key_error('evals.', options, expected):
    raise ValueError(error)
  return function(built, **options)


def check_common(section):
  """Raises ValueError unless the section has the keys that all evaluators have."""
  if missing := {'name', 'every_steps'} - set(section.keys()):
    for key in section.keys():
      if now := contracts.renamed('evals.', key, missing):
        raise ValueError(f'key {key!r} found, it is called {now!r} now')
    raise ValueError(f'keys {sorted(section.keys())} found, {sorted(missing)} expected too')
  every = section['every_steps']
  if type(every) is not int or not every >= 0:
    raise ValueError(
      f'every_steps: {every!r} found, a number of steps, or 0 for the first and the last, expected'
    )
