"""Scores of images and answers: captions as GenEval counts them, edits, and answers to questions.

Checks take objects and a word, so that they judge a scene as they judge an image of it, in which
check.detect finds them."""

import string

import numpy as np

from vargrl.scenes import captions, check, edits, questions
from vargrl.scenes import world as worlds

MAX_SHIFT = 20  # units by which an object that should stay may have moved
STOP_WORDS = {'a', 'an', 'the', 'it', 'is', 'are', 'there', 'to', 'of'}


def parse_prompt(prompt, world):
  """The Meaning of a caption or of a meaning's JSON; ValueError for others and for other worlds."""
  if isinstance(prompt, str) and not prompt.lstrip().startswith('{'):
    found = captions.parse(prompt)
  else:
    try:
      found = captions.from_json(prompt)
    except (AttributeError, KeyError, TypeError, ValueError):
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


def matching_objects(thing, objects, world):
  """[Object] with the shape of a Thing, and with its colour and size if those are said."""
  return [
    o
    for o in objects
    if o.shape == thing.shape
    and thing.colour in ('', o.colour)
    and thing.size in ('', world.size(o.size))
  ]


def check_caption(meaning, objects, word, world, *, strict):
  """[bool]: whether each requirement of a Meaning is met.

  As in GenEval: counted objects must be there as often as said, others at least as often, and more
  may be there. strict: nothing else may be there. https://arxiv.org/abs/2310.11513"""
  found, counted = (
    [matching_objects(t, objects, world) for t in meaning.things],
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
  """`check_caption` of what the checker finds in an image, uint8 [y, x, 3].

  prompt: a caption or the JSON of its meaning."""
  return check_caption(
    parse_prompt(prompt, world), *check.detect(image_yxc, world), world, strict=strict
  )


def accuracy_by_kind(kinds, verdicts, order):
  """{kind: share of its verdicts that are True, 'overall': the mean of these}, in that order."""
  right = {}
  for name, verdict in zip(kinds, verdicts, strict=True):
    right.setdefault(name, []).append(bool(verdict))
  found = {name: float(np.mean(right[name])) for name in order if name in right}
  return found | {'overall': float(np.mean(list(found.values())))}


def generation(images, prompts, world, *, strict):
  """{GenEval's tag: share of images that show their caption, 'overall': the mean of those}.

  None in the place of an image is wrong."""
  verdicts = [
    x is not None and all(judge(x, prompt, world, strict=strict))
    for x, prompt in zip(images, prompts, strict=True)
  ]
  return accuracy_by_kind(
    [parse_prompt(prompt, world).category for prompt in prompts], verdicts, captions.CATEGORIES
  )


def understanding(kinds, expected, answers):
  """{kind of question: share of answers that are right, 'overall': the mean of those}."""
  verdicts = [same_answer(a, e) for a, e in zip(answers, expected, strict=True)]
  return accuracy_by_kind(kinds, verdicts, questions.KINDS)


def editing(images, changes, world):
  """{kind of edit: share of images that show its result, 'overall': the mean of those}.

  None in the place of an image is wrong."""
  verdicts = [
    x is not None and all(check_edit(e, *check.detect(x, world), world))
    for x, e in zip(images, changes, strict=True)
  ]
  return accuracy_by_kind([e.kind for e in changes], verdicts, edits.KINDS)


def check_edit(edit, objects, word, world):
  """[bool]: the changed object is as asked, all else is as before, and nothing else is there."""
  rest, wanted = list(objects), edit.result.objects
  found = {}
  # What changed is looked for last: where it may lie anywhere, it must take no other's place.
  for i in sorted(range(len(wanted)), key=lambda i: i == edit.changed):
    free = i == edit.changed and edit.kind in ('add', 'move')
    some = [
      o
      for o in rest
      if same_attributes(o, wanted[i], world)
      and (free or distance(o, wanted[i]) <= MAX_SHIFT)
      and (
        not edit.corner or i != edit.changed or edits.is_inside(o, edits.corner_box(edit.corner, 0))
      )
    ]
    found[i] = bool(some)
    if some:
      rest.remove(min(some, key=lambda o: distance(o, wanted[i])))
  spelt, written = word == edit.result.word, edit.kind == 'write'
  return [
    spelt if written else found.get(edit.changed, True),
    all(ok for i, ok in found.items() if i != edit.changed) and (written or spelt),
    not rest,
  ]


def same_attributes(a, b, world):
  """Whether two objects have one shape, colour and size."""
  return (a.shape, a.colour, world.size(a.size)) == (b.shape, b.colour, world.size(b.size))


def distance(a, b):
  """The larger of the distances of two centres along x and y."""
  return max(abs(a.x - b.x), abs(a.y - b.y))


def normalize_answer(answer):
  """The words that count: lower case, no punctuation, none of STOP_WORDS, numbers as words."""
  words = (
    answer.lower()
    .translate(str.maketrans(string.punctuation, ' ' * len(string.punctuation)))
    .split()
  )
  numbers = {str(i): name for i, name in enumerate(captions.NUMBERS)}
  return [numbers.get(w, w) for w in words if w not in STOP_WORDS]


def same_answer(answer, expected):
  """Whether an answer is the expected one; after yes and no, more may follow."""
  answer, expected = normalize_answer(answer), normalize_answer(expected)
  return answer[:1] == expected if expected in (['yes'], ['no']) else answer == expected
