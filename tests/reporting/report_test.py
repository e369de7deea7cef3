import base64
import html
from html import parser
import json
import math
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from vargrl.reporting import curves, images, report

EVIL = '<script>alert("x")</script>'
ROOT = pathlib.Path(__file__).parents[2]
VOID = {'meta', 'img', 'br', 'path', 'use', 'rect'}


def make(folder, *, steps=150, config=None, names=('loss',), pictured=('samples',)):
  folder.mkdir(parents=True, exist_ok=True)
  rows = [{'step': s} | {n: math.cos(s) + i for i, n in enumerate(names)} for s in range(steps)]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  if config is not None:
    (folder / 'config.json').write_text(json.dumps(config))
  for name in pictured:
    for step in range(0, 100, 10):
      image = np.full((8, 12, 3), step, np.uint8)
      images.save_png(folder / 'images' / name / f'{step:08d}.png', image)
  return folder


def page(workdir, runs=('',), summary=(), title='A run'):
  path = report.write(workdir, title=title, runs=list(runs), summary=list(summary))
  assert path == workdir / 'report.html'
  return path.read_text()


def parse(text):
  """(tags with attributes, words), and every tag is closed by the one that it opened."""
  tags, words, open_tags = [], [], []
  reader = parser.HTMLParser()

  def start(tag, attributes):
    tags.append((tag, dict(attributes)))
    if tag not in VOID:
      open_tags.append(tag)

  def end(tag):
    if tag not in VOID:
      assert open_tags.pop() == tag

  reader.handle_starttag, reader.handle_endtag, reader.handle_data = start, end, words.append
  reader.handle_startendtag = lambda tag, attributes: tags.append((tag, dict(attributes)))
  reader.feed(text)
  reader.close()
  assert not open_tags
  return tags, words


def titles(text):
  return re.findall(r'<figure class="panel"><figcaption>(.*?)<b>', text)


def test_the_page_is_one_file_that_asks_nothing_of_the_network(tmp_path):
  make(tmp_path, config={'steps': 150, 'init': {'policy': 'https://example.org/weights'}})
  text = page(tmp_path)
  tags, words = parse(text)
  for tag, attributes in tags:
    assert tag not in ('script', 'link', 'iframe', 'object')
    for key in ('src', 'href', 'xlink:href', 'srcset'):
      assert attributes.get(key, '#').startswith(('#', 'data:image/png;base64,'))
    assert not any(key.startswith('on') for key in attributes)
  assert '@import' not in text and not re.search(r'url\((?!#)', text)
  # The only address on the page is the one in the config, as text.
  assert text.count('http') == 1 and any('https://example.org' in word for word in words)
  assert {'svg', 'img', 'details', 'pre'} <= {tag for tag, _ in tags}


def test_pictures_are_the_files_and_captions_say_the_step(tmp_path):
  make(tmp_path)
  text = page(tmp_path)
  sources = re.findall(r'<img src="data:image/png;base64,([^"]+)" width="12" height="8"', text)
  steps = [0, 20, 40, 50, 70, 90]  # of 0, 10 .. 90: the first, four between, the last
  want = [(tmp_path / f'images/samples/{s:08d}.png').read_bytes() for s in steps]
  assert [base64.b64decode(s) for s in sources] == want
  assert re.findall(r'<figcaption>step (\d+)<', text) == [str(s) for s in steps]


def test_all_text_is_escaped(tmp_path):
  name = EVIL.replace('/', '')
  config = {'description': EVIL, EVIL: [EVIL]}
  make(tmp_path / name, config=config, names=(EVIL, 'a/' + EVIL, 'a/b'), pictured=(name,))
  row = {'name': EVIL, 'before': EVIL, 'after': 1, 'better': ''}
  text = page(tmp_path, [name, 'x'], [row], title=EVIL)
  tags, words = parse(text)
  assert '<script' not in text and 'script' not in {tag for tag, _ in tags}
  assert html.escape(EVIL) in text and html.escape(name) in text
  assert words.count(EVIL) >= 4  # the title twice, the table, the description


def test_panels_come_in_the_order_of_reading(tmp_path):
  names = ['time/step', 'time/rollout', 'lr', 'extra', 'grad_norm', 'clip_ratio/low', 'ratio', 'kl']
  names += ['clip_ratio/high', 'loss', 'judge/accuracy', 'reward_std', 'reward', 'frac_reward_zero']
  make(tmp_path, names=names + [f'entropy/scale_{i}' for i in range(11)])
  assert titles(page(tmp_path)) == [
    'reward', 'reward_std', 'frac_reward_zero', 'judge/accuracy', 'loss', 'kl',
    'entropy/scale 0–10', 'ratio', 'clip_ratio/*', 'grad_norm', 'extra', 'lr', 'time/*',
  ]  # fmt: skip


def test_pictures_are_above_curves_and_diagnostics_are_folded(tmp_path):
  make(tmp_path, names=['reward', 'lr', 'time/step', 'data/unreadable', 'speed/mfu'])
  text = page(tmp_path)
  assert text.index('<h3>samples</h3>') < text.index('<h3>Curves</h3>')
  before, _, folded = text.partition('<details><summary>Diagnostics</summary>')
  assert titles(before) == ['reward']
  assert titles(folded) == ['data/unreadable', 'lr', 'time/step', 'speed/mfu']
  assert '<details open' not in text


def test_the_last_run_of_a_chain_comes_first(tmp_path):
  for run in ('first', 'second', 'third'):
    make(tmp_path / run)
  text = page(tmp_path, ['first', 'second', 'third'])
  assert re.findall('<h2>(.*?)</h2>', text) == ['third', 'second', 'first']


def test_a_numbered_family_is_one_panel_with_a_legend_in_numeric_order(tmp_path):
  make(tmp_path, names=[f'entropy/scale_{i}' for i in (10, 2, 0, 1)])
  legend = re.search(r'<p class="legend">(.*?)</p>', page(tmp_path))[1]
  assert re.sub(r'<.*?>', ' ', legend).split() == ['0', '1', '2', '10']
  assert len(set(re.findall('#[0-9a-f]{6}', legend))) == 4


def test_metrics_of_unlike_size_do_not_share_an_axis(tmp_path):
  rows = [{'step': s, 'reward/hps': 0.2, 'reward/tokens': 900.0} for s in range(3)]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(json.dumps(row) for row in rows))
  assert titles(page(tmp_path)) == ['reward/hps', 'reward/tokens']


def test_the_table_says_what_became_better(tmp_path):
  rows = [
    {'name': 'fid', 'before': 40.0, 'after': 20.0, 'better': 'lower'},
    {'name': 'reward', 'before': 0.5, 'after': 0.25, 'better': 'higher'},
    {'name': 'images', 'before': 0, 'after': 1_000_000, 'better': ''},
    {'name': 'peak', 'before': None, 'after': 1.25e-5, 'better': 'lower'},
  ]
  text = page(tmp_path, summary=rows)
  assert re.findall(r'<span class="(\w*)">(.*?)</span></td>', text) == [
    ('good', '−20'), ('bad', '−0.25'), ('', '+1,000,000'), ('', ''),
  ]  # fmt: skip
  assert '<td>–</td><td class="after">1.25e−5</td>' in text


def test_a_run_that_is_missing_empty_or_cut_is_still_a_page(tmp_path):
  make(tmp_path / 'cut', steps=4, names=('loss',), config={'steps': 8}, pictured=())
  with (tmp_path / 'cut' / 'metrics.jsonl').open('ab') as file:
    file.write(b'{"step": 4, "loss": null}\n{"step": 5, "lo')
  bad = make(tmp_path / 'bad', steps=0, pictured=('a',))
  (bad / 'config.json').write_text('{"half')
  (bad / 'images' / 'a' / f'{50:08d}.png').write_bytes(b'no picture')
  text = page(tmp_path, ['cut', 'bad', 'later'])
  parse(text)
  assert text.count('Nothing recorded yet') == 1 and titles(text) == ['loss']
  assert '5 of 8 steps' in text and text.count('<img') == 5
  # The last run first; what has recorded nothing comes after what has.
  order = ['#run1', '#run0', '#run2']
  assert re.findall('href="(#run.)"', text) == order
  assert re.findall('<section id="(run.)"', text) == [name[1:] for name in order]


@pytest.mark.parametrize('value', [0.0, 1e-30, -1e30, 1.0])
def test_one_point_and_constant_curves_draw(tmp_path, value):
  rows = [{'step': s, 'a': value} | ({'b': value} if s == 7 else {}) for s in range(300)]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(json.dumps(row) for row in rows))
  text = page(tmp_path)
  assert titles(text) == ['a', 'b']
  drawn = ' '.join(re.findall(r' d="([^"]*)"', text)).lower()
  assert drawn and 'nan' not in drawn and 'inf' not in drawn


def test_a_spike_survives_a_long_curve(tmp_path):
  y = np.random.default_rng(0).normal(size=50_000)
  y[31_234] = 77
  x, kept = curves.extremes(np.arange(len(y)), y)
  assert len(x) <= 2 * curves.POINTS and kept.max() == 77 and kept.min() == y.min()


def test_the_page_depends_on_the_files_alone_and_stays_small(tmp_path):
  folder = make(tmp_path, names=['loss', 'kl', 'reward'], pictured=())
  rng = np.random.default_rng(0)
  for step in range(4):  # incompressible: 1 MB each as PNG
    picture = rng.integers(0, 255, (600, 600, 3), np.uint8)
    images.save_png(folder / f'images/samples/{step:08d}.png', picture)
  first = page(tmp_path)
  assert page(tmp_path) == first
  assert len(first) < 3_000_000
  assert not [p for p in tmp_path.iterdir() if p.name.endswith('.part')]


def test_a_page_is_made_without_jax_and_matplotlib_is_imported_late():
  code = 'from vargrl.reporting import report; import sys\n'
  code += 'print(*(n in sys.modules for n in sys.argv[1:]))'
  done = subprocess.run(
    [sys.executable, '-c', code, 'jax', 'matplotlib'],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=True,
  )
  assert done.stdout.split() == ['False', 'False']


def test_curves_of_some_steps_alone_are_drawn_over_their_own_steps(tmp_path):
  make(tmp_path, steps=0, pictured=())
  kind = lambda s: (
    {'kl/scale_0': 1.0 + s, 'value': 2.0} if s % 4 < 3 else {'kl/scale_1': 3.0, 'kl/image': 4.0}
  )
  rows = [{'step': s, 'reward': s / 10, 'kl': 1.0} | kind(s) for s in range(12)]
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  text = page(tmp_path)
  parse(text)
  assert {'reward', 'value', 'kl', 'kl/scale 0–1'} <= set(titles(text)), titles(text)
