import pytest

from vargrl import types
from vargrl.objectives import grpo


def test_offsets_are_where_scales_start_and_the_length():
  assert types.offsets((1, 2, 4)) == [0, 1, 5, 21]
  assert types.bounds((1, 2, 4)) == [(0, 1), (1, 5), (5, 21)]


def test_a_name_in_a_config_is_the_path_of_a_file():
  assert types.lookup('objectives.grpo') is grpo


@pytest.mark.parametrize(
  'wrong, near',
  [
    ('objectives.grp', 'objectives.grpo'),
    ('models.vra', 'models.var'),
    ('train', 'checkpoint.digest'),  # top-level modules are no parts of a config
    ('os.path', 'checkpoint.digest'),
    ('objectives.__init__', 'objectives.'),
  ],
)
def test_a_wrong_name_is_an_error_that_names_what_there_is(wrong, near):
  with pytest.raises(ValueError, match='did you mean') as error:
    types.lookup(wrong)
  assert wrong in str(error.value)
  if near != 'checkpoint.digest':
    assert f"did you mean '{near}" in str(error.value)
