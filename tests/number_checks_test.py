"""nan is no number of a config: comparisons with it are False, so that `x <= 0` lets it pass."""

import ast
import math
import pathlib

from ml_collections import ConfigDict
import pytest

from vargrl.commands import experiment
from vargrl.io import numbers
from vargrl.rollout.kinds import bits, scales, text
from vargrl.training import chain, run

ROOT = pathlib.Path(__file__).parents[1] / 'vargrl'
ORDER = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
EXPERIMENTS = ('quickstart.py:smoke', 'scenes.py:smoke', 'grpo_vargpt_7b.py:smoke')
# Counts that the program made of a file or a name, not numbers that a person types.
COUNTS = ('checkpoint/torch_values.py', 'data/dialogue/sums.py')


def compares_bare(test, negated=False):
  """Whether a condition is that a value lies on one side of a number: with nan it is False."""
  if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
    return compares_bare(test.operand, not negated)
  if isinstance(test, ast.BoolOp):
    return any(compares_bare(value, negated) for value in test.values)
  if negated or not isinstance(test, ast.Compare) or not isinstance(test.ops[0], ORDER):
    return False
  sides = [test.left, *test.comparators]
  named = any(isinstance(x, (ast.Name, ast.Attribute, ast.Subscript)) for x in sides)
  return named and any(isinstance(x, ast.Constant) for x in sides)


def bare_checks(source):
  """Lines of `if x < 0: raise ValueError`."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.If) and compares_bare(node.test):
      raised = [x for x in node.body if isinstance(x, ast.Raise)]
      if any('ValueError' in ast.unparse(x) for x in raised):
        yield node.lineno


def test_no_bare_check_of_a_number_is_left():
  found = [
    f'{path.relative_to(ROOT)}:{line}: numbers.check_number expected'
    for path in sorted(ROOT.rglob('*.py'))
    if path.parent.name != 'io' and str(path.relative_to(ROOT)) not in COUNTS
    for line in bare_checks(path.read_text())
  ]
  assert not found, '\n'.join(found)


@pytest.mark.parametrize(
  'test, bare',
  [
    ('x < 1', True),
    ('a.b <= 0 or y', True),
    ("c['k'] > 1", True),
    ('not (not x < 1)', True),
    ('not x >= 1', False),
    ('not 0 <= x < 1', False),
    ('len(x) > 1', False),
    ('x == 1', False),
  ],
)
def test_a_bare_check_is_found(test, bare):
  assert [*bare_checks(f'if {test}:\n  raise ValueError(x)\n')] == [1] * bare
  assert not [*bare_checks(f'if {test}:\n  x = 1\n')]


def leaves(value, path=()):
  """(path, number) of every number of nested dictionaries, lists and tuples."""
  if isinstance(value, (dict, list, tuple)):
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
      yield from leaves(item, (*path, key))
  elif isinstance(value, (int, float)) and not isinstance(value, bool):
    yield path, value


def changed(value, path, number):
  """A copy of nested dictionaries, lists and tuples with another number at a path."""
  if not path:
    return number
  items = dict(value) if isinstance(value, dict) else [*value]
  items[path[0]] = changed(items[path[0]], path[1:], number)
  return tuple(items) if isinstance(value, tuple) else items


def name_of(path):
  """optim.scale[0][1]"""
  return ''.join(f'[{key}]' if isinstance(key, int) else f'.{key}' for key in path)[1:]


@pytest.mark.parametrize('file', EXPERIMENTS)
def test_nan_is_refused_wherever_a_config_has_a_number(file):
  """By its name, before anything of the run is looked up."""
  for _, config in chain.runs(experiment.load(f'experiments/{file}')):
    plain = config.copy_and_resolve_references().to_dict()
    found = [*leaves(plain)]
    assert len(found) > 30
    run.check_sections(ConfigDict(plain))
    for path, _ in found:
      with pytest.raises(ValueError) as e:
        run.check_sections(ConfigDict(changed(plain, path, math.nan)))
      assert str(e.value) == f'{name_of(path)}: nan found, a number expected'


SCALES = dict(guidance=2.0, temperature=1.0, top_p=0.9, logp_of='cond', scales=(1, 2))
TEXT = dict(max_tokens=4, temperature=1.0, top_k=0, top_p=0.9, stop=())


@pytest.mark.parametrize(
  'kind, options, keys',
  [
    (scales, SCALES | dict(guidance_ramp=False, top_k=3), ('guidance', 'temperature', 'top_p')),
    (scales, SCALES | dict(guidance_ramp=False, top_k=3), ('top_k',)),
    (bits, SCALES, ('guidance', 'temperature', 'top_p')),
    (text, TEXT, ('max_tokens', 'temperature', 'top_k', 'top_p')),
  ],
)
def test_settings_of_samplers_know_nan(kind, options, keys):
  """Also those that no config has: of a notebook, and each scale's own."""
  kind.Config(**options)
  for key in keys:
    wrong = [math.nan, -1.0]
    wrong += [(1.0, math.nan)] if key in ('guidance', 'temperature') and kind is not text else []
    for value in wrong:
      with pytest.raises(ValueError, match=f'rollout.{key}: .* expected'):
        kind.Config(**options | {key: value})


def test_a_place_of_nan_is_named():
  numbers.check_no_nan('', {'a': [1, {'b': (2, 'nan', None, math.inf)}]})
  with pytest.raises(ValueError, match=r'a\[1\].b\[0\]: nan found'):
    numbers.check_no_nan('', {'a': [1, {'b': (math.nan,)}]})
