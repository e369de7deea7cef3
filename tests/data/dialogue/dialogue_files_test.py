"""Dialogues of files: .json = .jsonl = TFDS; pairs; and one sentence for each thing that can be
wrong.
"""

import copy
import json
import os
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds

from vargrl.data import image
from vargrl.data.dialogue import encode, files

ASK, ANSWER = {'role': 'user', 'content': '<image>hello'}, {'role': 'assistant', 'content': 'a cat'}
PAIR = {
  'messages': [{'role': 'user', 'content': 'Draw <image>.'}],
  'images': ['0.png', '1.png', '2.png'],
  'chosen': {'role': 'assistant', 'content': 'Here.<image_gen>'},
  'rejected': {'role': 'assistant', 'content': 'There.<image_gen>'},
}


def build(folder, records, pictures):
  """A TFDS data set of the same records."""
  texts = {'role': tfds.features.Text(), 'content': tfds.features.Text()}
  features = {
    'messages': tfds.features.Sequence(texts),
    'images': tfds.features.Sequence(tfds.features.Image()),
  }
  features |= {
    key: tfds.features.FeaturesDict(texts) for key in ('chosen', 'rejected') if key in records[0]
  }

  more = dict(
    id=tfds.features.Scalar(np.int64), answers=tfds.features.Sequence(tfds.features.Text())
  )
  features |= {key: more[key] for key in more if key in records[0]}

  class Talks(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Dialogues."""

    VERSION = tfds.core.Version('1.0.0')
    name, url_infos = 'talks', None

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
      )

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i, record in enumerate(records):
        yield i, record | {'images': [(pictures / name).read_bytes() for name in record['images']]}

  tfds.disable_progress_bar()
  Talks(data_dir=str(folder)).download_and_prepare(file_format='array_record')


def read(dataset, role='train', split='', dir=''):
  load, count = files.open_source(str(dataset), split, str(dir), role=role)
  return [load(i) for i in range(count)]


def seen(dialogues):
  """Messages and pixels."""
  return [(d.messages, [encode.load_image(p).tolist() for p in d.images]) for d in dialogues]


def test_a_json_a_jsonl_and_a_tfds_data_set_say_the_same(talks, tmp_path):
  records = [
    record | {'id': i, 'answers': ['7', 'sieben']}
    for i, record in enumerate(json.loads(open(talks.path).read()))
  ]
  lines = '\n'.join(map(json.dumps, records))
  (tmp_path / 'talks.jsonl').write_text(f'\n{lines}\n\n')
  build(tmp_path, records, talks.images)
  found = seen(read(talks.path))
  assert len(found) == 4 and [len(pictures) for _, pictures in found] == [1, 1, 2, 0]
  assert found[0][0] == (('user', '<image>hello'), ('assistant', 'a cat'))
  for dialogues in (
    read(tmp_path / 'talks.jsonl', dir=talks.images),
    read('talks', split='train', dir=tmp_path),
  ):
    assert seen(dialogues) == found
    assert dialogues[1].metadata == {'id': 1, 'answers': ['7', 'sieben']}


def test_pairs_are_two_dialogues_that_begin_alike(talks, tmp_path):
  (tmp_path / 'pairs.json').write_text(json.dumps([PAIR]))
  (tmp_path / 'tfds').mkdir()
  build(tmp_path / 'tfds', [PAIR], talks.images)
  for [(chosen, rejected)] in (
    read(tmp_path / 'pairs.json', 'pair', dir=talks.images),
    read('talks', 'pair', 'train', tmp_path / 'tfds'),
  ):
    assert chosen.messages == (('user', 'Draw <image>.'), ('assistant', 'Here.<image_gen>'))
    assert rejected.messages == (chosen.messages[0], ('assistant', 'There.<image_gen>'))
    for dialogue, names in ((chosen, '01'), (rejected, '02')):
      for picture, name in zip(dialogue.images, names, strict=True):
        pixels = image.decode((talks.images / f'{name}.png').read_bytes())
        np.testing.assert_array_equal(encode.load_image(picture), pixels)


def test_pictures_lie_below_the_folder_or_where_they_are_said_to(talks, tmp_path, monkeypatch):
  path = tmp_path / 'x.json'
  path.write_text(json.dumps([talks.record([('user', '<image>'), ('assistant', 'a')], ['p.png'])]))
  (tmp_path / 'p.png').write_bytes(b'')
  assert read(path)[0].images == (str(tmp_path / 'p.png'),)
  os.rename(tmp_path / 'p.png', talks.images / 'p.png')
  monkeypatch.chdir(talks.images)
  assert read(path)[0].images == ('p.png',)
  (talks.images / 'p.png').unlink()
  with pytest.raises(
    ValueError, match=f"record 0: picture 'p.png' found neither in '{tmp_path}' nor as it is"
  ):
    read(path)


def test_a_prompt_needs_neither_an_answer_nor_its_picture(talks, tmp_path):
  path, asked = tmp_path / 'x.json', [('user', '<image>hello'), ('assistant', 'a<image_gen>')]
  full = talks.record(asked, ['0.png', '1.png'])
  path.write_text(
    json.dumps([full, full | {'images': ['0.png']}, talks.record(asked[:1], ['0.png'])])
  )
  found = read(path, 'prompt', dir=talks.images)
  assert [len(d.images) for d in found] == [2, 1, 1] and found[2].messages[-1] == (
    'assistant',
    '',
  )
  with pytest.raises(ValueError, match='record 1: 2 places of pictures .* and 1 images found'):
    read(path, dir=talks.images)


WRONG = [  # change of [ASK, ANSWER] with 0.png; what is said of it
  (
    lambda r: r.update(images=[]),
    '1 places of pictures (<image>, <image_gen>) and 0 images found, as many of both',
  ),
  (lambda r: r.update(images=['0.png', '1.png']), 'and 2 images found'),
  (lambda r: r.update(images=['no.png']), "picture 'no.png' found neither in"),
  (
    lambda r: r.update(messages=r['messages'][:1]),
    "roles ['user'] found, 'user' and 'assistant' in turns expected",
  ),
  (lambda r: r['messages'].reverse(), "roles ['assistant', 'user'] found"),
  (lambda r: r['messages'][1].update(role='gpt'), "roles ['user', 'gpt'] found"),
  (
    lambda r: r['messages'][1].update(content=' \n'),
    'an empty answer found, words or <image_gen> expected',
  ),
  (
    lambda r: r['messages'][1].update(content='<image>'),
    "message '<image>' of 'assistant' found, <image> expected",
  ),
  (
    lambda r: r['messages'][0].update(content='<image_gen>'),
    "message '<image_gen>' of 'user' found",
  ),
  (lambda r: r['messages'][0].update(content=None), "texts 'role' and 'content' expected"),
  (lambda r: r.pop('messages'), "['images'] found, keys ['messages'] expected"),
  (lambda r: r.update(messages=[]), 'roles [] found'),
]


@pytest.mark.parametrize('change, message', WRONG)
def test_a_wrong_record_is_told_by_its_number_before_anything_starts(
  talks, tmp_path, change, message
):
  good = {'messages': [ASK, ANSWER], 'images': ['0.png']}
  bad = copy.deepcopy(good)
  change(bad)
  path = tmp_path / 'x.json'
  path.write_text(json.dumps([good, bad]))
  with pytest.raises(ValueError, match=re.escape(f'{path}: record 1: ')) as error:
    read(path, dir=talks.images)
  assert message in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'images': ['0.png']}, '3 places of pictures (<image>, <image_gen>) and 1 images found'),
    (
      {'chosen': {'role': 'assistant', 'content': 'Here.'}},
      "answers ['Here.', 'There.<image_gen>'] found, one <image_gen> expected in both, or none",
    ),
    ({'rejected': 'x'}, "message 'x' found, texts 'role' and 'content' expected"),
    ({'messages': [ASK, ANSWER]}, "roles ['user', 'assistant', 'assistant'] found"),
  ],
)
def test_a_wrong_pair_is_told(talks, tmp_path, change, message):
  (tmp_path / 'x.json').write_text(json.dumps([PAIR | change]))
  with pytest.raises(ValueError, match=re.escape(message)):
    read(tmp_path / 'x.json', 'pair', dir=talks.images)


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('x.json', '{"messages": []}', 'x.json: dict found in JSON, a list expected'),
    ('x.json', '[{', 'x.json: no JSON'),
    ('x.jsonl', '\n{}\n{', 'x.jsonl: record 0: [] found, keys'),
    ('x.jsonl', '{', 'x.jsonl: record 0: no JSON'),
    ('x.json', '[]', 'x.json: 0 records found, at least 1 expected'),
    ('x.json', '[3]', 'x.json: record 0: int found'),
  ],
)
def test_a_file_that_holds_no_dialogues_is_told(tmp_path, name, content, message):
  (tmp_path / name).write_text(content)
  with pytest.raises(ValueError, match=re.escape(message)):
    read(tmp_path / name)


def test_prompts_of_a_text_file_are_its_lines(tmp_path):
  path = tmp_path / 'asked.txt'
  path.write_text('a cat\n  two dogs \n\n')
  one, count = files.open_source(str(path), '', '', role='prompt')
  assert [one(i).text for i in range(count)] == ['a cat', 'two dogs']
  path.write_text('a cat\n\ntwo dogs\n')  # whose lines would not be those of names.py
  with pytest.raises(ValueError, match='asked.txt: an empty line 2 found'):
    read(path, 'prompt')
  with pytest.raises(
    ValueError, match='asked.txt found, which has prompts alone; one that ends with .json or .jsonl'
  ):
    read(path)


def test_what_is_not_there_is_told(tmp_path, talks):
  with pytest.raises(ValueError, match='no.json found, which is no file'):
    read(tmp_path / 'no.json')
  with pytest.raises(ValueError, match="split 'train' found, '' expected of a file"):
    read(talks.path, split='train')
  with pytest.raises(ValueError, match="digits: features .* found, 'messages' expected among them"):
    read('digits', split='train', dir=tmp_path)


@pytest.mark.parametrize('end', files.FILES)
def test_a_file_that_is_no_utf8_is_told(tmp_path, end):
  path = tmp_path / f'x{end}'
  path.write_bytes(b'[\xff]\n')
  with pytest.raises(
    ValueError, match=rf'x{end}: (record 0: )?byte 1 is 0xff, text in UTF-8 expected'
  ):
    read(path, 'prompt')


def test_roles_are_told_as_they_were_written(tmp_path):
  path = tmp_path / 'x.json'
  path.write_text(
    json.dumps([{'messages': [{'role': 'tool', 'content': 'a'}, {'role': 'user', 'content': 'b'}]}])
  )
  with pytest.raises(ValueError, match=r"roles \['tool', 'user'\] found"):
    read(path, 'prompt')
