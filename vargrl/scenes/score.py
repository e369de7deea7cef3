"""What a checker has found, against what was asked for: captions as GenEval counts them, edits,
answers.

All take objects and a word, so that they judge a scene as they judge a picture of it.
"""

import json
import string

import numpy as np

from vargrl.scenes import captions, check, edits, questions
from vargrl.scenes import world as worlds

NEAR = 20  # units by which what should stay may have moved
IDLE = {
  'a',
  'an',
  'the',
  'it',
  'is',
  'are',
  'there',
  'to',
  'of',
}  # words of an answer that say nothing


def meaning_of(prompt, world):
  """The Meaning of a caption, or of its JSON; ValueError for what is neither, or of another
  world.
  """
  try:
    found = (
      captions.from_json(prompt) if prompt.lstrip().startswith('{') else captions.parse(prompt)
    )
  except (AttributeError, KeyError, TypeError, json.JSONDecodeError):
    raise ValueError(
      f'prompt: {prompt!r} found, a caption of scenes or the JSON of its meaning expected'
    ) from None
  for thing in found.things:
    if thing.shape not in world.shapes or thing.colour not in ('', *world.colours):
      raise ValueError(
        f'prompt: {prompt!r} found, shapes {world.shapes} and colors {world.colours} of the world '
        f'{world.name!r} expected'
      )
  return found


def matching(thing, objects, world):
  return [
    o
    for o in objects
    if o.shape == thing.shape
    and thing.colour in ('', o.colour)
    and thing.size in ('', world.size(o.size))
  ]


def met(meaning, objects, word, world, *, strict):
  """[bool]: every requirement of a caption, met or not.

  As GenEval: what is counted must be there as often as said, anything else at least as often, and
  more may be there. strict: nothing but what was asked for. https://arxiv.org/abs/2310.11513"""
  found, counted = (
    [matching(t, objects, world) for t in meaning.things],
    meaning.category == 'counting',
  )
  out = [
    len(f) == t.count if counted else len(f) >= t.count
    for f, t in zip(found, meaning.things, strict=True)
  ]
  if meaning.relation:
    out.append(
      any(
        meaning.relation in worlds.relations(a, b) for a in found[0] for b in found[1] if a is not b
      )
    )
  if meaning.word:
    out.append(word == meaning.word)
  if strict:
    out.append(len(objects) == sum(t.count for t in meaning.things) and (word == meaning.word))
  return out


def judge(image_yxc, prompt, world, *, strict):
  """[bool] of `met` for what the checker finds in uint8 [y, x, 3]; prompt: a caption or its
  meaning's JSON.
  """
  return met(meaning_of(prompt, world), *check.read(image_yxc, world), world, strict=strict)


def shares(names, verdicts, order):
  """{name: share of its verdicts that are right, 'overall': the mean of these}, in that order."""
  right = {}
  for name, verdict in zip(names, verdicts, strict=True):
    right.setdefault(name, []).append(bool(verdict))
  found = {name: float(np.mean(right[name])) for name in order if name in right}
  return found | {'overall': float(np.mean(list(found.values())))}


def generation(images, prompts, world, *, strict):
  """{GenEval's tag: share of pictures that show what their caption says, 'overall': the mean of
  those}; None in the place of a picture is wrong."""
  verdicts = [
    x is not None and all(judge(x, prompt, world, strict=strict))
    for x, prompt in zip(images, prompts, strict=True)
  ]
  return shares(
    [meaning_of(prompt, world).category for prompt in prompts], verdicts, captions.CATEGORIES
  )


def understanding(kinds, answers, given):
  """{kind of question: share of answers that are right, 'overall': the mean of those}."""
  verdicts = [same(g, a) for g, a in zip(given, answers, strict=True)]
  return shares(kinds, verdicts, questions.KINDS)


def editing(images, edits_, world):
  """{kind of edit: share of pictures that show its result and keep the rest, 'overall': the mean of
  those}; None in the place of a picture is wrong."""
  verdicts = [
    x is not None and all(edited(e, *check.read(x, world), world))
    for x, e in zip(images, edits_, strict=True)
  ]
  return shares([e.kind for e in edits_], verdicts, edits.KINDS)


def edited(edit, objects, word, world):
  """[bool]: what was to change has, all else is as before, and nothing is there besides."""
  rest, wanted = list(objects), edit.result.objects
  found = {}
  # What changed is looked for last: where it may lie anywhere, it must take no other's place.
  for i in sorted(range(len(wanted)), key=lambda i: i == edit.changed):
    free = i == edit.changed and edit.kind in ('add', 'move')
    some = [
      o
      for o in rest
      if alike(o, wanted[i], world)
      and (free or away(o, wanted[i]) <= NEAR)
      and (not edit.corner or i != edit.changed or edits.inside(o, edits.within(edit.corner, 0)))
    ]
    found[i] = bool(some)
    if some:
      rest.remove(min(some, key=lambda o: away(o, wanted[i])))
  spelt, written = word == edit.result.word, edit.kind == 'write'
  return [
    spelt if written else found.get(edit.changed, True),
    all(ok for i, ok in found.items() if i != edit.changed) and (written or spelt),
    not rest,
  ]


def alike(a, b, world):
  return (a.shape, a.colour, world.size(a.size)) == (b.shape, b.colour, world.size(b.size))


def away(a, b):
  return max(abs(a.x - b.x), abs(a.y - b.y))


def normal(answer):
  """The words that count: lower case, no punctuation, no articles, numbers spelt out."""
  words = (
    answer.lower()
    .translate(str.maketrans(string.punctuation, ' ' * len(string.punctuation)))
    .split()
  )
  numbers = {str(i): name for i, name in enumerate(captions.NUMBERS)}
  return [numbers.get(w, w) for w in words if w not in IDLE]


def same(given, expected):
  """Whether an answer is the expected one; after yes and no, more may be said."""
  given, expected = normal(given), normal(expected)
  return given[:1] == expected if expected in (['yes'], ['no']) else given == expected
