"""The evaluator of scenes gives a policy that is always right full marks, and one that never is
none.
"""

import fake_run
import jax.numpy as jnp
import numpy as np
import pytest

from vargrl.data import text
from vargrl.data.dialogue import encode, prompts
from vargrl.eval import scenes
from vargrl.types import Rollout, Span

VISION = dict(patch=4, merge=2, frames=1, min_pixels=1024, max_pixels=1024)
IMAGES = dict(size=(32, 32), tokenizer='scenes', vision=VISION)
KNOBS = dict(
  world='small',
  pixels=32,
  split='test',
  max_records=21,
  max_text_tokens=6,
  greedy=True,
  guidance=2.5,
  length=64,
  max_patches=64,
  batch=8,
  seed=0,
  strict=True,
  show=4,
  **IMAGES,
)
WORDS = 6


def known(task):
  """The Dialogues that the evaluator asks for."""
  return prompts.load_prompts(
    dataset=f'scenes/small/32/{task}',
    split='test',
    dir='',
    max_records=21,
    length=64,
    max_patches=64,
    prefill_image=False,
    crop='cover',
    **IMAGES,
  )[1]


def policy(task, shift, draws=(True,) * 21):
  """A policy that answers record i with what is right for record i + shift; a key is the record's
  number.
  """
  dialogues = known(task)
  tokenizer = encode.make_format(crop='cover', **IMAGES).tokenizer
  ids = [
    text.encode(tokenizer, dialogue.messages[-1][1].replace('<image_gen>', ''))
    for dialogue in dialogues
  ]
  told = (
    np.stack([np.pad(t, (0, WORDS - len(t))) for t in ids])
    if task == 'question'
    else np.zeros((21, WORDS), int)
  )
  mask = np.stack([np.arange(WORDS) < len(t) for t in ids]).astype(np.float32)
  if task != 'question':
    mask = np.concatenate([mask, np.ones((len(dialogues), 1)) * np.asarray(draws)[:, None]], 1)
  picture = jnp.asarray(
    np.stack([np.asarray(d.images[-1], np.float32) / 127.5 - 1 for d in dialogues])
  )

  def generate(params, frozen, prompt_P, key_P, keys_PR):
    at = (fake_run.number_of(keys_PR) + shift) % len(dialogues)
    data = {'text': {'tokens': jnp.asarray(told)[at]}, 'image': at[..., None]}
    return Rollout(data, None, None, jnp.asarray(mask)[at])

  def with_plan(names, **settings):
    assert names == (('text',) if task == 'question' else ('text', 'image'))
    assert settings == dict(
      text=dict(max_tokens=WORDS, top_k=1), image=dict(guidance=2.5, top_p=1e-6)
    )
    spans = (
      Span('text', 0, WORDS, (), None),
      Span('image', WORDS, WORDS + 1, ('scale_0',), None, picture=True),
    )
    images = (lambda data, n: None) if task == 'question' else fake_run.latents
    return fake_run.policy(
      spans=spans[: len(names)],
      generate=generate,
      latents=images,
      keys=lambda rng, P, R: (None, fake_run.numbered_keys(P, R)),
    )

  return fake_run.built(
    fake_run.policy(generate=generate, features={'tokens': None}, with_plan=with_plan),
    decode=lambda frozen, t_BL, prompts, keys_B: picture[t_BL.reshape(-1)],
  )


@pytest.mark.parametrize('task', scenes.TASKS)
def test_who_is_right_has_full_marks_and_who_is_wrong_has_not(task):
  right, wrong = (
    dict(scenes.make(policy(task, shift), task=task, **KNOBS)({'policy': {}}, {}))
    for shift in (0, 1)
  )
  assert right['overall'] == 1 and all(x == 1 for name, x in right.items() if name != 'grid')
  assert wrong['overall'] < 0.4
  if task == 'question':
    return
  side = {'generation': 1, 'editing': 2}[task]
  assert right['grid'].ndim == 3 and right['grid'].shape[1] >= 4 * side * 96


@pytest.mark.parametrize('task', scenes.TASKS[1:])
def test_a_row_that_ended_before_its_picture_is_wrong(task):
  draws = np.arange(21) % 3 > 0
  found = dict(scenes.make(policy(task, 0, draws), task=task, **KNOBS)({'policy': {}}, {}))
  kinds = [
    said.metadata.kind if task == 'editing' else said.metadata.category for said in known(task)
  ]
  shares = [draws[[kind == one for kind in kinds]].mean() for one in dict.fromkeys(kinds)]
  assert found['drawn'] == pytest.approx(2 / 3) and found['overall'] == pytest.approx(
    np.mean(shares)
  )


def test_what_cannot_be_asked_is_told():
  built = policy('question', 0)
  make = lambda built=built, **changes: scenes.make(
    built, **KNOBS | dict(task='question') | changes
  )
  for changes, words in (
    (dict(task='singing'), "task: 'singing' found"),
    (dict(max_text_tokens=0), 'max_text_tokens: 0 found'),
    (dict(length=8), '8'),
    (dict(world='large'), 'large'),
    (dict(split='all'), 'split'),
  ):
    with pytest.raises(ValueError, match=words):
      make(**changes)
  with pytest.raises(ValueError, match='text and pictures expected'):
    make(fake_run.built(fake_run.policy()))
