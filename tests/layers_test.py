"""Who may import whom: the picture of the design as a dictionary, and a walk over the sources."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
# From the ground up. A part imports only what stands on a lower floor, and its own folder.
FLOORS = (
  {'types', 'contracts', 'metrics', 'io', 'parallel', 'data', 'scenes'},
  {'models', 'checkpoint', 'objectives', 'reporting'},
  {'tokenizers', 'rewards'},
  {'rollout'},
  {'eval'},
  {'training'},
  {'commands'},
  {'main', 'notebook'},
)
# Within the ground floor, and what a part must not see although it stands above it.
GROUND = {
  'types': set(),
  'io': set(),
  'contracts': {'io'},
  'metrics': set(),
  'scenes': {'io'},
  'data': {'contracts', 'io', 'scenes'},
  'parallel': {'io', 'types'},
}
BLIND = {
  'objectives': {'data', 'scenes'},
  'models': {'data', 'scenes', 'metrics'},
  'reporting': {'data', 'scenes'},
}
NOWHERE = ('clu.metric_writers', 'clu.periodic_actions', 'tensorflow', 'torch')
NEVER = {
  'io': ('jax', 'flax'),
  'data': ('jax', 'flax'),
  'scenes': ('jax', 'flax'),
  'models': ('orbax', 'ml_collections'),
}


def imports(path):
  """Dotted names of all imports of a file, those within functions too."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (name.name for name in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: a relative import, absolute ones expected'
      yield from (f'{node.module}.{name.name}' for name in node.names)


def sources():
  """(path, the part of vargrl it belongs to, an imported name) of every import in vargrl."""
  for path in sorted((ROOT / 'vargrl').rglob('*.py')):
    part = path.relative_to(ROOT / 'vargrl').parts[0].removesuffix('.py')
    if part != '__init__':
      yield from ((path.relative_to(ROOT), part, name) for name in imports(path))


def within(name, modules):
  return any(f'{name}.'.startswith(f'{module}.') for module in modules)


def floor(part):
  return next(i for i, parts in enumerate(FLOORS) if part in parts)


def edges():
  """{module of vargrl: the modules of vargrl that it imports}."""
  root = ROOT / 'vargrl'
  modules = {
    '.'.join(p.relative_to(ROOT).with_suffix('').parts): p
    for p in root.rglob('*.py')
    if p.stem != '__init__'
  }

  def target(name):
    while name and name not in modules:
      name = name.rpartition('.')[0]
    return name

  return {
    module: {target(name) for name in imports(path)} - {'', module}
    for module, path in modules.items()
  }


def circle(graph):
  """A list of nodes that lead back to the first one, or None."""
  done, path = set(), []

  def visit(node):
    if node in path:
      return path[path.index(node) :]
    if node in done:
      return None
    path.append(node)
    found = next((c for other in sorted(graph.get(node, ())) if (c := visit(other))), None)
    path.pop()
    done.add(node)
    return found

  return next((c for node in sorted(graph) if (c := visit(node))), None)


def test_the_house_has_eight_floors_and_five_files_at_its_root():
  files = {p.stem for p in (ROOT / 'vargrl').glob('[a-z]*.py')}
  folders = {p.name for p in (ROOT / 'vargrl').glob('[a-z]*') if p.is_dir()}
  assert files | folders == set().union(*FLOORS)
  assert len(FLOORS) <= 8 and len(files) <= 5


def test_a_part_imports_only_what_stands_below_it():
  wrong = []
  for path, part, name in sources():
    if name.split('.')[0] != 'vargrl':
      continue
    other = name.split('.')[1]
    below = other in GROUND[part] if part in GROUND else floor(other) < floor(part)
    if other != part and (not below or other in BLIND.get(part, ())):
      wrong.append(f'{path} imports {name}')
  assert not wrong, wrong


def test_no_circle_of_files_and_no_two_folders_that_import_each_other():
  graph = edges()
  assert not circle(graph), circle(graph)
  folder = lambda module: module.rpartition('.')[0]
  folders = {}
  for module, others in graph.items():
    folders.setdefault(folder(module), set()).update(map(folder, others))
  folders.pop('vargrl')  # its files are parts of their own, each on its floor
  mutual = {
    (a, b) for a, others in folders.items() for b in others if a < b and a in folders.get(b, ())
  }
  assert not mutual, mutual


def test_a_kind_and_an_objective_know_no_model():
  for module, others in edges().items():
    if module.startswith('vargrl.objectives.'):
      assert not any(within(other, ('vargrl.models', 'vargrl.rollout')) for other in others), module


def test_heavy_libraries_stay_where_they_belong():
  banned = lambda part: NOWHERE + NEVER.get(part, ())
  # The one place that needs torch, if it is there: torch.save.
  wrong = [
    f'{path} imports {name}'
    for path, part, name in sources()
    if within(name, banned(part)) and (path.name, name) != ('files.py', 'torch')
  ]
  assert not wrong, wrong


def test_an_experiment_is_plain_data():
  for path in (ROOT / 'experiments').glob('*.py'):
    assert all(within(name, ('ml_collections',)) for name in imports(path)), path


def test_a_data_worker_loads_data_alone():
  code = 'import sys, vargrl.data.source; print(*sys.modules)'
  run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  loaded = {name for name in run.stdout.split() if within(name, ('vargrl',))}
  assert 'vargrl.data.source' in loaded
  assert all(
    name == 'vargrl' or within(name, ('vargrl.data', 'vargrl.io', 'vargrl.scenes'))
    for name in loaded
  ), loaded


def functions(path):
  """(name, lines) of every function of a file."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      yield node.name, node.end_lineno - node.lineno + 1


def test_files_and_functions_are_short():
  wrong = []
  for folder in ('vargrl', 'tests', 'experiments', 'tpu'):
    for path in sorted((ROOT / folder).rglob('*.py')):
      lines = len(path.read_text().splitlines())
      if lines > 350:
        wrong.append(f'{path.relative_to(ROOT)}: {lines} lines')
      if folder == 'experiments':
        continue  # a config is one function that says everything
      for name, length in functions(path):
        loop = path.parts[-2:] == ('training', 'loop.py')
        if length > (100 if loop else 60):
          wrong.append(f'{path.relative_to(ROOT)}: {name} has {length} lines')
  assert not wrong, wrong


def test_every_file_of_tests_has_a_name_of_its_own():
  """`conftest` is whichever folder's was first, and so is any module that two folders have."""
  files = [p for p in (ROOT / 'tests').rglob('*.py') if not (p.parent / '__init__.py').exists()]
  names = [p.stem for p in files]
  assert len({*names}) == len(names), sorted({name for name in names if names.count(name) > 1})
  for path in (ROOT / 'tests').rglob('*.py'):
    assert not any(within(name, ('conftest',)) for name in imports(path)), path
