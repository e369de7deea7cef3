import itertools

import pytest

from vargrl.scenes import captions, score
from vargrl.scenes import world as worlds
from vargrl.scenes.captions import Meaning, Thing

ALL = 2 * len(captions.TEMPLATES)


def meanings(world):
  """Some of every form that a caption has, with every shape, colour, size, number and relation."""
  pairs = list(itertools.product(world.shapes, world.colours))
  for i, (shape, colour) in enumerate(pairs):
    other, hue = pairs[(5 * i + 7) % len(pairs)]
    size = worlds.SIZES[i % 2]
    one, two = Thing(shape, colour), Thing(other, hue)
    yield from (Meaning((Thing(shape),)), Meaning((one,)), Meaning((Thing(shape, colour, size),)))
    yield from (
      Meaning((Thing(shape), Thing(other))),
      Meaning((one, two)),
      Meaning((Thing(shape, colour, size), two, Thing(shape, hue))),
    )
    for n in range(2, world.objects + 1):
      yield from (
        Meaning((Thing(shape, count=n),)),
        Meaning((Thing(shape, colour, count=n),)),
        Meaning((Thing(shape, count=n), Thing(other))),
        Meaning((Thing(other), Thing(shape, count=n))),
      )
    for relation in worlds.RELATIONS:
      yield from (Meaning((Thing(shape), Thing(other)), relation), Meaning((one, two), relation))
    for word in ('CAT', 'ABOVE', 'AND'):
      yield from (Meaning(word=word), Meaning((one,), word=word), Meaning((one, two), word=word))


@pytest.mark.parametrize('name', worlds.WORLDS)
def test_captions_and_meanings_are_in_bijection(name):
  every = set(meanings(worlds.find(name)))
  assert len(every) > 500
  for phrasing in range(ALL):
    texts = {captions.text(m, phrasing): m for m in every}
    assert len(texts) == len(every)  # no two meanings are said alike
    assert all(captions.parse(text) == m for text, m in texts.items())
  assert all(captions.from_json(m.json()) == m for m in every)


def test_the_words_of_captions():
  said = lambda phrasing, *things, **rest: captions.text(Meaning(tuple(things), **rest), phrasing)
  assert said(0, Thing('circle')) == 'a circle'
  assert said(1, Thing('square', 'orange')) == 'a picture of an orange square'
  assert said(2, Thing('cross', count=3)) == 'there are three crosses'
  assert (
    said(0, Thing('star', 'red'), Thing('ring', 'blue', 'small'))
    == 'a red star and a small blue ring'
  )
  assert (
    said(3, Thing('star'), Thing('ring'), relation='left of') == 'draw a star to the left of a ring'
  )
  assert (
    said(8, Thing('star'), Thing('ring'), relation='left of') == 'there is a star left of a ring'
  )
  assert (
    said(5, Thing('heart', 'pink'), word='TEA')
    == 'a pink heart and the word "TEA" on a light background'
  )
  assert said(6, word='TEA') == 'the text "TEA"'


@pytest.mark.parametrize(
  'text, category',
  [
    ('a circle', 'single_object'),
    ('a red circle', 'colors'),
    ('a circle and a star', 'two_object'),
    ('a red circle and a blue star', 'color_attr'),
    ('three circles', 'counting'),
    ('two red stars', 'counting'),
    ('a circle above a star', 'position'),
    ('the word "CAT"', 'text'),
    ('a red ring and the text "CAT"', 'text'),
  ],
)
def test_the_category_follows_from_the_text(text, category):
  assert captions.parse(text).category == category


@pytest.mark.parametrize(
  'text',
  [
    '',
    'circle',
    'three circle',
    'a blue',
    'an circle',
    'a circle left a ring',
    'a red large circle',
    'seven circles',
    'a circle and',
    'the word "cat"',
    'a dog',
  ],
)
def test_what_is_no_caption_is_refused(text):
  with pytest.raises(
    ValueError, match='caption: .* found, a sentence of vargrl.scenes.captions expected'
  ):
    captions.parse(text)


@pytest.mark.parametrize('name', worlds.WORLDS)
def test_all_that_is_said_of_a_scene_is_true_and_leaves_nothing_out(some, name):
  world, seen = worlds.find(name), set()
  for r in some(name, 'train', 210):
    assert all(score.check_caption(r.meaning, r.scene.objects, r.scene.word, world, strict=True)), r
    assert captions.parse(r.caption) == r.meaning
    for category, m in captions.describe(r.scene).items():
      assert m.category == category
      assert all(score.check_caption(m, r.scene.objects, r.scene.word, world, strict=True)), (
        m,
        r.scene,
      )
      seen.add(category)
  assert seen == set(captions.CATEGORIES)


def test_a_layout_says_what_lies_where_in_reading_order():
  world = worlds.find('small')
  objects = (
    worlds.Object('circle', 'red', 100, 120, 200),
    worlds.Object('square', 'blue', 60, 40, 40),
  )
  scene = worlds.Scene(objects, worlds.Text('CAT', 16, 80, 20), (240,) * 3 + (0, 0))
  assert captions.layout(scene, world) == (
    'a small blue square in 1 1 and the word "CAT" in 5 1 and a large red circle in 3 6'
  )
