"""Calls that let something wrong in, of which vargrl.io has the right one: none is left."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / 'vargrl'
SOURCES = [p for p in sorted(ROOT.rglob('*.py')) if p.parent.name != 'io']
# What is called: what to call instead.
METHODS = {
  'expanduser': 'paths.path',
  'read_text': 'text.read_text',
  'write_text': 'text.write_text',
  'splitlines': 'text.split_lines',
}
FUNCTIONS = {
  'json.load': 'text.read_json',
  'json.loads': 'text.parse_json',
  'Image.open': 'pictures.open_image',
  'pathlib.Path': 'paths.path',
  'os.path.expanduser': 'paths.path',
  'os.path.isfile': 'paths.path(...).is_file',
  'os.path.isdir': 'paths.path(...).is_dir',
  'os.path.exists': 'paths.path(...).exists',
}
# Names of our own that are read by `module.read_text`, and are no files.
OWN = ('text.', 'io_text.', 'net.')


def calls(path):
  """(line, source of what is called, its arguments) of every call of a file."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Call):
      yield node.lineno, ast.unparse(node.func), [ast.unparse(x) for x in node.args]


def bare(path):
  """'file:line: call, replacement' of every bare call."""
  for line, called, arguments in calls(path):
    where = f'{path.relative_to(ROOT)}:{line}: {called}'
    method = called.rpartition('.')[2]
    if called in FUNCTIONS and arguments != ['__file__']:
      yield f'{where}, {FUNCTIONS[called]} expected'
    elif '.' in called and method in METHODS and not called.startswith(OWN):
      if 'pathlib.Path(__file__)' not in called:
        yield f'{where}, {METHODS[method]} expected'
    elif called == 'open' and not any('b' in x for x in arguments[1:2]):
      yield f'{where}, text.read_text expected'


def test_no_bare_call_is_left():
  found = [line for path in SOURCES for line in bare(path)]
  assert not found, '\n'.join(found)


@pytest.mark.parametrize(
  'source',
  [
    'pathlib.Path(flags.out)',
    'x.expanduser()',
    'json.loads(file.read())',
    'open(path)',
    "open(path, encoding='utf-8')",
    'Image.open(file, formats=None)',
    'answer.splitlines()',
    "(folder / 'x').read_text(encoding='utf-8')",
  ],
)
def test_a_bare_call_is_found(tmp_path, source, monkeypatch):
  monkeypatch.setitem(globals(), 'ROOT', tmp_path)
  (tmp_path / 'a.py').write_text(source)
  assert len([*bare(tmp_path / 'a.py')]) == 1
