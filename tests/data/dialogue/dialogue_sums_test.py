"""Sums as dialogues: a function of the index alone, right answers, no question in both splits."""

import pytest

from vargrl.data.dialogue import sums


def test_answers_are_right_and_no_question_is_in_both_splits():
  asked = {}
  for split in sums.SPLITS:
    read = sums.open_source('sums/19', split)
    dialogues = [read(i) for i in range(300)]
    assert dialogues == [read(i) for i in range(300)]
    for (_, question), (_, answer) in (d.messages for d in dialogues):
      a, b = question.removesuffix('=').split('+')
      assert int(a) + int(b) == int(answer) and max(int(a), int(b)) <= 19
    assert all(d.metadata == {'answer': d.messages[1][1]} and not d.images for d in dialogues)
    asked[split] = {d.text for d in dialogues}
  assert len(asked['train']) > 150 and not asked['train'] & asked['test']


def test_of_a_pair_the_first_is_right_and_the_second_another_number():
  read = sums.open_source('sums/9/pairs', 'train')
  for chosen, rejected in map(read, range(50)):
    assert chosen.messages[0] == rejected.messages[0] and chosen.metadata == rejected.metadata
    assert chosen.messages[1][1] == chosen.metadata['answer'] != rejected.messages[1][1]
    assert int(rejected.messages[1][1]) >= 0


@pytest.mark.parametrize(
  'dataset, split, message',
  [
    ('sums/x', 'train', "dataset: 'sums/x' found"),
    ('sums/9/other', 'train', "dataset: 'sums/9/other' found"),
    ('sums/1', 'train', 'a LARGEST of at least 4 expected'),
    ('sums/9', 'val', "split: 'val' found"),
  ],
)
def test_an_unknown_one_is_told(dataset, split, message):
  with pytest.raises(ValueError, match=message):
    sums.open_source(dataset, split)
