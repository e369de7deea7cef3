"""HTML pages that need no network, no script and no other file: the frame, images, dialogues."""

import base64
from collections.abc import Sequence
import html
import os

from vargrl.reporting import images

DIALOGUES = 100  # on a page
IMAGE_BYTES = 4_000_000  # of the images of a page of dialogues, before base64
DIALOGUE_STYLE = """
body{margin:0 auto;max-width:760px;padding:2rem 1rem;color:#18181b;
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.3rem} section{border-top:1px solid #e4e4e7;padding:1rem 0}
p{margin:.3rem 0;white-space:pre-wrap}
.user,.system{color:#52525b} .assistant{padding-left:2rem}
b{font-weight:600;font-size:.8rem;color:#71717a}
img{display:inline-block;vertical-align:top;margin:.2rem;min-width:128px;max-width:100%;height:auto;
border:1px solid #e4e4e7;image-rendering:pixelated}
"""


def page(title: str, style: str, body: str) -> str:
  """A whole page; style: CSS, body: HTML."""
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">'
    f'<title>{escape(title)}</title><style>{style}</style></head>'
    f'<body>{body}</body></html>\n'
  )


def escape(text) -> str:
  """Text as HTML."""
  return html.escape(str(text))


def image_tag(path: str | os.PathLike, budget: float, alt: str) -> tuple[str, tuple[int, int]]:
  """(an <img> that holds the image itself, (x, y)); see images.embeddable. Raises OSError for what
  is no image."""
  kind, data, (x, y) = images.embeddable(path, budget)
  source = f'data:image/{kind};base64,{base64.b64encode(data).decode()}'
  return f'<img src="{source}" width="{x}" height="{y}" alt="{escape(alt)}">', (x, y)


def dialogues_page(dialogues: Sequence) -> str:
  """A page of dialogues, of the first DIALOGUES of them: each [(role, [text or path of an image])],
  where an image is an os.PathLike."""
  shown, sections = dialogues[:DIALOGUES], []
  parts = [part for dialogue in shown for _, content in dialogue for part in content]
  budget = IMAGE_BYTES / max(1, sum(isinstance(part, os.PathLike) for part in parts))
  for dialogue in shown:
    lines = []
    for role, content in dialogue:
      inner = ''.join(
        image_tag(part, budget, 'image')[0] if isinstance(part, os.PathLike) else escape(part)
        for part in content
      )
      lines.append(f'<p class="{escape(role)}"><b>{escape(role)}</b> {inner}</p>')
    sections.append(f'<section>{"".join(lines)}</section>')
  title = f'{len(dialogues)} answers'
  title += f', the first {DIALOGUES}' if len(dialogues) > DIALOGUES else ''
  return page(title, DIALOGUE_STYLE, f'<h1>{title}</h1>{"".join(sections)}')
