"""report.html of a workdir: the result, and of every run its samples over time, its curves and its
config."""

import json
import os
import pathlib
import re

import numpy as np

from vargrl.io import paths, text
from vargrl.reporting import curves, pages

# The order of the panels; '' is everything else.
ORDER = (
  *('reward', 'judge', 'loss', 'kl', 'entropy', 'ratio', 'clip_ratio', 'grad_norm'),
  *('', 'lr', 'time', 'speed'),
)
DIAGNOSTICS = ('lr', 'time', 'speed', 'data')  # panels that are folded away
SAMPLES = 6  # images per name: the first, some between, the last
IMAGE_BYTES = 1_600_000  # of all images of a page, before base64

STYLE = """
:root{color-scheme:light} *{box-sizing:border-box}
body{margin:0 auto;max-width:1140px;padding:2.5rem 1.25rem 4rem;color:#18181b;background:#fff;
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:clamp(1.6rem,4vw,2.3rem);line-height:1.15;letter-spacing:-.02em;margin:0 0 1.25rem}
h2{font-size:1.45rem;letter-spacing:-.01em;margin:0 0 .4rem}
h3{font-size:.95rem;color:#52525b;margin:1.8rem 0 .7rem}
nav a{display:inline-block;margin:0 .5rem .5rem 0;padding:.15rem .75rem;border:1px solid #d4d4d8;
border-radius:99px;color:#27272a;text-decoration:none;font-size:.9rem}
section{border-top:1px solid #e4e4e7;margin-top:2.5rem;padding-top:1.75rem}
.summary{border-collapse:collapse;width:100%;max-width:760px;margin-top:.75rem;
font-variant-numeric:tabular-nums}
.summary th,.summary td{padding:.6rem .5rem;text-align:right;border-bottom:1px solid #e4e4e7}
.summary th:first-child{text-align:left;padding-left:0;font-weight:500;overflow-wrap:anywhere}
.summary thead th{font-size:.8rem;font-weight:500;color:#71717a;border-color:#a1a1aa}
.summary td{font-size:1.1rem;color:#52525b;white-space:nowrap}
.summary .after{font-weight:700;color:#18181b} .summary small{display:block;color:#71717a}
.good,.bad{padding:.1rem .5rem;border-radius:6px} .good{background:#dcfce7;color:#166534}
.bad{background:#fee2e2;color:#991b1b} .lead{margin:.2rem 0;max-width:46rem} p{margin:.4rem 0}
.facts span{display:inline-block;margin:0 1.1rem .2rem 0;color:#71717a}
.facts b{color:#27272a;font-weight:600} .quiet{color:#71717a;font-size:.9rem}
.bar{display:inline-block;width:9rem;height:6px;margin-right:.7rem;border-radius:3px;
background:#e4e4e7;overflow:hidden;vertical-align:.12em} .bar i{display:block;height:100%;
background:#2563eb} figure{margin:0;break-inside:avoid}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(310px,100%),1fr));gap:1rem}
.panel{border:1px solid #e4e4e7;border-radius:10px;padding:.7rem .7rem .5rem;min-width:0}
.panel figcaption{display:flex;justify-content:space-between;gap:1rem;font-size:.9rem;
font-weight:600;margin-bottom:.3rem;overflow-wrap:anywhere} .panel b{color:#2563eb}
.panel svg{display:block;width:100%;height:auto} .panel svg text{font-family:inherit}
.legend{font-size:.78rem;color:#52525b;line-height:1.35;margin:.35rem 0 .1rem}
.legend span{display:inline-block;margin-right:.8rem} .legend i{display:inline-block;width:.7rem;
height:.7rem;border-radius:3px;margin-right:.3rem;vertical-align:-.06em}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(310px,100%),1fr));
gap:1.1rem} .samples.wide{grid-template-columns:repeat(auto-fill,minmax(min(470px,100%),1fr))}
.samples img{display:block;max-width:100%;height:auto;border-radius:4px}
.samples figcaption{font-size:.82rem;color:#71717a;margin-top:.3rem}
details{margin-top:1.8rem} details .panels{margin-top:.7rem}
summary{cursor:pointer;font-size:.95rem;font-weight:600;color:#52525b}
pre{font-size:.8rem;line-height:1.45;background:#fafafa;border:1px solid #e4e4e7;padding:1rem;
border-radius:10px;white-space:pre-wrap;overflow-wrap:anywhere}
@media print{body{padding:0;max-width:none;font-size:12px;print-color-adjust:exact}
.panels,.samples,.samples.wide{grid-template-columns:repeat(2,1fr)} nav{display:none}
h2,h3{break-after:avoid}}
"""


def write(
  workdir: str | os.PathLike, *, title: str, runs: list[str], summary: list[dict]
) -> pathlib.Path:
  """The path of workdir/report.html: one file that needs no network, no script and no other file.

  The last run comes first, its images above its curves; runs that have not begun come last. What a
  run has not written yet is left out, so that this may be called at any time.

  runs: names of the folders in `workdir`, in the order of training. summary: rows {'name',
  'before', 'after', 'better'}, where better is 'higher', 'lower' or ''."""
  workdir = paths.path(workdir)
  samples = {run: samples_of(workdir / run) for run in runs}
  rows = {run: read_rows(workdir / run / 'metrics.jsonl') for run in runs}
  order = sorted(reversed(runs), key=lambda run: not (rows[run] or samples[run]))
  count = sum(len(paths) for names in samples.values() for paths in names.values())
  budget = IMAGE_BYTES / max(1, count)
  links = ''.join(f'<a href="#run{runs.index(run)}">{pages.escape(run)}</a>' for run in order)
  body = [
    f'<header><h1>{pages.escape(title)}</h1></header>',
    f'<nav>{links}</nav>' if len(runs) > 1 else '',
    summary_table(summary),
  ]
  for run in order:
    inner = section(workdir, run, rows[run], samples[run], budget)
    body.append(f'<section id="run{runs.index(run)}">{inner}</section>')
  page = pages.page(title, STYLE, ''.join(body))
  text.write_text(workdir / 'report.html', page)
  return workdir / 'report.html'


def section(workdir, run, rows, samples, budget):
  """A run: what it is, its images, its curves, and folded its diagnostics and its config."""
  config = text.read_own_json(workdir / run / 'config.json') or {}
  parts = [
    f'<h2>{pages.escape(run)}</h2>' if run else '',
    description(config),
    progress(rows, config),
  ]
  for name, files in samples.items():
    figures = ''.join(figure(path, budget) for path in files)
    wide = ' wide' if 'class="wide"' in figures else ''
    parts.append(f'<h3>{pages.escape(name)}</h3><div class="samples{wide}">{figures}</div>')
  panels, diagnostics = [], []
  for title, lines in panels_of(series_of(rows)):
    folded = re.split('[/_ ]', title)[0] in DIAGNOSTICS
    (diagnostics if folded else panels).append((title, lines))
  if panels:
    parts.append(f'<h3>Curves</h3>{panel_grid(panels)}')
  if diagnostics:
    parts.append(fold('Diagnostics', panel_grid(diagnostics)))
  if not rows and not samples:
    parts.append('<p class="quiet">Nothing recorded yet.</p>')
  if config:
    shown = pages.escape(json.dumps(config, indent=2, ensure_ascii=False))
    parts.append(fold('The resolved config', f'<pre>{shown}</pre>'))
  return '\n'.join(parts)


def panel_grid(panels):
  """Panels side by side; panels: [(title, {label: (steps, values)})]."""
  return f'<div class="panels">{"".join(curves.panel(*panel) for panel in panels)}</div>'


def fold(title, inner):
  """What is closed until it is clicked."""
  return f'<details><summary>{title}</summary>{inner}</details>'


def summary_table(summary):
  """The table of what was before and after, '' of no rows."""
  if not summary:
    return ''
  rows = []
  for row in summary:
    before, after = row['before'], row['after']
    change, kind = '', ''
    if all(isinstance(x, (int, float)) for x in (before, after)):
      change = ('+' if after > before else '') + curves.number(after - before)
      if row['better'] and after != before:
        kind = 'good' if (after > before) == (row['better'] == 'higher') else 'bad'
    wish = {'lower': '↓ lower is better', 'higher': '↑ higher is better', '': ''}[row['better']]
    rows.append(
      f'<tr><th scope="row">{pages.escape(row["name"])}<small>{wish}</small></th>'
      f'<td>{curves.number(before)}</td><td class="after">{curves.number(after)}</td>'
      f'<td><span class="{kind}">{change}</span></td></tr>'
    )
  head = '<tr><th></th><th>before</th><th>after</th><th>change</th></tr>'
  return f'<table class="summary"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def description(config):
  """The config's own description, or its plain values and the names of its parts."""
  if not isinstance(config, dict) or not config:
    return ''
  if isinstance(config.get('description'), str):
    return f'<p class="lead">{pages.escape(config["description"])}</p>'
  facts = []
  for key, value in config.items():
    if isinstance(value, dict):
      value = ' '.join(str(value[k]).split('.')[-1] for k in ('name', 'size') if value.get(k))
    if isinstance(value, (str, int, float)) and 0 < len(str(value)) <= 40:
      facts.append(f'<span>{pages.escape(key)} <b>{pages.escape(value)}</b></span>')
  return f'<p class="facts">{"".join(facts[:8])}</p>'


def progress(rows, config):
  """How many of the steps are done."""
  last = max((row['step'] for row in rows), default=None)
  steps = config.get('steps') if isinstance(config, dict) else None
  if last is None:
    return ''
  if not isinstance(steps, int) or steps < 1:
    return f'<p class="quiet">Step {last:,}</p>'
  done = min(steps, last + 1)  # steps count from 0, and an evaluation may follow the last
  bar = f'<span class="bar"><i style="width:{100 * done / steps:.1f}%"></i></span>'
  return f'<p class="quiet">{bar}{done:,} of {steps:,} steps</p>'


def read_rows(path):
  """The rows of metrics.jsonl. Not by writer.load: a page is made where there is no jax."""
  rows = text.parse_rows(path.read_bytes()) if path.exists() else []
  return [row for _, row in rows if isinstance(row.get('step'), int)]


def series_of(rows):
  """{name: (steps, values)} without the values that were not finite."""
  series = {}
  for row in rows:
    for name, value in row.items():
      if name != 'step' and isinstance(value, (int, float)):
        steps, values = series.setdefault(name, ([], []))
        steps.append(row['step'])
        values.append(value)
  return {name: (np.array(x), np.array(y, float)) for name, (x, y) in series.items()}


def panels_of(series):
  """[(title, {label: (steps, values)})], in the order of reading."""
  numbered, groups, panels = {}, {}, []
  for name in series:
    stem, number = re.fullmatch(r'(.*?)[/_]?(\d*)', name).groups()
    if stem and number:
      numbered.setdefault(stem, []).append((int(number), name))
  numbered = {stem: sorted(members) for stem, members in numbered.items() if len(members) > 1}
  for stem, members in numbered.items():
    lines = {name.removeprefix(stem).strip('/_'): series[name] for _, name in members}
    panels.append((f'{stem} {members[0][0]}–{members[-1][0]}', lines))
  for name in series.keys() - {name for members in numbered.values() for _, name in members}:
    groups.setdefault(name.split('/')[0], {})[name] = series[name]
  for group, lines in groups.items():
    nested = {n.removeprefix(f'{group}/'): lines[n] for n in sorted(lines) if n != group}
    sizes = [np.abs(y).max() for _, y in nested.values()]
    # On one axis only if all of them can be read there; times may be small, they share a unit.
    if 1 < len(nested) <= len(curves.COLOURS) and (
      group == 'time' or max(sizes) <= 20 * min(sizes)
    ):
      panels.append((f'{group}/*', nested))
      lines = {n: y for n, y in lines.items() if n == group}
    panels += [(name, {'': line}) for name, line in lines.items()]
  return sorted(panels, key=lambda panel: rank(panel[0]))


def rank(title):
  """The place in ORDER of the word a name begins with; then of one that it only contains."""
  words = re.split('[/_ ]', title)
  begins = [w for w in ORDER if w and words[: w.count('_') + 1] == w.split('_')]
  found = next(iter(begins or [w for w in words if w in ORDER]), '')
  return ORDER.index(found), not begins, title


def samples_of(folder):
  """{name: paths}: the first, some between, the last image of each name."""
  samples = {}
  for path in sorted(folder.glob('images/*/')):
    paths = sorted((p for p in path.glob('*.png') if p.stem.isdigit()), key=lambda p: int(p.stem))
    if paths:
      keep = np.unique(np.linspace(0, len(paths) - 1, SAMPLES).round().astype(int))
      samples[path.name] = [paths[i] for i in keep]
  return samples


def figure(path, budget):
  """An image with its step, '' of what is none."""
  step = f'step {int(path.stem):,}'
  try:
    image, (x, y) = pages.image_tag(path, budget, step)
  except OSError:  # not an image, or removed since
    return ''
  kind = ' class="wide"' if x > max(450, 1.25 * y) else ''  # captions would be too small to read
  return f'<figure{kind}>{image}<figcaption>{step}</figcaption></figure>'
