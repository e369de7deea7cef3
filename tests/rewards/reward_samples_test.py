"""What a reward sees of a row, in real worker processes: pictures, texts, records, whole groups."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.parallel import mesh as meshes
from vargrl.rewards import mix
from vargrl.types import Samples

HERE = os.path.dirname(os.path.abspath(__file__))


@pytest.fixture(autouse=True)
def judges_are_importable(monkeypatch):
  monkeypatch.syspath_prepend(HERE)


@pytest.fixture
def score():
  """(r_B, counts) of one reward with the knobs of a test; closes what it made."""
  made = []

  def one(samples, group_size=1, max_failed=0.0, chunk=2, records=None, decode_text=None, **reward):
    knobs = dict(workers=2, timeout=30.0, retries=0, chunk=chunk)
    knobs |= dict(records=records, decode_text=decode_text)
    m = mix.make({'it': dict(weight=1.0, **reward)}, bind={}, max_failed=max_failed, **knobs)
    made.append(m)
    r_B, _, counts = m.score({}, samples, group_size)
    return r_B.tolist(), {k: v for k, v in counts.items() if v}

  yield one
  for m in made:
    m.close()


def grey(*levels):
  """Pictures of these levels, -1 for black, 1 for white."""
  return jnp.asarray(levels, jnp.float32)[:, None, None, None] * jnp.ones((1, 2, 2, 3))


def prompts(*texts):
  return [{'prompt': text, 'label': i} for i, text in enumerate(texts)]


def test_a_reward_on_text_alone_needs_no_picture(score):
  texts = {'text': ['no', 'no', 'no'], 'text_1': ['a red fox', 'a dog', 'red']}
  rows = Samples(None, texts, {'label': np.arange(3)})
  assert score(rows, name='judges.says', segment='text_1', word='red')[0] == [1, 0, 1]


def test_token_ids_become_strings(score):
  t_BL = np.array([[0, 1, 2], [1, -1, -1]])
  decode_text = lambda ids: ' '.join(['a', 'red', 'fox'][i] for i in ids if i >= 0)
  rows = Samples(None, {'text': t_BL}, {'label': np.arange(2)})
  options = dict(name='judges.says', segment='text', word='fox', decode_text=decode_text)
  assert score(rows, **options)[0] == [1, 0]


def test_a_reward_may_look_at_the_picture_and_the_text_of_a_row(score):
  rows = Samples(grey(-1, 1, 1), {'text': ['dark', 'dark', 'bright']}, {'label': np.arange(3)})
  assert score(rows, name='judges.describes')[0] == [1, 0, 1]


def test_a_reward_may_read_the_metadata_of_the_record(score):
  record = [
    {'prompt': 'a zoo', 'label': 4, 'include': ['fox', 'dog']},
    {'prompt': 'a cat', 'label': 2, 'include': ['cat']},
  ]
  rows = Samples(None, {'text': ['a fox', 'a cat']}, record)
  assert score(rows, name='judges.includes')[0] == [0.5, 1]


def test_records_are_looked_up_by_the_labels(score):
  records = lambda labels: [{'label': int(n), 'prompt': 'x' * int(n)} for n in labels]
  rows = Samples(grey(0, 0), {}, {'label': np.array([3, 1])})
  assert score(rows, records=records, name='judges.length')[0] == [3, 1]


def test_a_reward_that_compares_rows_gets_whole_groups(score, tmp_path):
  rows = Samples(grey(-1, 0, 1, 0.5, 0.25, 0.75), {}, prompts(*'aaabbb'))
  options = dict(name='tournament', log=str(tmp_path / 'log'), refuse=-1)
  assert score(rows, group_size=3, chunk=2, **options)[0] == [0, 0.5, 1, 0.5, 0, 1]
  assert (tmp_path / 'log').read_text().split() == ['3', '3']  # a chunk has at least one group


def test_a_function_of_a_module_may_compare_rows_too(score):
  rows = Samples(None, {'text': ['a', 'bbb', 'cc', 'd']}, prompts(*'ppqq'))
  assert score(rows, group_size=2, chunk=4, name='judges.best')[0] == [0, 1, 1, 0]


def test_a_group_that_fails_is_masked_whole_and_the_others_have_their_scores(score, tmp_path):
  rows = Samples(grey(*np.linspace(-1, 1, 8)), {}, prompts(*'aabbccdd'))
  options = dict(name='tournament', log=str(tmp_path / 'log'), refuse=2)
  r_B, counts = score(rows, group_size=2, chunk=8, max_failed=0.5, **options)
  np.testing.assert_array_equal(r_B, [0, 1, 0, 1, np.nan, np.nan, 0, 1])
  assert counts == {'reward/error': 2, 'reward/masked': 2, 'reward/retry': 2}
  assert sorted((tmp_path / 'log').read_text().split()) == ['2', '2', '4', '4']


def test_rows_that_are_not_whole_groups_are_refused(score):
  with pytest.raises(ValueError, match='3 rows found, a multiple of the group size 2 expected'):
    score(Samples(None, {'text': ['a'] * 3}, prompts(*'aab')), group_size=2, name='judges.best')


def test_a_reward_of_pictures_fails_on_text_in_one_sentence(score):
  rows = Samples(None, {'text': ['a', 'b']}, {'label': np.arange(2)})
  with pytest.raises(RuntimeError, match='reward rewards.jpeg: no verdict.*rows without pictures'):
    score(rows, name='rewards.jpeg', quality=90, sign=1)
  with pytest.raises(ValueError, match='reward rewards.brightness: fails on rows without pictures'):
    score(rows, name='rewards.brightness')
  options = dict(file='', size='smoke', dtype='float32', tokenizer='', template='{class}')
  m = mix.make(
    {'hps': dict(name='rewards.hps', weight=1.0, names=('a', 'b'), **options)},
    **dict(bind={}, max_failed=0.0, workers=1, timeout=1, retries=0, chunk=1),
  )
  with pytest.raises(ValueError, match='reward rewards.hps: rows without pictures found'):
    m.score({'rewards': {'towers': {}, 'judges': {}}}, rows, 1)


def test_groups_are_whole_on_the_devices_that_hold_all_of_their_rows():
  mesh = meshes.make((('data', 2), ('fsdp', 2), ('tensor', 2)), jax.devices()[:8])
  spec = jax.sharding.PartitionSpec(('data', 'fsdp'))
  x = jax.device_put(np.zeros((24, 2)), jax.sharding.NamedSharding(mesh, spec))  # 6 rows on each
  assert [mix.cuts_units(x, unit) for unit in (1, 2, 3, 6, 4, 12)] == [False] * 4 + [True] * 2
  whole = jax.device_put(
    np.zeros((24, 2)), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  )
  assert not mix.cuts_units(whole, 12)
