import collections

import numpy as np
import pytest

from vargrl.scenes import edits, score
from vargrl.scenes import world as worlds


@pytest.mark.parametrize('name', worlds.WORLDS)
def test_an_edit_changes_what_it_says_and_nothing_else(some, name):
  world, kinds = worlds.find(name), collections.Counter()
  for r in some(name, 'train', 210):
    e, before, after = r.edit, r.scene.objects, r.edit.result.objects
    kinds[e.kind] += 1
    assert e.result.light == r.scene.light
    if e.kind != 'write':
      assert e.result.text == r.scene.text
    gone, come = [o for o in before if o not in after], [o for o in after if o not in before]
    if e.kind == 'write':
      assert (
        before == after and f'"{e.result.word}"' in e.instruction and e.result.word != r.scene.word
      )
      continue
    assert (len(gone), len(come)) == {'add': (0, 1), 'remove': (1, 0)}.get(e.kind, (1, 1))
    if gone:
      assert f'the {gone[0].colour} {gone[0].shape} ' in f'{e.instruction} '
      assert (
        worlds.shape_color_pairs(before).count((gone[0].shape, gone[0].colour)) == 1
      )  # no doubt which is meant
    if come:
      assert after[e.changed] == come[0]
    said = {
      'recolor': lambda a, b: b.colour,
      'resize': lambda a, b: world.size(b.size),
      'replace': lambda a, b: f'{b.colour} {b.shape}',
      'move': lambda a, b: e.corner,
    }
    if e.kind in said:
      assert e.instruction.endswith(said[e.kind](gone[0], come[0]))
    if e.kind == 'add':
      assert f'{world.size(come[0].size)} {come[0].colour} {come[0].shape}' in e.instruction
  assert set(kinds) == set(edits.KINDS) and min(kinds.values()) >= 0.02 * 210


@pytest.mark.parametrize('name', worlds.WORLDS)
def test_doing_nothing_is_no_edit_and_its_own_result_is(some, name):
  world = worlds.find(name)
  for r in some(name, 'test', 210):
    assert score.check_edit(r.edit, r.edit.result.objects, r.edit.result.word, world) == [True] * 3
    assert not all(score.check_edit(r.edit, r.scene.objects, r.scene.word, world))


def test_a_move_may_end_anywhere_in_its_corner_and_takes_no_other_object_along():
  world = worlds.find('small')
  circle, square = (
    worlds.Object('circle', 'red', 60, 50, 50),
    worlds.Object('square', 'blue', 60, 200, 60),
  )
  scene = lambda *objects: worlds.Scene(objects, None, (245, 245, 245, 0, 0))
  there = circle.__class__('circle', 'red', 60, 190, 200)
  e = edits.Edit(
    'move', 'move the red circle to the bottom right', scene(there, square), 0, 'bottom right'
  )
  at = lambda x, y, other=square: score.check_edit(
    e, [worlds.Object('circle', 'red', 60, x, y), other], '', world
  )
  assert at(140, 150) == at(220, 140) == [True] * 3
  assert at(50, 50) == [False, True, False]
  assert at(190, 100) == [False, True, False]  # right, and not at the bottom
  assert at(190, 200, worlds.Object('square', 'blue', 60, 60, 200)) == [True, False, False]
  assert at(190, 200, worlds.Object('square', 'green', 60, 200, 60)) == [True, False, False]


def test_what_an_edit_gives_belongs_to_its_split():
  world = worlds.find('small')
  rng = np.random.RandomState(1)
  lone = worlds.Scene((worlds.Object('circle', 'purple', 60, 60, 60),), None, (245, 245, 245, 0, 0))
  for _ in range(40):
    found = edits.propose_edit(world, lone, 'train', rng)
    assert (
      worlds.content_split(world, worlds.shape_color_pairs(found.result.objects), found.result.word)
      == 'train'
    )
