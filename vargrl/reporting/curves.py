"""Curves as inline SVG, in small panels."""

import io
import re

import numpy as np

from vargrl.reporting import pages

COLOURS = ('#2563eb', '#ea580c', '#0d9488', '#9333ea', '#ca8a04', '#db2777')
NICE = (1, 2, 2.5, 5, 10)  # the first digits of ticks
POINTS = 240  # of a curve: a panel is about 350 pixels wide


def panel(title, lines):
  """A <figure> of curves; lines: {label: (steps, values)}, of one line {'': (steps, values)}."""
  from matplotlib import colormaps, colors

  colours = COLOURS
  if all(label.isdigit() for label in lines):  # an order is seen in shades, not in hues
    colours = [colors.to_hex(c) for c in colormaps['viridis'](np.linspace(0, 0.88, len(lines)))]
  image = svg([(x, y, colour) for (x, y), colour in zip(lines.values(), colours, strict=False)])
  if len(lines) == 1:
    last, legend = number(float(lines[''][1][-1])), ''
  else:
    keys = [
      f'<i style="background:{c}"></i>{pages.escape(n)}'
      for n, c in zip(lines, colours, strict=False)
    ]
    last, legend = '', f'<p class="legend"><span>{"</span><span>".join(keys)}</span></p>'
  caption = f'<figcaption>{pages.escape(title)}<b>{last}</b></figcaption>'
  return f'<figure class="panel">{caption}{image}{legend}</figure>'


def svg(lines):
  """One axis as inline SVG; its words stay words, in the font of the page."""
  import matplotlib
  from matplotlib import figure, ticker

  # A fixed salt: the ids inside, and so the page, depend on the numbers alone.
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'vargrl', 'font.size': 7.5}):
    fig = figure.Figure(figsize=(3.5, 1.75))
    axis = fig.add_axes((0.125, 0.115, 0.85, 0.85))
    shown = []
    for x, y, colour in lines:
      # What hardly goes back and forth, as a learning rate, is shown as it is.
      long = len(x) > 100 and np.abs(np.diff(y)).sum() > 4 * np.ptp(y)
      if long and len(lines) <= len(COLOURS):
        axis.plot(*extremes(x, y), color=colour, alpha=0.22, linewidth=0.7)
      x, y = smooth(x, y) if long else extremes(x, y)
      axis.plot(
        x, y, color=colour, linewidth=1.4, marker='o' if len(x) <= 25 else '', markersize=2.6
      )
      shown.append(y)
    least = min(y.min() for _, y, _ in lines)
    shown = np.concatenate(shown)
    if least > 0 and shown.max() > 100 * shown.min():  # shown: noise alone makes no scale
      axis.set_yscale('log')
      axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    else:
      axis.yaxis.set_major_locator(ticker.MaxNLocator(4, steps=NICE))
    axis.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=NICE, integer=True))
    axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))
    axis.yaxis.set_major_formatter(lambda v, _: short(f'{v:.5g}'))
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


def smooth(x, y):
  """A centred moving average over a fortieth of the curve, shorter at its ends."""
  window = np.ones(max(5, len(y) // 40 | 1))
  y = np.convolve(y, window, 'same') / np.convolve(np.ones(len(y)), window, 'same')
  keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), POINTS)).round().astype(int))
  return x[keep], y[keep]


def extremes(x, y):
  """The least and the greatest value of every piece: a spike must survive being drawn small."""
  if len(x) <= 2 * POINTS:
    return x, y
  pieces = np.array_split(np.arange(len(x)), POINTS)
  keep = np.unique([i[pick(y[i])] for i in pieces for pick in (np.argmin, np.argmax)])
  return x[keep], y[keep]


def number(x):
  """Four digits for a number, '–' for nothing, any other text as it is."""
  if x is None:
    return '–'
  if isinstance(x, str):
    return pages.escape(x)
  return short(f'{x:,}' if isinstance(x, int) else f'{x:.4g}')


def short(text):
  """A number with a short exponent and a minus sign."""
  return re.sub(r'e([+-])0*', lambda m: 'e' + m[1].strip('+'), text).replace('-', '−')
