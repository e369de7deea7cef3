"""Who may import whom: the picture of the design as a dictionary, and a walk over the sources."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
ANY = None
BASE = {'parallel', 'types'}
# Everything may import its own folder, except an objective, which knows no other but those that it
# varies.
SHARED = tuple(
  f'vargrl.objectives.{name}' for name in ('reduce', 'group', 'sft', 'sft_bits', 'dpo')
)
MAY = {
  'parallel': set(),
  'types': set(),
  'metrics': set(),
  'optim': set(),
  'experiment': set(),
  'pictures': set(),
  'models': BASE,
  'tokenizers': BASE | {'models'},
  'checkpoint': BASE,
  'rollout': BASE | {'models', 'tokenizers'},
  'rewards': BASE | {'checkpoint', 'data', 'models', 'scenes'},
  'objectives': BASE | {'metrics'},
  'data': {'scenes'},  # its builder, which `source` knows by name
  'scenes': {'data'},
  'eval': BASE
  | {
    'checkpoint',
    'rollout',
    'rewards',
    'tokenizers',
    'models',
    'data',
    'metrics',
    'pictures',
    'scenes',
  },
  'report': {'pictures'},
  **dict.fromkeys(
    (
      'build',
      'update',
      'run',
      'train',
      'chain',
      'main',
      'sample',
      'export',
      'pairs',
      'bench',
      'compile',
      'work',
      'speed',
      'notebook',
      'talk',
    ),
    ANY,
  ),
}
NOWHERE = ('clu.metric_writers', 'clu.periodic_actions', 'tensorflow', 'torch')
NEVER = {'data': ('jax', 'flax'), 'scenes': ('jax', 'flax'), 'models': ('orbax', 'ml_collections')}


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


def test_every_part_of_the_library_has_its_place():
  files = {p.stem if p.suffix else p.name for p in (ROOT / 'vargrl').glob('[a-z]*')}
  assert files == set(MAY)


def test_a_part_imports_only_what_lies_below_it():
  wrong = []
  for path, part, name in sources():
    if name.split('.')[0] != 'vargrl' or MAY[part] is ANY:
      continue
    other = name.split('.')[1]
    own = other == part and (part != 'objectives' or name in SHARED)
    if not own and other not in MAY[part]:
      wrong.append(f'{path} imports {name}')
  assert not wrong, wrong


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
    name == 'vargrl' or within(name, ('vargrl.data', 'vargrl.scenes')) for name in loaded
  ), loaded
