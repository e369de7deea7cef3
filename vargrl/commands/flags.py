"""The commands with their flags: what each takes and needs; help.py prints it.

Nothing heavy is imported here: `--help` and a mistyped flag answer at once.
"""

from typing import Any, NamedTuple

from vargrl.commands import errors, overrides
from vargrl.io import paths

PROGRAM = 'python -m vargrl.main'
HEARTBEAT_SECONDS = 100
# Flags of earlier versions: what they are called now.
RENAMED = {'words': 'max_text_tokens', 'each': 'per_class'}


class Flag(NamedTuple):
  """A flag: its kind ('config', 'path', 'string', 'list', 'integer' or 'float'), its default, its
  metavariable and its help. lower, upper: bounds of a number, or None."""

  kind: str
  default: Any
  value: str
  help: str
  lower: float | None = None
  upper: float | None = None


class Command(NamedTuple):
  """A command. summary: one line. about: a paragraph. flags: names in FLAGS, `config` included.
  required: those that must not be empty. example: arguments. exit_codes: {code: meaning} besides
  those that all commands share."""

  summary: str
  about: str
  flags: tuple
  required: tuple
  example: str
  exit_codes: dict


EXIT_CODES = {
  0: 'done',
  1: 'an unexpected error, with its traceback',
  2: 'a wrong input, or a device without enough memory: one sentence on stderr',
}
FLAGS = {
  'config': Flag(
    'config', None, 'FILE[:VARIANT]', 'the experiment, such as experiments/quickstart.py:smoke'
  ),
  'workdir': Flag('path', None, 'DIR', 'the folder that holds everything of the experiment'),
  'run': Flag('string', '', 'NAME', "a run of a chain of runs; the chain's last run if empty"),
  'heartbeat': Flag(
    'integer',
    HEARTBEAT_SECONDS,
    'SECONDS',
    'several hosts: silence of a host after which the others end',
    lower=5,
  ),
  'wandb': Flag(
    'string',
    '',
    'PROJECT',
    'also log to this project of Weights & Biases (pip install wandb); empty: no. '
    "WANDB_MODE=offline keeps the logs in the runs' folders",
  ),
  'labels': Flag(
    'list', [], 'CLASS,...', "classes, as numbers or names, or 'all'; the first 10 if empty"
  ),
  'per_class': Flag('integer', 8, 'N', 'images of each class'),
  'preset': Flag(
    'string', '', 'NAME', "published sampler settings, such as 'var'; the run's own if empty"
  ),
  'folder': Flag('path', '', 'DIR', 'write one PNG per image here instead of a grid'),
  'npz': Flag(
    'path',
    '',
    'FILE',
    "also pack the images of --folder for OpenAI's evaluator (guided-diffusion)",
  ),
  'prompts': Flag(
    'path',
    '',
    'FILE',
    'dialogues for a policy that answers in text: .json, .jsonl, or .txt with a prompt in each '
    'line',
  ),
  'max_text_tokens': Flag(
    'list',
    [],
    'N,...',
    'at most so many text tokens before each image of an answer, and after the last one; 64: text '
    'alone; if empty 64,64, or 64 of a policy that draws nothing',
  ),
  'begin': Flag(
    'string', None, 'TEXT', 'text after which each answer begins an image; may be empty'
  ),
  'seed': Flag('integer', 0, 'N', 'seed of the random numbers'),
  'groups': Flag('integer', 1000, 'N', 'groups to draw'),
  'topology': Flag(
    'string',
    '',
    'KIND:AxB',
    "such as v5e:4x4, or 2*v5e:4x4 for two slices; the config's pod if empty",
  ),
  'effort': Flag(
    'float',
    0.0,
    'X',
    'from -1, where the compiler tries least and is fastest, to 0, as it compiles for a real run',
    lower=-1.0,
    upper=0.0,
  ),
  'repeats': Flag('integer', 3, 'N', 'timed calls of each piece; the fastest counts'),
}
# --out means another thing to each command that has it.
OUT = {
  'sample': Flag(
    'path',
    '',
    'PATH',
    'images: PATH.png (or PATH, if it ends with .png) and the .npz beside it, WORKDIR/samples if '
    'empty; of --prompts: the folder of the answers, WORKDIR/answers if empty',
  ),
  'export': Flag(
    'path', '', 'PATH', 'FILE.safetensors or FILE.pth, or the folder of a model published as one'
  ),
  'pairs': Flag('path', '', 'DIR', 'the folder of the data set'),
}

COMMANDS = {
  'train': Command(
    'train, or continue, every run of the experiment in --workdir',
    'Trains the runs of the experiment one after the other. The same command continues from the '
    'newest checkpoints, with the same bits as a run that was never interrupted, and skips runs '
    'that are finished. On SIGTERM or Ctrl-C the last complete step is saved first. At the end, '
    'and now and then before, WORKDIR/report.html is written. Several hosts run the same command.',
    ('config', 'workdir', 'wandb', 'heartbeat'),
    ('config', 'workdir'),
    '--config experiments/quickstart.py --workdir runs/quickstart --config.grpo.steps=200',
    {0: 'all runs are finished; or the command was told to stop, and what it had done is saved'},
  ),
  'eval': Command(
    'run the evaluators of a run on its last checkpoint',
    'Prints the numbers of every evaluator in the config (`evals`), and writes their pictures to '
    'eval/ in the folder of the run. Nothing is trained. Several hosts run the same command.',
    ('config', 'workdir', 'run', 'heartbeat'),
    ('config', 'workdir'),
    '--config experiments/quickstart.py --workdir runs/quickstart --run pretrain',
    {},
  ),
  'sample': Command(
    'draw images from the last checkpoint, or answer --prompts',
    'A policy of classes draws --per_class images of each of --labels: a PNG grid and an .npz with '
    '`image` (uint8) and `label`, or one PNG per image in --folder. A policy of text and images '
    'answers the dialogues of --prompts: its images, answers.jsonl and index.html in --out. A '
    'folder that is not complete is continued by the same command.',
    (
      'config',
      'workdir',
      'run',
      'labels',
      'per_class',
      'preset',
      'folder',
      'npz',
      'prompts',
      'max_text_tokens',
      'begin',
      'seed',
      'out',
    ),  # fmt: skip
    ('config', 'workdir'),
    '--config experiments/quickstart.py --workdir runs/quickstart --labels=3,5 --out=digits.png',
    {},
  ),
  'export': Command(
    'write the last checkpoint in the layout of the reference implementation',
    'Writes the policy of the last good checkpoint as the official PyTorch code loads it. The '
    'adapters of a LoRA run are merged; to a path without an ending they are written alone, as a '
    'folder for PEFT. A model that is published as a folder may be written as one, with its image '
    'tokenizer, config and text tokenizer.',
    ('config', 'workdir', 'run', 'out'),
    ('config', 'workdir', 'out'),
    '--config experiments/quickstart.py --workdir runs/quickstart --out=digits.safetensors',
    {},
  ),
  'pairs': Command(
    'best and worst of groups that a GRPO run would draw, as a data set for DPO',
    'Draws --groups groups with the weights that the GRPO run --config would start from, scores '
    'them with its rewards, and keeps the best and the worst image of each as tokens, in a TFDS '
    'data set. The same command continues one that was interrupted.',
    ('config', 'run', 'groups', 'seed', 'out'),
    ('config', 'out'),
    '--config experiments/grpo_var_aesthetic.py --out=pairs/aesthetic --groups=20000',
    {},
  ),
  'compile': Command(
    'compile every program for the TPU pod of the experiment, without one: does it fit?',
    'Compiles the programs of a run, or of all runs of a chain, for the chips of --topology. '
    'Prints memory per chip, FLOPs and collectives of each program. Neither TPU, weights nor data '
    "are needed, but libtpu: pip install -e '.[tpu]'.",
    ('config', 'run', 'topology', 'effort'),
    ('config',),
    '--config experiments/grpo_var_aesthetic.py:d30 --topology=v6e:4x4',
    {
      0: 'all programs fit',
      1: 'a program does not fit (its largest buffers are named); or an '
      'unexpected error, with its traceback',
    },
  ),
  'bench': Command(
    'time the rollout, its parts, decoding, gradient and update of a GRPO or SFT run',
    'Times the pieces of one step of a run of VAR on random weights: images/s, tokens/s, and '
    'FLOP/s against the matmul peak that is measured in the same process. Neither weights nor data '
    'are needed.',
    ('config', 'run', 'repeats'),
    ('config',),
    '--config experiments/grpo_var_d16_jpeg.py --config.data.prompts=1',
    {},
  ),
}


def flags_of(command: str) -> dict:
  """{name: Flag} of a command."""
  return {name: OUT[command] if name == 'out' else FLAGS[name] for name in COMMANDS[command].flags}


def parse(command: str, arguments):
  """absl's FlagValues of the arguments of a command: `.config`, `.workdir` and so on, `~` in paths
  expanded. Raises ValueError for an unknown flag, key or value and for a missing flag, and what
  overrides.check raises."""
  check_names(command, arguments)
  arguments = expand_config(arguments)
  overrides.check(arguments)
  argv = [PROGRAM, *arguments]
  values, absl_flags = define(command, argv)
  try:
    rest = values(argv)
  except (absl_flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    raise ValueError(errors.sentence(e)) from e
  if rest[1:]:
    raise ValueError(f'argument {rest[1]!r} found, flags (--name=value) expected')
  for name in COMMANDS[command].required:
    if not values[name].value:
      raise ValueError(f'--{name} is missing')
  expand_paths(command, values)
  return values


def expand_config(arguments) -> list:
  """The arguments, with the file of --config where `~` says; absl reads it from them."""
  out, before = [], ''
  for argument in arguments:
    name, sign, value = argument.partition('=')
    if name in ('--config', '-config') and sign:
      argument = f'{name}={expand("config", value)}'
    elif before in ('--config', '-config'):
      argument = expand('config', argument)
    before = argument
    out.append(argument)
  return out


def expand_paths(command: str, values):
  """Replaces the paths among the flags of a command by those that they mean: here and nowhere else,
  so that all of the command means one place. Raises ValueError for one that is no local path."""
  for name, flag in flags_of(command).items():
    if flag.kind != 'path' or not values[name].value:
      continue
    if '://' in values[name].value:
      raise ValueError(f'--{name}: {values[name].value} found, a local path expected')
    values[name].value = expand(name, values[name].value)


def expand(name: str, value: str) -> str:
  """A path as it is meant, as a text; ValueError, which names the flag, if it means none."""
  try:
    return str(paths.path(value)) if value.startswith('~') or '\0' in value else value
  except ValueError as e:
    raise ValueError(f'--{name}: {e}') from e


def check_names(command: str, arguments):
  """Raises ValueError for a flag of an earlier version and for one of another command."""
  own = flags_of(command)
  for name in (x.lstrip('-').partition('=')[0] for x in arguments if x.startswith('-')):
    if name in own or name.startswith('config.'):
      continue
    if name in RENAMED:
      raise ValueError(f'--{name} found, it is called --{RENAMED[name]} now')
    if name == 'run' and command == 'train':
      raise ValueError('--run: train trains all runs that are not finished')
    if others := [x for x in COMMANDS if name in COMMANDS[x].flags]:
      raise ValueError(
        f'--{name}: a flag of {" and ".join(others)} found, one of {command} expected: '
        + ', '.join(f'--{x}' for x in own)
      )


def define(command: str, argv):
  """(absl's FlagValues with the flags of a command, the module absl.flags)."""
  from absl import flags as absl_flags
  from ml_collections import config_flags

  values = absl_flags.FlagValues()
  kinds = {
    'path': absl_flags.DEFINE_string,
    'string': absl_flags.DEFINE_string,
    'list': absl_flags.DEFINE_list,
    'integer': absl_flags.DEFINE_integer,
    'float': absl_flags.DEFINE_float,
  }
  for name, flag in flags_of(command).items():
    if flag.kind == 'config':
      config_flags.DEFINE_config_file(
        name, flag.default, flag.help, lock_config=True, flag_values=values, sys_argv=list(argv)
      )
      continue
    bounds = {'lower_bound': flag.lower, 'upper_bound': flag.upper}
    bounds = bounds if flag.kind in ('integer', 'float') else {}
    kinds[flag.kind](name, flag.default, flag.help, flag_values=values, **bounds)
  return values, absl_flags
