"""What a worker takes for a reward function, and what for its scores."""

import os

import numpy as np
import pytest

from vargrl.rewards import worker
from vargrl.rewards.host_samples import HostSamples

HERE = os.path.dirname(os.path.abspath(__file__))


@pytest.fixture(autouse=True)
def judges_are_importable(monkeypatch):
  monkeypatch.syspath_prepend(HERE)


def judges_return(what, n):
  import judges

  return judges.returns(HostSamples(None, {}, [{}] * n, np.arange(n)), what=what)


@pytest.mark.parametrize(
  'what, found',
  [
    ('short', '3 scores, expected 4, one for each row'),
    ('scalar', r'float of shape \(\), expected 4'),
    ('column', r'ndarray of shape \(4, 1\), expected 4'),
    ('nothing', r'NoneType of shape \(\), expected 4'),
    ('ragged', r'no array \(.*\), expected 4 numbers'),
    ('text', 'dtype <U4, expected real'),
    ('complex', 'dtype complex128, expected real'),
  ],
)
def test_what_is_not_one_number_for_each_image_is_an_error(what, found):
  with pytest.raises(ValueError, match=f'returned {found}'):
    worker.as_scores(judges_return(what, 4), 4)


def test_booleans_integers_and_object_arrays_are_scores():
  assert worker.as_scores(judges_return('bool', 3), 3).tolist() == [1, 1, 1]
  assert worker.as_scores(judges_return('integers', 3), 3).tolist() == [0, 1, 2]
  np.testing.assert_array_equal(worker.as_scores(judges_return('objects', 3), 3), [np.nan, 1, 2])


@pytest.mark.parametrize(
  'name, options, message',
  [
    ('judges.NOT_A_FUNCTION', {}, 'found a int, expected a function'),
    ('judges.label', {'scal': 2}, "unknown option 'scal'; did you mean 'scale'"),
    ('judges.always', {}, "missing a required (keyword-only )?argument: 'how'"),
    ('sharpness.reward', {}, 'missing a required argument'),  # a device reward, called as host's
    (
      'judges.takes_nothing',
      {},
      r'a function with the parameters \(\) found, which is called with \(samples\)',
    ),
    ('judges.mean', {'a': 1}, "unknown option 'a'; there are none"),
    ('broken.f', {}, r'importing broken: Traceback[\s\S]*OSError: weights not found'),
    ('vargrl.rewards.jpg', {}, "vargrl.rewards has no 'jpg'; did you mean 'jpeg'"),
  ],
)
def test_a_worker_refuses_a_wrong_function_or_option(name, options, message):
  with pytest.raises(ValueError, match=f'reward {name}: {message}'):
    worker.load(name, options)
