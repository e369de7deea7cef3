"""python -m vargrl.main {train,eval,sample,export,pairs,compile,bench} --config experiments/X.py
--workdir DIR [--config.key=value]
"""

import difflib
import os
import pathlib
import signal
import sys
import traceback

from vargrl import contracts
from vargrl.commands import experiment

MODES = {
  'train': 'train, or continue, every run of the experiment in --workdir',
  'eval': 'run the evaluators on the last checkpoint',
  'sample': 'draw images from the last checkpoint: a PNG grid and an .npz, or a folder of PNGs; or '
  'answer --prompts',
  'export': 'write the last checkpoint as --out=FILE.safetensors or FILE.pth, or as a folder of a '
  'model that is '
  'published as one, in the reference layout',
  'pairs': 'best and worst of groups that a GRPO run would draw, as a data set for DPO in --out',
  'compile': 'compile every program for the TPU pod of the experiment, or --topology, without one: '
  'does it fit?',
  'bench': 'time the rollout, its parts, decoding, gradient and update of a GRPO or SFT run',
}


SHARED = ('train', 'eval')  # what several hosts do together


def main(argv=None):
  """Exit codes: 0 done; 1 `compile` found a program that does not fit; 2 a wrong input, told in one
  sentence.
  """
  argv = list(sys.argv if argv is None else argv)
  mode = argv[1] if len(argv) > 1 else ''
  if mode not in MODES:
    near = difflib.get_close_matches(mode, MODES, 1, 0.4)
    print(f'{__doc__}\n' + ''.join(f'\n  {k:8}{v}' for k, v in MODES.items()), file=sys.stderr)
    if mode and not mode.startswith('-'):
      print(
        f'\nerror: no command {mode!r}' + (f', did you mean {near[0]!r}?' if near else ''),
        file=sys.stderr,
      )
    return 0 if mode in ('-h', '--help') else 2
  if {'-h', '--help'} & {*argv[2:]}:
    print(f'{mode}: {MODES[mode]}\n\n{defined()[0].get_help()}')
    return 0
  try:
    flags = parse([argv[0], *argv[2:]], mode)
    start(mode, flags)
    from vargrl.commands import bench, chat, export, pairs
    from vargrl.commands import compile as compiling
    from vargrl.training import chain

    run = {
      'train': chain.train,
      'eval': chain.evaluate,
      'sample': chat.main,
      'export': export.main,
      'pairs': pairs.main,
      'bench': bench.main,
      'compile': compiling.main,
    }
    return run[mode](flags) or 0
  except Exception as e:
    known = isinstance(
      e, (ValueError, KeyError, AttributeError, OSError, FloatingPointError, RuntimeError)
    )
    if os.environ.get('VARGRL_TRACEBACK') or not (known and (told(e) or full(e))):
      if left_alone(e):
        end(traceback.format_exc(), 1)
      raise
    text = f'error: {full(e) or sentence(e)}'
    if left_alone(e):
      end(text, 2)
    print(text, file=sys.stderr)
    return 2


def left_alone(e):
  """True if other hosts do not know of this error, and wait for this one."""
  from vargrl.parallel import multihost

  return multihost.is_multihost() and not getattr(e, 'shared', False)


def end(text, code):
  """Ends this process at once, and so the others within the heartbeat: jax's own end would wait for
  them.
  """
  print(text, file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(code)


def told(e):
  """True if the error was raised to be read: by this library, by the config, or by the file system.
  Anything else may be a bug, whose traceback is needed."""
  if isinstance(e, (OSError, FloatingPointError)):
    return True
  inner = traceback.extract_tb(e.__traceback__)[-1].filename
  if isinstance(e, (KeyError, AttributeError)):
    return f'{os.sep}ml_collections{os.sep}' in inner
  if isinstance(e, RuntimeError):
    return inner.startswith(str(pathlib.Path(__file__).parent))
  return all(f'{os.sep}{name}{os.sep}' not in inner for name in ('jax', 'flax'))


def full(e):
  """What to do where the memory of a device was too small, '' for any other error."""
  if type(e).__name__ not in (
    'JaxRuntimeError',
    'XlaRuntimeError',
  ) or 'RESOURCE_EXHAUSTED' not in str(e):
    return ''
  found = str(e).partition('RESOURCE_EXHAUSTED: ')[2].split('\n')[0].strip()
  return (
    f'a device has too little memory ({found}): fewer data.prompts or objective.collect.rollouts, '
    'more parts by '
    "accum, policy.remat='blocks', or more devices on fsdp in mesh; python -m vargrl.main compile "
    'tells beforehand '
    'what fits'
  )


def sentence(e):
  text = str(e.args[0]) if isinstance(e, KeyError) and e.args else str(e)
  return ' '.join(text.split('\n')) if '\n  ' not in text else text


def defined(argv=()):
  """(absl's flags of all modes, its module)."""
  from absl import flags as absl_flags
  from ml_collections import config_flags

  values = absl_flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config',
    None,
    'The experiment, experiments/NAME.py or experiments/NAME.py:variant.',
    lock_config=True,
    flag_values=values,
    sys_argv=list(argv),
  )
  absl_flags.DEFINE_string(
    'workdir', None, 'Where everything of the experiment is kept.', flag_values=values
  )
  absl_flags.DEFINE_string(
    'run', '', 'A run of a chain; the last one if empty.', flag_values=values
  )
  absl_flags.DEFINE_integer('each', 8, 'sample: images of each class.', flag_values=values)
  absl_flags.DEFINE_list(
    'labels', [], "sample: classes, or 'all'; all (at most 10) if empty.", flag_values=values
  )
  absl_flags.DEFINE_string(
    'preset',
    '',
    "sample: published settings, such as 'var'; the run's own if empty.",
    flag_values=values,
  )
  absl_flags.DEFINE_string(
    'folder', '', 'sample: where one PNG per image goes, instead of a grid.', flag_values=values
  )
  absl_flags.DEFINE_string(
    'npz',
    '',
    "sample: file for the images of --folder as OpenAI's evaluator reads them.",
    flag_values=values,
  )
  absl_flags.DEFINE_string(
    'prompts',
    '',
    'sample: dialogues for a policy of words and pictures, .json or .jsonl, or .txt '
    'with one prompt in each line.',
    flag_values=values,
  )
  absl_flags.DEFINE_list(
    'words',
    ['64', '64'],
    'sample: at most so many words before each picture of an answer, and '
    'after the last; 64: words alone.',
    flag_values=values,
  )
  absl_flags.DEFINE_string(
    'begin',
    None,
    'sample: words after which each answer begins a picture; may be empty.',
    flag_values=values,
  )
  absl_flags.DEFINE_integer('seed', 0, 'sample, pairs: seed.', flag_values=values)
  absl_flags.DEFINE_string(
    'out',
    '',
    'sample: path without ending, WORKDIR/samples if empty; of --prompts the '
    'folder, WORKDIR/answers; export: the file; pairs: the folder.',
    flag_values=values,
  )
  absl_flags.DEFINE_integer('groups', 1000, 'pairs: groups to draw.', flag_values=values)
  absl_flags.DEFINE_string(
    'topology',
    '',
    "compile: such as v5e:4x4 or 2*v5e:4x4; the config's pod if empty.",
    flag_values=values,
  )
  absl_flags.DEFINE_integer(
    'heartbeat',
    100,
    'train, eval: seconds of silence of a host after which the others end.',
    lower_bound=5,
    flag_values=values,
  )
  absl_flags.DEFINE_float(
    'effort',
    0.0,
    'compile: from -1, where the compiler tries least, to 0, as it runs the programs.',
    lower_bound=-1.0,
    upper_bound=0.0,
    flag_values=values,
  )
  absl_flags.DEFINE_integer('repeats', 3, 'bench: timed calls of each piece.', flag_values=values)
  return values, absl_flags


def parse(argv, mode='train'):
  """Flags; absl and ml_collections do the work, their errors come out as ValueError."""
  check_overrides(argv)
  values, absl_flags = defined(argv)
  try:
    rest = values(argv)
  except (absl_flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    raise ValueError(sentence(e)) from e
  if rest[1:]:
    raise ValueError(f'argument {rest[1]!r} found, flags (--name=value) expected')
  needed = {
    'bench': ('config',),
    'compile': ('config',),
    'export': ('config', 'workdir', 'out'),
    'pairs': ('config', 'out'),
  }
  for name in needed.get(mode, ('config', 'workdir')):
    if not values[name].value:
      raise ValueError(f'--{name} is missing')
  if values.run and mode == 'train':
    raise ValueError('--run: train trains all runs that are not finished')
  if '://' in (values.workdir or ''):
    raise ValueError(f'--workdir: {values.workdir} found, a local folder expected')
  return values


def check_overrides(argv):
  """An unknown experiment, variant or config key is told with the nearest one."""
  given = dict(zip(argv, [*argv[1:], '']))
  given = {
    k.lstrip('-').partition('=')[0]: k.partition('=')[2] or v
    for k, v in given.items()
    if k.startswith('-')
  }
  if 'config' not in given:
    return
  config = experiment.load(given['config'])
  for name in given:
    if not name.startswith('config.'):
      continue
    section, at = config, 'config'
    for key in name.split('.')[1:]:
      known = list(section) if hasattr(section, 'keys') else []
      if key not in known:
        near = difflib.get_close_matches(key, known, 1, 0.5)
        hint = f'did you mean {near[0]!r}?' if near else f'expected one of {sorted(known)}'
        if present := contracts.renamed(at, key, known):
          hint = f'it is called {present!r} now'
        raise ValueError(f'--{name}: {at} has no key {key!r}, {hint}')
      section, at = section[key], f'{at}.{key}'


def start(mode, flags):
  """Compiled programs are kept between processes, so that a resumed run starts quickly; hosts find
  each other.
  """
  import logging

  import jax

  from vargrl.parallel import multihost

  logging.getLogger('absl').setLevel(logging.WARNING)
  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    folder = (
      pathlib.Path(os.environ.get('XDG_CACHE_HOME', pathlib.Path.home() / '.cache'))
      / 'vargrl'
      / 'jax'
    )
    jax.config.update('jax_compilation_cache_dir', str(folder))
  if not os.environ.get('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'):
    # The small programs too: there are hundreds, and to read one takes half as long as to compile
    # it.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  if mode == 'compile':
    return  # for devices that are not there
  before, note = (
    jax.distributed.is_initialized(),
    multihost.initialize(heartbeat_seconds=flags.heartbeat),
  )
  # Who does not ask whether a notice has come must not keep SIGTERM from ending the process, as jax
  # now would.
  if mode != 'train' and not before:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
  if note and mode == 'train':
    print(note, file=sys.stderr)
  if jax.process_count() > 1 and mode not in SHARED:
    raise multihost.mark_shared(
      ValueError(
        f'{mode}: {jax.process_count()} processes found, one expected; only '
        f'{", ".join(SHARED)} can be shared by several'
      )
    )


if __name__ == '__main__':
  sys.exit(main())
