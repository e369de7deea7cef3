"""Log-probabilities of rows of words and pictures (rollout/interleaved.py) from one teacher-forced
pass.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.models import qwen2
from vargrl.rollout import bits, groups, sampling
from vargrl.rollout.parts import last, parted, read, remembered
from vargrl.types import bounds


def laid_out(c, model, words_W):
  """How a row of tokens lies in a sequence after its prompt: (spans [(kind, first place, places)],
  there_S bool).

  Words that follow the end of a row, and pictures of rows that are over, are not there.
  """
  start, spans, there, at, alive = model.c.special[0], [], [], 0, jnp.asarray(True)

  def add(kind, places, there_L):
    spans.append((kind, sum(span[2] for span in spans), places))
    there.append(jnp.broadcast_to(there_L, (places,)))

  for i, length in enumerate(c.words):
    if length:
      t_L, at = words_W[at : at + length], at + length
      ends_L = (t_L[:, None] == jnp.array((start, *c.stop))[None]).any(-1)
      before_L = jnp.cumsum(ends_L) - ends_L == 0
      add('words', length, before_L & alive)
      alive &= (before_L & (t_L == start)).any()
    if i == c.pictures:
      break
    add('bits', model.c.draw.length, alive)
    if i + 1 < c.pictures or c.words[-1]:
      add('end', 1, alive)
  return spans, jnp.concatenate(there)


def hidden(model, c, parts, prompt, tokens, inputs_ILC, keep_X2=None):
  """({'words': x_1WD, 'bits': x_1LD}, head_B2D): what the head of each part works on."""
  spans, there_S = laid_out(c, model, tokens['words'])
  (x_11D, cache, position), h_1PD, seen_1P = read(parts, prompt)
  cond_BD, at, x = parts.both('vector', jnp.zeros(1, bool)), {'words': 0, 'bits': 0}, []
  for kind, _, places in spans:
    if kind == 'words':
      x.append(parts.words('embed', tokens['words'][None, at[kind] : at[kind] + places]))
    elif kind == 'end':
      x.append(parts.words('embed', jnp.array([[model.c.special[1]]])))
    else:
      x += [parts.both('first', cond_BD), parts.both('next', inputs_ILC[at[kind]][None])]
    at[kind] = at.get(kind, 0) + (places if kind == 'words' else 1)
  place_S = jnp.cumsum(there_S) - there_S
  first = min([at for kind, at, _ in spans if kind == 'bits'], default=len(there_S))
  shift = (
    np.where(np.arange(len(there_S)) >= first, 1, 0) * (prompt['length'] - position)
    if c.released
    else 0
  )
  h_1SD = parts.words(
    'forward',
    jnp.concatenate(x, 1),
    (position + place_S + shift)[None],
    there_S.astype(jnp.int32)[None],
    cache,
  )
  said, drawn, memory = [], [], [(h_1PD, seen_1P, last(seen_1P) if not c.words[0] else None)]
  before = x_11D  # the last place before a span
  for kind, a, places in spans:
    h_1LD, there_1L = h_1SD[:, a : a + places], there_S[None, a : a + places]
    if kind == 'bits':
      z_1LD, (texts, masks) = parts.both('outward', h_1LD), remembered(parts, memory)
      drawn.append(parts.bits('decode', z_1LD, cond_BD, texts, masks, keep_X2))
      memory[-1] = (*memory[-1][:2], None)
      continue
    if kind == 'words':
      said.append(jnp.concatenate([before, h_1LD[:, :-1]], 1))
    memory.append((h_1LD, there_1L, last(there_1L) if kind == 'words' else None))
    before = h_1LD[:, -1:]
  join = lambda parts: (
    jnp.concatenate(parts, 1) if parts else jnp.zeros((1, 0, x_11D.shape[-1]), x_11D.dtype)
  )
  return {'words': join(said), 'bits': join([x for x, _ in drawn])}, drawn[0][1] if drawn else None


def score(
  model, tokenizer, c, params, vq_params, prompt, tokens, keep_X2=None, shown=None, reference=None
):
  """One prompt, one row of tokens -> Scores, each field [L], from one teacher-forced pass over
  them.

  Logits exist for few of them at a time, see groups.in_chunks. What is not there (see `laid_out`)
  is scored too: the rollout's mask says so. shown: the bits that the model sees in the place of
  tokens['bits'] [I L, e]; None: these. keep_X2: drop-path factors of the decoder. reference:
  parameters of the same model, or None."""
  stop, length = jax.lax.stop_gradient, model.c.draw.length
  shown = tokens['bits'] if shown is None else shown
  inputs_ILC = stop(
    tokenizer.apply({'params': vq_params}, shown.reshape(c.pictures, length, -1), method='embed')
    if c.pictures
    else None
  )

  def made(params, keep_X2):
    parts = parted(model, params | {'lm': qwen2.with_head(model.c.lm, params['lm'])})
    keep = None if keep_X2 is None else keep_X2[None]
    return parts, *hidden(model, c, parts, prompt, tokens, inputs_ILC, keep)

  ours, theirs = made(params, keep_X2), None
  if reference is not None:
    parts, x, head = made(stop(reference), None)
    theirs = parts, stop(x), stop(head)
  pair = [part for part in (ours, theirs) if part is not None]
  temperatures = c.temperatures(len(model.c.scales))
  by_place = np.tile(
    np.repeat(np.float32(temperatures), [b - a for a, b in bounds(model.c.scales)]), c.pictures
  )

  def of_words(x, t_L):
    logits = [parts.words('logits', x)[0] / c.temperature for x, (parts, *_) in zip(x, pair)]
    return sampling.scores(logits[0], t_L, *map(stop, logits[1:]))

  def of_bits(x, t_Le, temperature_L):
    logits = [
      parts.bits('logits', x, head)[0] / temperature_L[:, None, None]
      for x, (parts, _, head) in zip(x, pair)
    ]
    out = sampling.scores(logits[0], t_Le, *map(stop, logits[1:]))
    return jax.tree.map(lambda x: x.sum(-1), out).replace(hit=out.hit.mean(-1))

  found = {}
  if sum(c.words):
    found['words'] = groups.in_chunks(of_words, [p[1]['words'] for p in pair], tokens['words'])
  if c.pictures:
    found['bits'] = groups.in_chunks(
      of_bits, [p[1]['bits'] for p in pair], tokens['bits'], by_place, wide=bits.Config.wide
    )
  pieces, at = [], {'words': 0, 'bits': 0}
  for kind, places in plan(c, length):
    pieces.append(jax.tree.map(lambda x: x[at[kind] : at[kind] + places], found[kind]))
    at[kind] += places
  return jax.tree.map(lambda *x: jnp.concatenate(x), *pieces)


def plan(c, length):
  """[('words' or 'bits', how many)] in the order of a row's tokens."""
  pieces = [
    [('words', words)] * bool(words) + [('bits', length)] * (i < c.pictures)
    for i, words in enumerate(c.words)
  ]
  return sum(pieces, [])
