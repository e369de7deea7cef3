"""Checks of `--config` and `--config.KEY=VALUE` before the config is built."""

import difflib

from vargrl import contracts
from vargrl.commands import experiment


def check(arguments):
  """Raises ValueError for an unknown experiment, variant or key; the sentence has the nearest."""
  values = dict(zip(arguments, [*arguments[1:], '']))
  values = {
    k.lstrip('-').partition('=')[0]: k.partition('=')[2] or v
    for k, v in values.items()
    if k.startswith('-')
  }
  if 'config' not in values:
    return
  config = experiment.load(values['config'])
  for name in values:
    if name.startswith('config.'):
      check_key(config, name)


def check_key(config, name: str):
  """Raises ValueError if the config has no key `name`, such as 'config.grpo.steps'."""
  section, at = config, 'config'
  path = name.split('.')[1:]
  for i, key in enumerate(path):
    known = keys(section)
    if key not in known:
      hint = ''
      if present := contracts.renamed(at, key, known):
        hint = f'it is called {present!r} now'
      elif not i:
        hint = suggest_runs(config, path)
      raise ValueError(f'--{name}: {at} has no key {key!r}, {hint or suggest(key, known)}')
    section, at = section[key], f'{at}.{key}'


def keys(section) -> list:
  """The keys of a config section, [] of a value."""
  return list(section) if hasattr(section, 'keys') else []


def suggest(key: str, known) -> str:
  """The nearest of the known keys, as the end of a sentence, or all of them."""
  near = difflib.get_close_matches(key, known, 1, 0.5)
  return f'did you mean {near[0]!r}?' if near else f'expected one of {sorted(known)}'


def suggest_runs(config, path) -> str:
  """The flags of the runs of a chain that have the key `path`, or one that is near to it, as the
  end of a sentence; '' where there is none, or where a key of the chain itself is as near."""
  runs = list(config.chain) if 'chain' in config else []
  found = {run: near for run in runs if (near := nearest(config[run], path))}
  first = max((likeness(path[0], near[0]) for near in found.values()), default=0)
  if first <= max((likeness(path[0], key) for key in keys(config)), default=0):
    return ''
  text = '.'.join(path)
  best = max(likeness(text, '.'.join(near)) for near in found.values())
  flags = [
    f'--config.{run}.{".".join(near)}'
    for run, near in found.items()
    if likeness(text, '.'.join(near)) == best
  ]
  return f'did you mean {" or ".join(filter(None, (", ".join(flags[:-1]), flags[-1])))}?'


def nearest(section, path):
  """The keys of a section that are nearest to `path`, one below the other; None if none is near."""
  near = []
  for key in path:
    known = keys(section)
    found = [key] if key in known else difflib.get_close_matches(key, known, 1, 0.6)
    if not found:
      return None
    near += found
    section = section[found[0]]
  return near


def likeness(a: str, b: str) -> float:
  return difflib.SequenceMatcher(None, a, b).ratio()
