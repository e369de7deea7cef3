"""What a checker has found, against what was asked for: captions as GenEval counts them, edits, answers.

All take objects and a word, so that they judge a scene as they judge a picture of it.
"""
import re
import string

import numpy as np

from vargrl.scenes import captions, check, edits, world as worlds

NEAR = 20  # units by which what should stay may have moved
ARTICLES = ('a', 'an', 'the')


def meaning_of(prompt):
  """The Meaning of a caption, of its JSON, or of a Meaning; ValueError for what is neither."""
  if isinstance(prompt, captions.Meaning): return prompt
  if not isinstance(prompt, str): raise ValueError(f'prompt: {prompt!r} found, a caption or its meaning expected')
  return captions.from_json(prompt) if prompt.lstrip().startswith('{') else captions.parse(prompt)


def matching(thing, objects, world):
  return [o for o in objects if o.shape == thing.shape and thing.colour in ('', o.colour)
          and thing.size in ('', world.size(o.size))]


def met(meaning, objects, word, world, *, strict):
  """[bool]: every requirement of a caption, met or not.

  As GenEval: what is counted must be there as often as said, anything else at least as often, and more may be there.
  strict: nothing but what was asked for. https://arxiv.org/abs/2310.11513
  """
  found, counted = [matching(t, objects, world) for t in meaning.things], meaning.category == 'counting'
  out = [len(f) == t.count if counted else len(f) >= t.count for f, t in zip(found, meaning.things, strict=True)]
  if meaning.relation:
    out.append(any(meaning.relation in worlds.relations(a, b) for a in found[0] for b in found[1] if a is not b))
  if meaning.word: out.append(word == meaning.word)
  if strict: out.append(len(objects) == sum(t.count for t in meaning.things) and (word == meaning.word))
  return out


def image(image_yxc, prompt, world, *, strict):
  """[bool] of `met` for what the checker finds in uint8 [y, x, 3]."""
  return met(meaning_of(prompt), *check.read(image_yxc, world), world, strict=strict)


def by_category(prompts, verdicts):
  """{GenEval's tag: share that is right, 'overall': the mean of those}; verdicts: of `met`, one for each prompt."""
  right = {}
  for prompt, verdict in zip(prompts, verdicts, strict=True):
    right.setdefault(meaning_of(prompt).category, []).append(all(verdict))
  found = {name: float(np.mean(right[name])) for name in captions.CATEGORIES if name in right}
  return found | {'overall': float(np.mean(list(found.values())))}


def evaluate(images_Byxc, prompts, world, *, strict):
  """`by_category` of uint8 pictures."""
  return by_category(prompts, [image(x, prompt, world, strict=strict)
                               for x, prompt in zip(images_Byxc, prompts, strict=True)])


def edited(edit, objects, word, world):
  """Whether the result of an edit is what was asked for, and everything else is kept: [done, kept]."""
  rest, missing = list(objects), []
  wanted = list(edit.result.objects)
  # The one that may lie anywhere is looked for last, so that it takes no other's place.
  order = [i for i in range(len(wanted)) if i != edit.place] + ([] if edit.place is None else [edit.place])
  for i in order:
    some = [o for o in rest if alike(o, wanted[i], world) and (lies(o, edit) if i == edit.place else near(o, wanted[i]))]
    if some: rest.remove(min(some, key=lambda o: distance(o, wanted[i])))
    else: missing.append(i)
  return not missing and not rest and word == edit.result.word
