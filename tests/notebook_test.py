"""The notebook, cell by cell in a real Jupyter kernel, with the quickstart's smoke variant on
CPU.
"""

import base64
import io
import os
import pathlib
import re

from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
import nbformat
import numpy as np
from PIL import Image
import pytest

from vargrl import notebook

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / 'experiments' / 'colab.ipynb'
RUNS = ('tokenizer', 'classifier', 'pretrain', 'grpo')
# A Drive that is a folder: what the notebook asks of Colab, written down.
DRIVE = """
import pathlib
mounted = []
def mount(path):
  mounted.append(path)
  (pathlib.Path(path) / 'MyDrive').mkdir(parents=True, exist_ok=True)
"""


def titled(nb, word):
  """The code cell with this word in its first line."""
  found = [c for c in nb.cells if c.cell_type == 'code' and word in c.source.splitlines()[0]]
  assert len(found) == 1, word
  return found[0]


def text(cell, *streams):
  """What a cell printed to stdout, or to `streams`."""
  return ''.join(
    o.text for o in cell.outputs if o.output_type == 'stream' and o.name in (streams or ('stdout',))
  )


@pytest.fixture(scope='module')
def executed(tmp_path_factory):
  """The notebook with its outputs, run to Drive; its last cell is one of them again, without
  Drive.
  """
  folder = tmp_path_factory.mktemp('notebook')
  colab = folder / 'site' / 'google' / 'colab'
  colab.mkdir(parents=True)
  (colab / '__init__.py').touch()
  (colab / 'drive.py').write_text(DRIVE)
  nb = nbformat.read(NOTEBOOK, as_version=4)
  code = nbformat.v4.new_code_cell
  settings = f"source, variant, drive_folder = {str(ROOT)!r}, 'smoke', {str(folder / 'drive')!r}\n"
  # The steps of resume_test, whose compiled programs are the same.
  settings += (
    f"flags = '{' '.join(f'--config.{run}.steps=6 --config.{run}.save_every=2' for run in RUNS)}'\n"
  )
  nb.cells.insert(
    nb.cells.index(titled(nb, 'Settings')) + 1, code(settings + 'save_to_drive = True')
  )
  nb.cells.append(
    code('save_to_drive = False\n' + titled(nb, 'kept').source + '\nprint(drive.mounted)')
  )
  client = NotebookClient(
    nb, timeout=400, kernel_name='python3', resources={'metadata': {'path': folder}}
  )
  client.execute(env=environment(folder / 'site'))
  return nb, folder


def environment(*paths):
  """One device, as in a notebook, and the flags of resume_test."""
  return dict(
    os.environ,
    XLA_FLAGS='--xla_backend_optimization_level=0',
    JAX_PLATFORMS='cpu',
    PYTHONPATH=os.pathsep.join(map(str, (*paths, ROOT))),
  )


def pictures(cell):
  """[y, x, 3] of each PNG that a cell shows."""
  data = [
    base64.b64decode(o.data['image/png']) for o in cell.outputs if 'image/png' in o.get('data', {})
  ]
  return [np.asarray(Image.open(io.BytesIO(d)).convert('RGB')) for d in data]


def test_it_trains_and_shows_what_a_shell_would_show(executed):
  nb, folder = executed
  devices = text(titled(nb, 'Devices'))
  assert re.match(r'Python 3\.\d+\.\d+, jax \d', devices) and '1 x cpu' in devices
  train = titled(nb, "'train'")
  assert all(f'{run}: objectives.' in text(train) for run in RUNS) and 'judge/wrong' in text(train)
  assert '6/6' in text(train, 'stderr'), 'no progress was shown'
  assert (
    folder / 'drive/MyDrive/vargrl/runs/quickstart_smoke/digits.safetensors'
  ).stat().st_size > 1000


def test_pictures_and_curves_are_outputs(executed):
  nb, _ = executed
  before, after = pictures(titled(nb, 'PIL'))
  assert before.shape == after.shape and (before != after).any()
  assert min(len(np.unique(p)) for p in (before, after)) > 16, 'pictures of nothing'
  page = titled(nb, 'page').outputs[0].data['text/html']
  assert page.startswith('<div><iframe srcdoc="') and page.count('"') == 4, (
    'the page ends where a quotation mark does'
  )
  assert (
    page.count('&lt;section') == len(RUNS)
    and page.count('&lt;svg') > 20
    and page.count('data:image/png') >= 4
  )


def test_drive_is_asked_for_only_when_wished(executed):
  nb, folder = executed
  assert text(nb.cells[-1]).split('\n')[:2] == [
    f'{ROOT}/runs/quickstart_smoke',
    str([f'{folder}/drive']),
  ]


def test_a_refused_command_ends_a_cell_with_an_error(capsys, tmp_path):
  with pytest.raises(RuntimeError, match='train ended with exit code 2'):
    notebook.run('train', '--config', NOTEBOOK.parent / 'quickstrat.py', '--workdir', tmp_path)
  assert 'quickstart.py' in capsys.readouterr().err


def test_it_is_kept_without_outputs_and_is_plain_python():
  nb = nbformat.read(NOTEBOOK, as_version=4)
  nbformat.validate(nb)
  for cell in nb.cells:
    assert not cell.get('outputs') and cell.get('execution_count') is None
    if cell.cell_type == 'code':
      compile(cell.source, 'cell', 'exec')  # no magics: they do not stop where they fail


@pytest.mark.slow
def test_a_cell_that_was_interrupted_or_is_done_can_be_run_again(tmp_path):
  manager, client = start_new_kernel(kernel_name='python3', env=environment(), cwd=str(tmp_path))

  def execute(cell, until=None):
    """(status, what it printed); interrupted when it has printed `until`."""
    printed, identity = '', client.execute(cell)
    while True:
      message = client.get_iopub_msg(timeout=300)
      if message['parent_header'].get('msg_id') != identity:
        continue
      if message['msg_type'] == 'stream':
        printed += message['content']['text']
      if until and until in printed:
        until = manager.interrupt_kernel()
      if message['msg_type'] == 'status' and message['content']['execution_state'] == 'idle':
        break
    return client.get_shell_msg(timeout=10)['content']['status'], printed

  try:
    assert execute('from vargrl import notebook; notebook.start()')[0] == 'ok'
    experiment = f'{ROOT}/experiments/quickstart.py:smoke'
    train = f"notebook.run('train', '--config', '{experiment}', '--workdir', '{tmp_path}/run')"
    for run in ('tokenizer', 'pretrain', 'grpo'):
      printed = execute(train, until=f'{run}:   0%')[1]
      assert f'{run}:   0%' in printed and 'judge/wrong' not in printed
    status, printed = execute(train)
    assert status == 'ok' and 'judge/wrong' in printed
    assert (
      all(f'{run}: finished' in printed for run in RUNS[:3]) and 'grpo: objectives.grpo' in printed
    )
    status, printed = execute(train)
    assert status == 'ok' and all(f'{run}: finished' in printed for run in RUNS)
  finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
