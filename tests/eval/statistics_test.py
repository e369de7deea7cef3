"""Statistics of features where the answer is known, and against torch_fidelity's."""

import pathlib

import inception_rule as rule
import numpy as np
import pytest

from vargrl.eval import statistics

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / 'golden' / 'inception.npz')
A, B = rule.features(1, 300, 16, 0), rule.features(2, 200, 16, 0.3)


def test_the_frechet_distance_of_gaussians_that_share_their_axes_is_its_closed_form():
  rng = np.random.default_rng(0)
  turn = np.linalg.qr(rng.standard_normal((8, 8)))[0]
  s, t = rng.uniform(0.1, 3, (2, 8))
  m, n = rng.standard_normal((2, 8))
  found = statistics.frechet((m, turn @ np.diag(s**2) @ turn.T), (n, turn @ np.diag(t**2) @ turn.T))
  assert found == pytest.approx(((m - n) ** 2).sum() + ((s - t) ** 2).sum(), rel=1e-12)


def test_the_frechet_distance_is_a_distance():
  a, b = statistics.moments(A), statistics.moments(B)
  assert statistics.frechet(a, a) == pytest.approx(0, abs=1e-10)
  assert statistics.frechet(a, b) == pytest.approx(statistics.frechet(b, a), rel=1e-10)
  assert statistics.frechet(a, b) > 1


def test_covariances_of_fewer_images_than_numbers_need_no_offset():
  few = A[:6]  # rank 5 of 16
  a = statistics.moments(few)
  assert statistics.frechet(a, a) == pytest.approx(0, abs=1e-6)
  assert np.isfinite(statistics.frechet(a, statistics.moments(B)))


def test_moments_are_numpys_whatever_the_blocks(monkeypatch):
  mean_D, cov_DD = statistics.moments(A)
  monkeypatch.setattr(statistics, 'BLOCK', 7)
  for found in ((mean_D, cov_DD), statistics.moments(A)):
    np.testing.assert_allclose(found[0], A.astype(np.float64).mean(0), rtol=1e-10)
    np.testing.assert_allclose(
      found[1], np.cov(A.astype(np.float64), rowvar=False), rtol=1e-10, atol=1e-12
    )


def test_the_inception_score_counts_classes():
  sure = np.repeat(np.eye(10, dtype=np.float32) * 1000, 5, 0)
  assert statistics.inception_score(sure) == pytest.approx(10)
  assert statistics.inception_score(np.zeros((50, 10), np.float32)) == pytest.approx(1)
  assert statistics.inception_score(sure[:1]) == pytest.approx(1)
  assert statistics.inception_score(sure, splits=10) == pytest.approx(
    1
  )  # sorted: a part knows one class
  assert statistics.inception_score(
    sure.reshape(10, 5, 10).swapaxes(0, 1).reshape(50, 10), splits=5
  ) == pytest.approx(10)


def test_ten_splits_are_for_fifty_thousand_images():
  logits = np.random.default_rng(0).standard_normal((50_000, 3)).astype(np.float32)
  assert statistics.inception_score(logits) == statistics.inception_score(logits, splits=10)


def test_equal_sets_are_within_each_other_and_distant_ones_are_not():
  assert statistics.precision_recall(A, A) == (1.0, 1.0)
  assert statistics.precision_recall(A, A + 100) == (0.0, 0.0)
  # One point of the reals again and again: precise, and nothing else is found.
  again = np.repeat(A[:1], 20, 0)
  precision, recall = statistics.precision_recall(A, again)
  assert precision == 1.0 and recall <= 1 / len(A)


def test_blocks_do_not_change_precision_and_recall(monkeypatch):
  whole = statistics.precision_recall(B, A)
  monkeypatch.setattr(statistics, 'BLOCK', 64)
  assert statistics.precision_recall(B, A) == whole


def test_the_numbers_are_those_of_torch_fidelity():
  assert statistics.frechet(statistics.moments(A), statistics.moments(B)) == pytest.approx(
    float(GOLDEN['fid']), rel=1e-8
  )
  assert statistics.inception_score(A, splits=10) == pytest.approx(
    float(GOLDEN['inception_score']), rel=1e-8
  )
  assert statistics.precision_recall(B, A) == pytest.approx(
    (float(GOLDEN['precision']), float(GOLDEN['recall']))
  )
  assert 0 < GOLDEN['recall'] < 1 or 0 < GOLDEN['precision'] < 1  # else they would compare nothing


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: statistics.moments(A[:1]), '1 rows found'),
    (
      lambda: statistics.frechet(statistics.moments(A), statistics.moments(B[:, :4])),
      'means of 16 and 4',
    ),
    (lambda: statistics.inception_score(A[:3], splits=4), '4 of 3 images'),
    (lambda: statistics.precision_recall(A, B[:3]), '3 generated images'),
  ],
)
def test_too_little_is_one_sentence(call, message):
  with pytest.raises(ValueError, match=message):
    call()
