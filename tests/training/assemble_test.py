"""What does not fit together is refused before anything starts: rewards that look at what rows do
not have, models of one's own that lack a part of the contract."""

import importlib
import sys
import types

from ml_collections import ConfigDict
import numpy as np
import pytest

from vargrl.commands import experiment
from vargrl.training import assemble
from vargrl.training.run import Run
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


def test_answers_must_have_room():
  assemble.check_answers(ConfigDict({'max_answer': 4}), (IMAGE, TEXT))
  assemble.check_answers(ConfigDict({}), (TEXT,))
  with pytest.raises(ValueError, match='data.max_answer: 5 tokens found, at most 4 expected'):
    assemble.check_answers(ConfigDict({'max_answer': 5}), (TEXT, IMAGE))


OWN = """
from vargrl.models import var
SIZES, Config, Model, init, NET = var.SIZES, var.Config, var.Model, var.init, var.NET
"""


@pytest.mark.parametrize(
  'more, words',
  [
    ('', r"name: 'own_policy' found, which has no flops \(\(c, types.RowShape\) -> "),
    ('del NET', r"'own_policy' found, which has no NET \(.*\), no flops \("),
    (
      "flops = lambda c, row: {'body': 1}",
      r"own_policy.flops: part 'body' found, one of the weights \[.*'head'.*\] expected, or ''",
    ),
  ],
)
def test_a_policy_of_ones_own_is_told_all_that_it_lacks_at_the_check(
  more, words, tmp_path, monkeypatch
):
  """Not when training has started, which asks for its FLOPs."""
  (tmp_path / 'own_policy.py').write_text(OWN + more)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'own_policy', raising=False)
  importlib.invalidate_caches()
  c = experiment.load('experiments/grpo_var_d16_jpeg.py:smoke')
  c.policy.name, c.init = 'own_policy', {}
  with pytest.raises(ValueError, match=words):
    Run(c, tmp_path)
