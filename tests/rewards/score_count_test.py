"""Another number of scores than of rows: the function's fault, which ends the run."""

import contextlib
import os

import numpy as np
import pytest

from vargrl.rewards import pool as pools
from vargrl.rewards.host_samples import HostSamples

HERE = os.path.dirname(os.path.abspath(__file__))


@pytest.mark.parametrize('of, found', [('one', 1), ('one less', 15), ('two each', 32)])
def test_it_ends_the_run_after_the_retries(of, found, tmp_path, monkeypatch):
  """Nothing is halved down to single rows, for which one score is right, whatever max_failed
  allows."""
  monkeypatch.syspath_prepend(HERE)
  log, knobs = tmp_path / 'log', dict(workers=1, timeout=30.0, retries=1, chunk=16)
  rows = HostSamples(None, {}, [{'label': 0}] * 16, np.zeros(16))
  pool = pools.Pool('judges.counts', dict(of=of, log=str(log)), **knobs)
  with contextlib.closing(pool):
    text = f'reward judges.counts: returned {found} scores, expected 16, one for each row'
    with pytest.raises(ValueError, match=text):
      pool.scores(rows)
  assert log.read_text().split() == ['16', '16']
