"""Answers to held-out dialogues: each is judged by its own record, and counts once."""

import fake_run
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.data import characters_tokenizer, text
from vargrl.data.dialogue import sums
from vargrl.eval import answers
from vargrl.types import Rollout, Span

N, L = 5, 4
OPTIONS = dict(
  dataset='sums/9',
  split='test',
  dir='',
  max_records=N,
  length=24,
  max_patches=0,
  prefill_image=False,
  size=(),
  crop='none',
  tokenizer='characters',
  vision={},
  per_prompt=1,
  greedy=False,
  seed=0,
  batch=2,
  rewards=dict(
    right=dict(name='rewards.exact_match', weight=1.0, segment='text', mode='exact', pattern='')
  ),
  pool=dict(max_failed=0.1, workers=1, timeout=60.0, retries=0, chunk=4),
)


def says(word, changes=None):
  """The Built of a policy that answers `word` to whatever it is asked; changes: appended to with
  what with_plan is called with."""
  tokens = text.encode(characters_tokenizer.build(), word)

  def generate(params, frozen, prompt_B, key_B, keys_B1):
    rows = (len(keys_B1), 1, L)
    mask = jnp.broadcast_to((jnp.arange(L) < len(tokens)).astype(jnp.float32), rows)
    padded = jnp.broadcast_to(jnp.pad(jnp.asarray(tokens), (0, L - len(tokens))), rows)
    return Rollout({'text': {'tokens': padded}}, 0.0 * mask, 0.0 * mask, mask)

  def with_plan(names, **settings):
    changes.append((names, settings))
    return policy

  policy = fake_run.policy(
    spans=(Span('text', 0, L, (), np.zeros(L, np.int32)),),
    features={'tokens': None, 'length': None},
    texts=('text',),
    prompt=lambda batch: {k: batch[k] for k in ('tokens', 'length')},
    check_prompt=lambda length: None,
    generate=generate,
    latents=lambda data, n_leading: None,
    with_plan=with_plan,
  )
  built = fake_run.built(policy)
  segment = fake_run.types.SimpleNamespace(name='text', given=False)
  return fake_run.dataclasses.replace(built, plan=(segment,))


def measure(built, **changes):
  evaluate = answers.make(built, **OPTIONS | changes)
  polls = []
  try:
    return dict(evaluate({'policy': {}}, {}, lambda: polls.append(0))), len(polls)
  finally:
    evaluate.close()


def test_the_share_of_right_answers_is_that_of_the_records():
  read = sums.open_source('sums/9', 'test')
  expected = [read(i).metadata['answer'] for i in range(N)]
  word = max(set(expected), key=expected.count)
  found, polls = measure(says(word), per_prompt=3)
  share = pytest.approx(expected.count(word) / N)
  assert found == {'right': share, 'right/best': share, 'length': len(word), 'masked': 0}
  assert polls == -(-3 * N // 2)


def test_greedy_takes_the_most_likely_token_in_the_runs_own_plan():
  changes = []
  found, _ = measure(says('77', changes), greedy=True)
  assert changes == [(['text'], {'text': {'top_k': 1}})] and found['right'] == 0


@pytest.mark.parametrize(
  'built, changes, message',
  [
    (says('7'), dict(per_prompt=0), 'per_prompt: 0 found'),
    (fake_run.built(fake_run.policy()), {}, 'answers: a policy that reads text expected'),
    (says('7'), dict(dataset='sums/none'), "dataset: 'sums/none' found"),
  ],
)
def test_what_cannot_be_measured_is_told(built, changes, message):
  with pytest.raises(ValueError, match=message):
    answers.make(built, **OPTIONS | changes)
