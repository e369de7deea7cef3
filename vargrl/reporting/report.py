"""One page per run for people: the result, the curves, the samples over time, the config."""

import html
import io
import json
import os
import pathlib
import re

import numpy as np

from vargrl.reporting import images as pictures

# The order of the panels; '' is everything else.
ORDER = (
  *('reward', 'judge', 'loss', 'kl', 'entropy', 'ratio', 'clip_ratio', 'grad_norm'),
  *('', 'lr', 'time', 'speed'),
)
COLOURS = ('#2563eb', '#ea580c', '#0d9488', '#9333ea', '#ca8a04', '#db2777')
SHOWN = 6  # pictures per name: the first, some between, the last
BYTES = 1_600_000  # of all pictures of a page, before base64
NICE = (1, 2, 2.5, 5, 10)  # the first digits of ticks
POINTS = 240  # of a curve: a panel is about 350 pixels wide

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
details{margin-top:1.8rem} summary{cursor:pointer;font-size:.95rem;font-weight:600;color:#52525b}
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
  What a run has not written yet is left out, so that it can be called at any time."""
  workdir = pathlib.Path(workdir)
  shown = {run: _chosen(workdir / run) for run in runs}
  budget = BYTES / max(1, sum(len(paths) for names in shown.values() for paths in names.values()))
  sections = [_run(workdir, run, shown[run], budget) for run in runs]
  links = ''.join(f'<a href="#run{i}">{_text(run)}</a>' for i, run in enumerate(runs))
  body = [
    f'<header><h1>{_text(title)}</h1></header>',
    f'<nav>{links}</nav>' if len(runs) > 1 else '',
    _table(summary),
    *(f'<section id="run{i}">{section}</section>' for i, section in enumerate(sections)),
  ]
  page = pictures.page(title, STYLE, ''.join(body))
  pictures.save_bytes(workdir / 'report.html', page.encode())
  return workdir / 'report.html'


def _run(workdir, run, shown, budget):
  rows, config = _rows(workdir / run / 'metrics.jsonl'), _config(workdir / run / 'config.json')
  parts = [f'<h2>{_text(run)}</h2>' if run else '', _description(config), _progress(rows, config)]
  panels = [_panel(*panel) for panel in _panels(_series(rows))]
  if panels:
    parts.append(f'<h3>Curves</h3><div class="panels">{"".join(panels)}</div>')
  for name, paths in shown.items():
    images = ''.join(_figure(path, budget) for path in paths)
    wide = ' wide' if 'class="wide"' in images else ''
    parts.append(f'<h3>{_text(name)}</h3><div class="samples{wide}">{images}</div>')
  if not rows and not shown:
    parts.append('<p class="quiet">Nothing recorded yet.</p>')
  if config:
    text = _text(json.dumps(config, indent=2, ensure_ascii=False))
    parts.append(f'<details><summary>The resolved config</summary><pre>{text}</pre></details>')
  return '\n'.join(parts)


# The words.


def _text(x):
  return html.escape(str(x))


def _number(x):
  """Four digits for a number, '–' for nothing, any other text as it is."""
  if x is None:
    return '–'
  if isinstance(x, str):
    return _text(x)
  return _short(f'{x:,}' if isinstance(x, int) else f'{x:.4g}')


def _short(text):
  return re.sub(r'e([+-])0*', lambda m: 'e' + m[1].strip('+'), text).replace('-', '−')


def _table(summary):
  if not summary:
    return ''
  rows = []
  for row in summary:
    before, after = row['before'], row['after']
    change, kind = '', ''
    if all(isinstance(x, (int, float)) for x in (before, after)):
      change = ('+' if after > before else '') + _number(after - before)
      if row['better'] and after != before:
        kind = 'good' if (after > before) == (row['better'] == 'higher') else 'bad'
    wish = {'lower': '↓ lower is better', 'higher': '↑ higher is better', '': ''}[row['better']]
    rows.append(
      f'<tr><th scope="row">{_text(row["name"])}<small>{wish}</small></th>'
      f'<td>{_number(before)}</td><td class="after">{_number(after)}</td>'
      f'<td><span class="{kind}">{change}</span></td></tr>'
    )
  head = '<tr><th></th><th>before</th><th>after</th><th>change</th></tr>'
  return f'<table class="summary"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _config(path):
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return {}


def _description(config):
  """The config's own description, or its plain values and the names of its parts."""
  if not isinstance(config, dict) or not config:
    return ''
  if isinstance(config.get('description'), str):
    return f'<p class="lead">{_text(config["description"])}</p>'
  facts = []
  for key, value in config.items():
    if isinstance(value, dict):
      value = ' '.join(str(value[k]).split('.')[-1] for k in ('name', 'size') if value.get(k))
    if isinstance(value, (str, int, float)) and 0 < len(str(value)) <= 40:
      facts.append(f'<span>{_text(key)} <b>{_text(value)}</b></span>')
  return f'<p class="facts">{"".join(facts[:8])}</p>'


def _progress(rows, config):
  last = max((row['step'] for row in rows), default=None)
  steps = config.get('steps') if isinstance(config, dict) else None
  if last is None:
    return ''
  if not isinstance(steps, int) or steps < 1:
    return f'<p class="quiet">Step {last:,}</p>'
  done = min(steps, last + 1)  # steps count from 0, and an evaluation may follow the last
  bar = f'<span class="bar"><i style="width:{100 * done / steps:.1f}%"></i></span>'
  return f'<p class="quiet">{bar}{done:,} of {steps:,} steps</p>'


# The curves.


def _rows(path):
  """Read here and not by writer.load: a page is made where there is no jax."""
  rows = []
  for line in path.read_bytes().splitlines() if path.exists() else ():
    try:
      row = json.loads(line)
    except ValueError:  # half a row: the run is being written or was killed
      continue
    if isinstance(row, dict) and isinstance(row.get('step'), int):
      rows.append(row)
  return rows


def _series(rows):
  """{name: (steps, values)} without the values that were not finite."""
  series = {}
  for row in rows:
    for name, value in row.items():
      if name != 'step' and isinstance(value, (int, float)):
        steps, values = series.setdefault(name, ([], []))
        steps.append(row['step'])
        values.append(value)
  return {name: (np.array(x), np.array(y, float)) for name, (x, y) in series.items()}


def _panels(series):
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
    if 1 < len(nested) <= len(COLOURS) and (group == 'time' or max(sizes) <= 20 * min(sizes)):
      panels.append((f'{group}/*', nested))
      lines = {n: y for n, y in lines.items() if n == group}
    panels += [(name, {'': line}) for name, line in lines.items()]
  return sorted(panels, key=lambda panel: _rank(panel[0]))


def _rank(title):
  """The place in ORDER of the word a name begins with; then of one that it only contains."""
  words = re.split('[/_ ]', title)
  begins = [w for w in ORDER if w and words[: w.count('_') + 1] == w.split('_')]
  found = next(iter(begins or [w for w in words if w in ORDER]), '')
  return ORDER.index(found), not begins, title


def _panel(title, lines):
  from matplotlib import colormaps, colors

  colours = COLOURS
  if all(label.isdigit() for label in lines):  # an order is seen in shades, not in hues
    colours = [colors.to_hex(c) for c in colormaps['viridis'](np.linspace(0, 0.88, len(lines)))]
  svg = _curves([(x, y, colour) for (x, y), colour in zip(lines.values(), colours, strict=False)])
  if len(lines) == 1:
    last, legend = _number(float(lines[''][1][-1])), ''
  else:
    keys = [
      f'<i style="background:{c}"></i>{_text(n)}' for n, c in zip(lines, colours, strict=False)
    ]
    last, legend = '', f'<p class="legend"><span>{"</span><span>".join(keys)}</span></p>'
  caption = f'<figcaption>{_text(title)}<b>{last}</b></figcaption>'
  return f'<figure class="panel">{caption}{svg}{legend}</figure>'


def _curves(lines):
  """One axis as inline SVG; its words stay words, in the font of the page."""
  import matplotlib
  from matplotlib import figure, ticker

  # A fixed salt: the ids inside, and so the page, depend on the numbers alone.
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'vargrl', 'font.size': 7.5}):
    fig = figure.Figure(figsize=(3.5, 1.75))
    axis = fig.add_axes((0.125, 0.115, 0.85, 0.85))
    drawn = []
    for x, y, colour in lines:
      # What hardly goes back and forth, as a learning rate, is shown as it is.
      long = len(x) > 100 and np.abs(np.diff(y)).sum() > 4 * np.ptp(y)
      if long and len(lines) <= len(COLOURS):
        axis.plot(*_extremes(x, y), color=colour, alpha=0.22, linewidth=0.7)
      x, y = _smooth(x, y) if long else _extremes(x, y)
      axis.plot(
        x, y, color=colour, linewidth=1.4, marker='o' if len(x) <= 25 else '', markersize=2.6
      )
      drawn.append(y)
    least = min(y.min() for _, y, _ in lines)
    drawn = np.concatenate(drawn)
    if least > 0 and drawn.max() > 100 * drawn.min():  # drawn: noise alone makes no scale
      axis.set_yscale('log')
      axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    else:
      axis.yaxis.set_major_locator(ticker.MaxNLocator(4, steps=NICE))
    axis.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=NICE, integer=True))
    axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))
    axis.yaxis.set_major_formatter(lambda v, _: _short(f'{v:.5g}'))
    axis.spines[['top', 'right', 'left']].set_visible(False)
    axis.spines['bottom'].set_color('#d4d4d8')
    axis.tick_params(which='both', length=0, colors='#71717a')
    axis.grid(axis='y', color='#ececef', linewidth=0.7)
    axis.margins(x=0.015)
    out, none = io.StringIO(), dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
    fig.savefig(out, format='svg', transparent=True, metadata=none)
  svg = out.getvalue()
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'\s(xmlns(:\w+)?="[^"]*"|width="[^"]*pt"|height="[^"]*pt")', '', svg)
  svg = re.sub(r'font: ([\d.]+px) [^;\"]*', r'font-size: \1', svg)
  return re.sub(r'\s*\n\s*', '\n', svg)


def _smooth(x, y):
  """A centred moving average over a fortieth of the curve, shorter at its ends."""
  window = np.ones(max(5, len(y) // 40 | 1))
  y = np.convolve(y, window, 'same') / np.convolve(np.ones(len(y)), window, 'same')
  keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), POINTS)).round().astype(int))
  return x[keep], y[keep]


def _extremes(x, y):
  """The least and the greatest value of every piece: a spike must survive being drawn small."""
  if len(x) <= 2 * POINTS:
    return x, y
  pieces = np.array_split(np.arange(len(x)), POINTS)
  keep = np.unique([i[pick(y[i])] for i in pieces for pick in (np.argmin, np.argmax)])
  return x[keep], y[keep]


# The pictures.


def _chosen(folder):
  """{name: paths}: the first, some between, the last picture of each name."""
  chosen = {}
  for path in sorted(folder.glob('images/*/')):
    paths = sorted((p for p in path.glob('*.png') if p.stem.isdigit()), key=lambda p: int(p.stem))
    if paths:
      keep = np.unique(np.linspace(0, len(paths) - 1, SHOWN).round().astype(int))
      chosen[path.name] = [paths[i] for i in keep]
  return chosen


def _figure(path, budget):
  step = f'step {int(path.stem):,}'
  try:
    image, (x, y) = pictures.inline(path, budget, step)
  except OSError:  # not a picture, or removed since
    return ''
  kind = ' class="wide"' if x > max(450, 1.25 * y) else ''  # captions would be too small to read
  return f'<figure{kind}>{image}<figcaption>{step}</figcaption></figure>'
