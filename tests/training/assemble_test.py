"""Rewards that look at what rows do not have are refused before anything starts."""

import types

from ml_collections import ConfigDict
import numpy as np
import pytest

from vargrl.training import assemble
from vargrl.types import Span

TEXT = Span('text', 0, 4, (), np.zeros(4, np.int32))
IMAGE = Span('image', 0, 5, ('scale_0', 'scale_1'), np.array([0, 1, 1, 1, 1]), picture=True)


def policy(*spans):
  return types.SimpleNamespace(
    spans=spans, texts=tuple(span.name for span in spans if not span.picture)
  )


def rewards(**section):
  return ConfigDict({'it': section | {'weight': 1.0}})


def test_a_reward_of_text_wants_a_text_and_one_of_pictures_a_picture():
  right = rewards(name='rewards.exact_match', segment='text', mode='exact', pattern='')
  jpeg = rewards(name='rewards.jpeg', quality=90, sign=1)
  assemble.check_samples(right, policy(TEXT))
  assemble.check_samples(jpeg, policy(TEXT, IMAGE))
  with pytest.raises(ValueError, match="reward it: segment 'text', expected one of the texts"):
    assemble.check_samples(right, policy(IMAGE))
  with pytest.raises(ValueError, match='reward it: rewards.jpeg looks at pictures, .*text'):
    assemble.check_samples(jpeg, policy(TEXT))
