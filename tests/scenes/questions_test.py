"""Answers against an oracle that reads the question's words and looks at the scene, by other
means.
"""

import collections
import re

import numpy as np
import pytest

from vargrl.scenes import questions, score
from vargrl.scenes import world as worlds

NUMBERS = ['zero', 'one', 'two', 'three', 'four', 'five', 'six']


def called(objects, name):
  """The objects that a name fits: '[the] [color] shape[s]', 'red shapes', 'shapes'."""
  words = name.removeprefix('the ').removeprefix('an ').removeprefix('a ').split()

  def fits(o):
    for word in words:
      if word not in (o.colour, o.shape, 'shapes', f'{o.shape}s', f'{o.shape}es'):
        return False
    return True

  return [o for o in objects if fits(o)]


def only(objects, name):
  found = called(objects, name)
  assert len(found) == 1, (name, objects)
  return found[0]


def oracle(question, scene, world):
  o = scene.objects
  if m := re.fullmatch('is there (.+)\\?', question):
    return 'yes' if called(o, m[1]) else 'no'
  if m := re.fullmatch('what color is (.+)\\?', question):
    return only(o, m[1]).colour
  if m := re.fullmatch('which shape is (.+)\\?', question):
    return only(o, m[1]).shape
  if m := re.fullmatch('how many (.+) are there\\?', question):
    return NUMBERS[len(called(o, m[1]))]
  if m := re.fullmatch('is (.+) small or large\\?', question):
    return 'small' if only(o, m[1]).size <= world.small[1] else 'large'
  if m := re.fullmatch('where is (.+) relative to (.+)\\?', question):
    a, b = only(o, m[1]), only(o, m[2])
    degrees = np.degrees(np.arctan2(b.y - a.y, a.x - b.x)) % 360  # counter-clockwise from the right
    sector, off = divmod(degrees + 45, 90)
    assert 15 < off < 75  # far from a diagonal
    return ['right', 'above', 'left', 'below'][int(sector) % 4]
  if m := re.fullmatch('which is larger, (.+) or (.+)\\?', question):
    a, b = only(o, m[1]), only(o, m[2])
    assert max(a.size, b.size) > 1.3 * min(a.size, b.size)
    return m[1] if a.size > b.size else m[2]
  if m := re.fullmatch('are (.+) and (.+) of the same color\\?', question):
    return 'yes' if only(o, m[1]).colour == only(o, m[2]).colour else 'no'
  if question == 'what is written?':
    return scene.text.word
  assert question == 'is anything written?'
  return 'yes' if scene.text else 'no'


@pytest.mark.parametrize('name', worlds.WORLDS)
def test_every_answer_follows_from_the_scene_and_no_blind_guess_is_often_right(some, name):
  world, answers, texts = (
    worlds.find(name),
    collections.defaultdict(list),
    collections.defaultdict(list),
  )
  for split in ('train', 'test'):
    for r in some(name, split, 210):
      assert len(r.questions) >= 2 and len({q.kind for q in r.questions}) == len(r.questions)
      for q in r.questions:
        assert score.same_answer(oracle(q.question, r.scene, world), q.answer), (q, r.scene)
        answers[q.kind].append(q.answer)
        if q.answer in ('yes', 'no'):
          texts[q.question.split()[0]].append(q.answer == 'yes')
  assert set(answers) == set(questions.KINDS)
  for kind, found in answers.items():
    counts = collections.Counter(found)
    assert len(counts) >= 2 and counts.most_common(1)[0][1] < 0.6 * len(found), (kind, counts)
  print(
    name, {k: f'{max(collections.Counter(v).values()) / len(v):.0%}' for k, v in answers.items()}
  )
  yes = np.concatenate([np.array(v) for v in texts.values()])
  assert 0.4 < yes.mean() < 0.6


def test_a_question_that_cannot_be_answered_is_not_asked():
  """Two red circles, close in size and on a diagonal: no name is unique, no relation clear."""
  world, rng = worlds.find('small'), np.random.RandomState(0)
  a, b = worlds.Object('circle', 'red', 60, 60, 60), worlds.Object('circle', 'red', 64, 160, 160)
  scene = worlds.Scene((a, b), None, (245, 245, 245, 0, 0))
  for _ in range(50):
    kinds = {q.kind for q in questions.make_questions(world, scene, 'train', rng, 8)}
    assert kinds <= {'existence', 'count', 'text'} and {'existence', 'count'} <= kinds
