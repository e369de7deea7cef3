import collections
import hashlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from vargrl.scenes import captions, edits, records
from vargrl.scenes import world as worlds

ROOT = pathlib.Path(__file__).parents[2]
WORLDS = tuple(worlds.WORLDS)
DIGEST = """
import hashlib
from vargrl.scenes import draw, records, world as worlds
found = hashlib.sha256()
for name, pixels in (('small', 32), ('small', 64), ('full', 64), ('full', 256)):
  for split in worlds.SPLITS:
    for i in range(14):
      r = records.record(worlds.find(name), 3, split, i)
      texts = r.caption, r.questions, r.edit.instruction
      found.update(repr((*texts, r.scene, r.edit.result)).encode())
      found.update(draw.image(r.scene, pixels).tobytes())
print(found.hexdigest()[:16])
"""


def test_a_record_is_the_same_in_every_process_and_in_every_python():
  env = os.environ | {'PYTHONHASHSEED': '7', 'PYTHONPATH': str(ROOT)}
  run = subprocess.run([sys.executable, '-c', DIGEST], env=env, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  assert (
    run.stdout.strip() == '0a6c3091983a7d70'
  )  # of numpy 2.1 on Python 3.13 as of numpy 2.4 on 3.11


def test_a_record_depends_on_seed_split_index_and_world():
  of = lambda world, *where: hashlib.sha256(
    repr(records.record(worlds.find(world), *where)).encode()
  ).digest()
  wheres = [
    ('small', 0, 'train', 3),
    ('small', 1, 'train', 3),
    ('small', 0, 'test', 3),
    ('small', 0, 'train', 10),
    ('full', 0, 'train', 3),
  ]
  assert len({of(*where) for where in wheres}) == len(wheres)
  assert of(*wheres[0]) == of(*wheres[0])


@pytest.mark.parametrize('name', WORLDS)
def test_splits_share_no_contents_neither_of_pictures_nor_of_edited_ones(some, name):
  contents = {}
  for split in worlds.SPLITS:
    scenes = [scene for r in some(name, split, 210) for scene in (r.scene, r.edit.result)]
    contents[split] = {(tuple(sorted(worlds.shape_color_pairs(s.objects))), s.word) for s in scenes}
  train, validation, test = contents.values()
  assert not train & validation and not train & test and not validation & test
  assert min(map(len, contents.values())) > 60


@pytest.mark.parametrize('name', WORLDS)
def test_training_never_sees_nor_mentions_a_held_out_pair_and_half_of_the_other_splits_show_one(
  some, name
):
  world = worlds.find(name)
  held = {
    (s, c) for s in world.shapes for c in world.colours if worlds.pair_split(world, s, c) != 'train'
  }
  assert len(held) == 2 * len(world.shapes)
  for r in some(name, 'train', 210):
    assert not held & {
      *worlds.shape_color_pairs(r.scene.objects),
      *worlds.shape_color_pairs(r.edit.result.objects),
    }
    texts = [r.edit.instruction, r.caption, *(q.question for q in r.questions)]
    assert not any(f'{c} {s}' in text for s, c in held for text in texts)
  for split in ('validation', 'test'):
    found = some(name, split, 210)
    assert 0.4 < np.mean([r.novel for r in found]) < 0.6
    for r in found:
      new = bool(held & set(worlds.shape_color_pairs(r.scene.objects)))
      assert r.novel == new or world.words == () and r.scene.word


@pytest.mark.parametrize('name', WORLDS)
def test_every_scene_is_legal_and_every_category_takes_its_turn(some, name):
  world = worlds.find(name)
  for split in worlds.SPLITS:
    found = some(name, split, 140)
    assert collections.Counter(r.meaning.category for r in found) == dict.fromkeys(
      captions.CATEGORIES, 20
    )
    for r in found:
      assert worlds.is_legal(world, r.scene) and worlds.is_legal(world, r.edit.result)
      assert 1 <= len(r.scene.objects) + bool(r.scene.word) <= world.objects + 1
      assert worlds.scene_from_dict(worlds.to_dict(r.scene)) == r.scene
      assert edits.from_json(r.edit.json()) == r.edit


@pytest.mark.parametrize('name', WORLDS)
def test_nothing_about_an_object_tells_what_else_it_is(some, name):
  """Colours and sizes are spread over all shapes, and every shape, colour and size occurs often."""
  world = worlds.find(name)
  objects = [o for r in some(name, 'train', 210) for o in r.scene.objects]
  for what, values in ((lambda o: o.shape, world.shapes), (lambda o: o.colour, world.colours)):
    counts = collections.Counter(map(what, objects))
    assert set(counts) == set(values) and min(counts.values()) > 0.5 * len(objects) / len(values)
  large = np.mean([world.size(o.size) == 'large' for o in objects])
  assert 0.25 < large < 0.6


def test_an_unknown_split_and_an_unknown_world_are_errors():
  with pytest.raises(ValueError, match="split: 'dev' found, one of .*'validation'.* expected"):
    records.record(worlds.find('small'), 0, 'dev', 0)
  with pytest.raises(ValueError, match="world: 'tiny' found, one of .*'small'.* expected"):
    worlds.find('tiny')
