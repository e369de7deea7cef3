import json

import numpy as np
import pytest

from vargrl.data import scenes_builder, source
from vargrl.scenes import captions, draw, edits, records
from vargrl.scenes import world as worlds


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  c = scenes_builder.Config(name='tiny', world='small', pixels=32, train=21, held_out=14, seed=5)
  found = scenes_builder.Scenes(data_dir=tmp_path_factory.mktemp('scenes'), config=c)
  found.download_and_prepare(file_format='array_record')
  return found


def test_what_is_on_disk_are_the_records_in_order(built):
  for split, number in (('train', 21), ('validation', 14), ('test', 14)):
    rows = list(built.as_data_source(split))
    assert len(rows) == number
    for i, row in enumerate(rows):
      r = records.record(worlds.find('small'), 5, split, i)
      np.testing.assert_array_equal(row['image'], draw.image(r.scene, 32))
      np.testing.assert_array_equal(row['edited'], draw.image(r.edit.result, 32))
      text = lambda name, row=row: row[name].decode()
      assert worlds.scene_from_dict(json.loads(text('scene'))) == r.scene
      assert captions.from_json(text('meaning')) == captions.parse(text('caption')) == r.meaning
      assert edits.from_json(text('edit')) == r.edit and text('instruction') == r.edit.instruction
      asked = zip(
        *([x.decode() for x in row[name]] for name in ('kinds', 'questions', 'answers')),
        strict=True,
      )
      assert tuple(asked) == tuple(map(tuple, r.questions))
      assert captions.CATEGORIES[row['category']] == r.meaning.category and row['novel'] == r.novel
      said = [captions.parse(x.decode()).category for x in row['captions']]
      assert said == list(captions.describe(r.scene))


def test_every_size_has_a_configuration_and_its_world_can_be_read_there():
  assert list(scenes_builder.Scenes.builder_configs) == ['32', '64', '128', '256']
  for name, c in scenes_builder.Scenes.builder_configs.items():
    assert c.pixels == int(name) >= worlds.find(c.world).pixels


def test_a_stream_of_scenes_is_read_by_name(tmp_path, monkeypatch):
  monkeypatch.setattr(scenes_builder.Scenes.builder_configs['32'], 'train', 14)
  monkeypatch.setattr(scenes_builder.Scenes.builder_configs['32'], 'held_out', 7)
  stream = source.make(
    dataset='scenes/32',
    split='train',
    batch=7,
    size=32,
    crop='none',
    flip=False,
    shuffle=False,
    max_unreadable=0.0,
    dir=str(tmp_path),
    threads=0,
    workers=0,
    seed=0,
    rows=range(7),
  )
  batch = next(stream)
  assert sorted(batch) == ['category', 'edited', 'image'] and batch['image'].shape == (7, 32, 32, 3)
  first = draw.image(records.record(worlds.find('small'), 0, 'train', 0).scene, 32)
  np.testing.assert_allclose((batch['image'][0] + 1) * 127.5, first, atol=1e-3)
  with pytest.raises(
    ValueError, match=r"dataset: 'scenes/33' found, one of \['scenes/32', .* expected"
  ):
    source.count(dataset='scenes/33', split='train', dir=str(tmp_path))
