"""Commands that messages and the README name: each is there, and takes the options."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from vargrl.commands import flags
from vargrl.io import downloads
from vargrl.models import infinity, qwen2, qwen2_vl, unified, var, vit
from vargrl.rewards import aesthetic, image_reward, towers
from vargrl.tokenizers import bsq, vq

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = [*sorted((ROOT / 'vargrl').rglob('*.py')), ROOT / 'README.md', ROOT / 'setup.py']
SOURCES += sorted((ROOT / 'experiments').glob('*.py'))
TEXTS = {path: path.read_text() for path in SOURCES}
BIN = pathlib.Path(sys.executable).parent


def help_of(*command):
  """What `COMMAND --help` prints; it must be there and succeed."""
  program = shutil.which(str(BIN / command[0])) or shutil.which(command[0])
  assert program, command
  return subprocess.run(
    [program, *command[1:], '--help'], capture_output=True, text=True, check=True
  ).stdout


@pytest.fixture(scope='module')
def hf():
  pytest.importorskip('huggingface_hub')
  return help_of('hf', 'download')


def test_the_hubs_command_takes_what_is_said_to_it(hf):
  """Those of messages, as `downloads` makes them, and the README's own."""
  said = [downloads.from_hub('a/b c.pth', 'x y').strip('`')]
  said += re.findall(r'^hf download .*', TEXTS[ROOT / 'README.md'], re.MULTILINE)
  assert len(said) > 1
  for line in said:
    words = shlex.split(line)
    assert words[:2] == ['hf', 'download'] and '/' in words[2]
    options = {x for x in words if x.startswith('--')}
    assert options and all(re.search(rf'\s{x}\s', hf) for x in options), (line, hf)


def test_commands_are_made_in_one_place_and_none_is_gone():
  for path, text in TEXTS.items():
    assert 'huggingface-cli' not in text, path
    if path.suffix == '.py' and path.name != 'downloads.py':
      assert not re.search(r'hf download|curl -|wget ', text), path


def test_what_pip_is_asked_for_is_there():
  """This package is installed from its folder alone; its extras are those of setup.py."""
  extras = set(re.findall(r"^    '(\w+)': \[", TEXTS[ROOT / 'setup.py'], re.MULTILINE))
  for path, text in TEXTS.items():
    for name in re.findall(r"""pip install (?:-\S+ )?["']?([^\s"'`)]+)""", text):
      name, _, extra = name.partition('[')
      assert name != 'vargrl', path
      assert not (name == '.' and extra) or extra.rstrip(']') in extras, (path, extra)


def test_commands_of_messages_are_ours():
  found = {
    name
    for text in TEXTS.values()
    for name in re.findall(r'python -m vargrl\.main (\w+)', text.replace('\n', ' '))
  }
  assert found - {'COMMAND', 'ARGUMENTS'} <= {*flags.COMMANDS} and len(found) > 4


@pytest.mark.parametrize('command', [[], *([x] for x in flags.COMMANDS)])
def test_help_of_our_own_command_is_printed_without_a_device(command):
  out = help_of('python', '-m', 'vargrl.main', *command)
  assert out.startswith('usage: python -m vargrl.main')


def test_what_is_published_has_an_owner():
  modules = (infinity, qwen2, qwen2_vl, unified, var, vit, bsq, vq)
  published = [module.HUB for module in modules]
  published += [*towers.HUB.values(), *image_reward.PUBLISHED.values()]
  assert all(re.fullmatch(r'[\w-]+/[\w.-]+( [\w.-]+)*', x) for x in published)


def test_names_with_spaces_are_quoted():
  assert downloads.from_url('https://x/y', '/a b/c') == "`curl -L -o '/a b/c' https://x/y`"
  assert downloads.from_url('https://x/y') == '`curl -LO https://x/y`'
  assert downloads.from_hub('a/b', '/a b') == "`hf download a/b --local-dir '/a b'`"
  assert aesthetic.download_hint().count('`curl -LO https://github.com/') == 2
