"""The judge on images whose verdict is known: the real ones."""

import fake_run
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.svm import SVC

from vargrl.data import digits, image
from vargrl.eval import judge

EACH = 30
PIXELS, LABEL = digits.arrays('test')
CHOSEN = np.concatenate([np.flatnonzero(LABEL == k)[:EACH] for k in range(10)])  # by class


def flat(pixels):
  return pixels.reshape(len(pixels), -1).astype(np.float32) / 255


@pytest.fixture(scope='module')
def svc():
  pixels, label = digits.arrays('train')
  return SVC(C=10.0).fit(flat(pixels), label)


@pytest.fixture(scope='module')
def judged(tmp_path_factory):
  """pixels [10 * EACH, 8, 8, 3] of a policy that draws just these, by class -> what the judge
  says.
  """
  policy = fake_run.policy(
    dict(image_size=8, classes=10),
    keys=lambda rng, P, R: (None, fake_run.numbered_keys(P, R)),
    generate=lambda params, frozen, label_P, key_P, keys_PR: fake_run.rollout(
      fake_run.number_of(keys_PR)[..., None]
    ),
  )
  decode = lambda frozen, t_BL, prompts, keys_B: frozen['drawn'][t_BL[:, 0]]
  folder = str(tmp_path_factory.getbasetemp() / 'tfds')
  options = dict(dataset='digits', size=8, per_class=EACH, seed=0, dir=folder)
  evaluate = judge.make(fake_run.built(policy, decode=decode), **options)

  def judged(pixels):
    polls = []
    found = dict(
      evaluate(
        {'policy': {}}, {'drawn': jnp.asarray(image.to_float(pixels))}, lambda: polls.append(0)
      )
    )
    assert polls
    return found

  return judged


def test_real_images_are_wrong_where_the_judge_errs_and_nowhere_else(judged, svc):
  found, error = judged(PIXELS[CHOSEN]), svc.predict(flat(PIXELS[CHOSEN])) != LABEL[CHOSEN]
  assert found['wrong'] == pytest.approx(error.mean())
  assert found['real'] == pytest.approx(svc.score(flat(PIXELS), LABEL))
  assert found['real'] > 0.97 and found['wrong'] < 0.03
  assert found['variance'] == pytest.approx(found['real_variance'], rel=0.1)
  assert found['grid'].dtype == np.uint8 and found['grid'].ndim == 3


def test_images_of_another_class_are_wrong(judged, svc):
  other = np.roll(CHOSEN, EACH)  # every class draws the one before it
  found = judged(PIXELS[other])
  expected = (svc.predict(flat(PIXELS[other])) != LABEL[CHOSEN]).mean()
  assert found['wrong'] == pytest.approx(expected) and expected > 0.97


def test_a_policy_that_draws_one_image_of_a_class_has_no_variance(judged):
  found = judged(PIXELS[np.repeat(CHOSEN[::EACH], EACH)])
  assert found['variance'] < 1e-9 and found['wrong'] in [k / 10 for k in range(11)]


def test_variance_of_known_arrays():
  # Class 0: pixels vary by (1, 0), variances 0.25 and 0; class 1: 1 and 1; class 4 has one image.
  x = np.array([[0.0, 5], [1, 5], [0, 0], [2, 2], [9, 9]])
  assert judge.variance(x, np.array([0, 0, 1, 1, 4])) == pytest.approx((0.125 + 1 + 0) / 3)
  same = np.ones((6, 2))
  assert judge.variance(same, np.array([0, 0, 0, 1, 1, 1])) == 0
