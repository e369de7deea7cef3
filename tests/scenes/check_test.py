"""The checker against pictures of which all is known: sharp, blurred, compressed, noisy, through a
bottleneck.
"""

import functools

import numpy as np
from PIL import Image
import pytest
from scipy import ndimage

from vargrl.data import image
from vargrl.rewards import jpeg
from vargrl.scenes import check, draw, score
from vargrl.scenes import world as worlds

SIZES = (('small', 32), ('full', 64), ('full', 128), ('full', 256))
NUMBER = 63  # nine of each category, about 120 objects; of large pictures five


def blurred(x_yxc, rng):
  """By half a pixel of 32, one of 128."""
  sigma = {32: 0.5, 64: 0.7}.get(len(x_yxc), len(x_yxc) / 128)
  return np.round(ndimage.gaussian_filter(x_yxc.astype(float), (sigma, sigma, 0))).astype(np.uint8)


def compressed(x_yxc, rng):
  return image.decode(jpeg.encode(x_yxc, 75))


def noisy(x_yxc, rng):
  return np.clip(np.round(x_yxc + rng.normal(0, 8, x_yxc.shape)), 0, 255).astype(np.uint8)


def halved(x_yxc, rng):
  """Down to half the size and up again."""
  n, picture = len(x_yxc), Image.fromarray(x_yxc)
  for size in (n // 2, n):
    picture = picture.resize((size, size), Image.Resampling.BILINEAR)
  return np.asarray(picture)


def tinted(x_yxc, rng):
  return np.clip(x_yxc.astype(int) + rng.randint(-10, 11, 3), 0, 255).astype(np.uint8)


WAYS = {
  'sharp': lambda x_yxc, rng: x_yxc,
  'blurred': blurred,
  'compressed': compressed,
  'noisy': noisy,
  'halved': halved,
  'tinted': tinted,
}


@functools.cache
def pictures(some, name, pixels):
  return [draw.image(r.scene, pixels) for r in some(name, 'test', NUMBER if pixels < 128 else 35)]


def misread(records, pictures, world, way):
  """{attribute: (how often it was read wrong, of how many)}."""
  rng, right = np.random.RandomState(0), {}
  tell = lambda what, ok: right.setdefault(what, []).append(bool(ok))
  for r, picture in zip(records, pictures, strict=False):
    objects, word = check.detect(WAYS[way](picture, rng), world)
    tell('count', len(objects) == len(r.scene.objects))
    tell('word', word == r.scene.word)
    for o in r.scene.objects:
      seen = min(
        objects, key=lambda x: score.distance(x, o), default=worlds.Object('', '', 0, -99, -99)
      )
      tell('shape', seen.shape == o.shape)
      tell('colour', seen.colour == o.colour)
      tell(
        'size',
        world.size(seen.size) == world.size(o.size) and abs(seen.size - o.size) <= 0.15 * o.size,
      )
      tell('place', score.distance(seen, o) <= 6)
    tell('caption', all(score.check_caption(r.meaning, objects, word, world, strict=True)))
  return {what: (oks.count(False), len(oks)) for what, oks in right.items()}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('name, pixels', SIZES)
def test_every_attribute_is_read_right_99_times_of_100(some, name, pixels, way):
  wrong = misread(some(name, 'test', NUMBER), pictures(some, name, pixels), worlds.find(name), way)
  assert all(n <= max(1, 0.01 * of) for n, of in wrong.values()), wrong


@pytest.mark.slow
@pytest.mark.parametrize('name, pixels', SIZES)
def test_of_many_pictures_too(some, name, pixels):
  found, many = (
    some(name, 'test', 1001),
    [draw.image(r.scene, pixels) for r in some(name, 'test', 1001)],
  )
  wrong = {way: misread(found, many, worlds.find(name), way) for way in WAYS}
  assert all(n <= 0.01 * of for told in wrong.values() for n, of in told.values()), wrong


@pytest.mark.parametrize('name, pixels', SIZES[:2])
def test_what_is_wrong_is_said_to_be_wrong(some, name, pixels):
  """Every caption against every picture: the checker agrees with the scene, strictly and as GenEval
  counts.
  """
  world, found = worlds.find(name), some(name, 'test', NUMBER)
  read = [check.detect(compressed(x, None), world) for x in pictures(some, name, pixels)]
  for strict in (True, False):
    told = np.array(
      [
        [all(score.check_caption(r.meaning, *seen, world, strict=strict)) for seen in read]
        for r in found
      ]
    )
    truth = np.array(
      [
        [
          all(score.check_caption(r.meaning, s.scene.objects, s.scene.word, world, strict=strict))
          for s in found
        ]
        for r in found
      ]
    )
    assert NUMBER <= truth.sum() < 0.5 * truth.size
    assert (told & ~truth).sum() <= 0.01 * (~truth).sum() and (
      ~told & truth
    ).sum() <= 0.02 * truth.sum()


@pytest.mark.parametrize('name, pixels', SIZES[:2])
def test_edits_are_seen_and_doing_nothing_is_not_taken_for_one(some, name, pixels):
  world, found = worlds.find(name), some(name, 'test', NUMBER)
  done = score.editing(
    [draw.image(r.edit.result, pixels) for r in found], [r.edit for r in found], world
  )
  idle = score.editing(pictures(some, name, pixels), [r.edit for r in found], world)
  assert done['overall'] > 0.98 and idle['overall'] == 0


def test_what_is_no_shape_of_the_world_has_no_name():
  world = worlds.find('small')
  heart = worlds.Object('heart', 'blue', 100, 70, 70)
  bar = worlds.Object('square', 'red', 90, 180, 180)
  x_yxc = draw.image(worlds.Scene((heart, bar), None, (245, 245, 245, 0, 0)), 128)
  x_yxc[80:] = x_yxc[0, 0]  # what is left of the square is long and flat
  objects, _ = check.detect(x_yxc, world)
  assert [o.colour for o in objects] == ['blue', 'red'] and objects[1].shape == ''


def test_objects_that_touch_are_two_and_a_speck_is_none():
  world = worlds.find('full')
  a, b = worlds.Object('square', 'red', 70, 90, 128), worlds.Object('square', 'blue', 70, 160, 128)
  x_yxc = draw.image(worlds.Scene((a, b), None, (245, 245, 245, 0, 0)), 128)
  x_yxc[4:7, 4:7] = worlds.COLOURS['green']
  objects, word = check.detect(x_yxc, world)
  assert [(o.shape, o.colour) for o in sorted(objects, key=lambda o: o.x)] == [
    ('square', 'red'),
    ('square', 'blue'),
  ]
  assert word == ''


@pytest.mark.parametrize('what', ['empty', 'black', 'red', 'noise', 'grey ramp', 'stripes'])
def test_pictures_of_nothing_are_read_and_are_right_for_no_caption(some, what):
  rng, n = np.random.RandomState(0), 32
  x_yxc = {
    'empty': np.full((n, n, 3), 240),
    'black': np.zeros((n, n, 3)),
    'red': np.zeros((n, n, 3)) + worlds.COLOURS['red'],
    'noise': rng.randint(0, 256, (n, n, 3)),
    'grey ramp': np.broadcast_to(np.linspace(0, 255, n)[:, None], (n, n, 3)) + np.zeros((n, n, 3)),
    'stripes': np.repeat(rng.randint(0, 256, (8, 1, 3)), 4, 0) + np.zeros((n, n, 3), int),
  }[what].astype(np.uint8)
  world = worlds.find('small')
  with np.errstate(all='raise'):
    seen = check.detect(x_yxc, world)
  for r in some('small', 'test', NUMBER):
    assert not all(score.check_caption(r.meaning, *seen, world, strict=True))


@pytest.mark.parametrize(
  'x_yxc, found',
  [
    (np.zeros((32, 32, 3), np.float32), r'float32 \[32, 32, 3\] found, uint8'),
    (np.zeros((32, 32), np.uint8), r'uint8 \[32, 32\] found, uint8 \[y, x, 3\]'),
    (np.zeros((32, 64, 3), np.uint8), '32 x 64 pixels found, a square of at least 32'),
    (np.zeros((16, 16, 3), np.uint8), '16 x 16 pixels found, a square of at least 32'),
  ],
)
def test_what_is_no_picture_of_this_world_is_an_error(x_yxc, found):
  with pytest.raises(ValueError, match=f'image: {found}'):
    check.detect(x_yxc, worlds.find('small'))
