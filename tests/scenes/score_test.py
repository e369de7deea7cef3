import numpy as np
import pytest

from vargrl.scenes import captions, draw, questions, score
from vargrl.scenes import world as worlds

FULL = worlds.find('full')


def at(shape, colour, x=128, y=128, size=70):
  return worlds.Object(shape, colour, size, x, y)


def right(caption, *objects, word='', strict=False):
  return all(score.check_caption(captions.parse(caption), objects, word, FULL, strict=strict))


def test_geneval_counts_exactly_only_where_it_counts():
  one, two = [at('circle', 'red')], [at('circle', 'red'), at('circle', 'blue', 40)]
  assert right('a circle', *one) and right('a circle', *two) and not right('a star', *two)
  assert (
    right('two circles', *two)
    and not right('two circles', *one)
    and not right('three circles', *two)
  )
  assert right('a circle', *one, strict=True) and not right('a circle', *two, strict=True)
  assert not right('a circle', *one, word='CAT', strict=True)


def test_colours_and_sizes_belong_to_their_objects():
  scene = at('circle', 'red'), at('star', 'blue', 40, size=40)
  assert right('a red circle and a blue star', *scene) and not right(
    'a blue circle and a red star', *scene
  )
  assert right('a large red circle and a small blue star', *scene)
  assert not right('a small red circle and a blue star', *scene)
  assert not right('two red circles', *scene)


def test_relations_are_those_of_geneval():
  """Hand-made: the circle is 60 to the left and 30 above; beyond a tenth of the sizes, (60 - 14) /
  67 = .69 and .24.
  """
  circle, star = at('circle', 'red', 100, 100), at('star', 'blue', 160, 130)
  assert worlds.relations(circle, star) == {'left of'} and worlds.relations(star, circle) == {
    'right of'
  }
  assert right('a circle left of a star', circle, star) and not right(
    'a circle above a star', circle, star
  )
  diagonal = at('star', 'blue', 200, 200)
  assert (
    worlds.relations(circle, diagonal) == {'left of', 'above'}
    and worlds.clear_relation(circle, diagonal) == ''
  )
  assert worlds.relations(circle, at('star', 'blue', 105, 105)) == set()


def test_a_word_is_right_only_when_spelt_so():
  assert right('a star and the word "CAT"', at('star', 'red'), word='CAT')
  assert not right('the word "CAT"', word='CAR') and not right('the word "CAT"')


@pytest.mark.parametrize(
  'given, expected, same',
  [
    ('Red.', 'red', True),
    ('the red circle', 'red circle', True),
    ('2', 'two', True),
    ('There are two.', 'two', True),
    ('Yes, there is a circle', 'yes', True),
    ('no', 'yes', False),
    ('to the left', 'left', True),
    ('CAT', 'cat', True),
    ('red circle', 'red', False),
    ('', 'red', False),
    ('left or right', 'left', False),
  ],
)
def test_answers_are_compared_after_normalisation(given, expected, same):
  assert score.same_answer(given, expected) == same


def test_shares_are_by_category_and_overall_is_their_mean():
  images = [
    draw.image(worlds.Scene((o,), None, (245, 245, 245, 0, 0)), 64)
    for o in (at('circle', 'red'), at('star', 'red'), at('star', 'blue'))
  ]
  found = score.generation(images, ['a circle', 'a circle', 'a blue star'], FULL, strict=True)
  assert found == {'single_object': 0.5, 'colors': 1.0, 'overall': 0.75}
  asked = score.understanding(
    ['count', 'count', 'color'], ['two', 'one', 'red'], ['2', 'two', 'red']
  )
  assert asked == {'color': 1.0, 'count': 0.5, 'overall': 0.75} and set(asked) - {'overall'} <= set(
    questions.KINDS
  )


def test_a_prompt_is_a_caption_or_its_meaning_and_of_its_world():
  small = worlds.find('small')
  said = score.parse_prompt('a red circle', small)
  assert said == score.parse_prompt(said.json(), small)
  for prompt in ('a dog', '{"things": 3}', '{', 7):
    with pytest.raises(ValueError, match='(prompt|caption): .* found, .* expected'):
      score.parse_prompt(prompt, small)
  with pytest.raises(ValueError, match="'a star' found, shapes .* of the world 'small' expected"):
    score.parse_prompt('a star', small)


def test_the_share_of_requirements_grows_with_what_is_right():
  ask = captions.parse('a red circle above a blue star')
  share = lambda *objects: np.mean(score.check_caption(ask, objects, '', FULL, strict=True))
  shares = [
    share(),
    share(at('circle', 'red')),
    share(at('circle', 'red'), at('star', 'blue', 128, 30)),
    share(at('circle', 'red'), at('star', 'blue', 128, 220)),
  ]
  assert shares == [0.0, 0.25, 0.75, 1.0]
