"""What a rollout of text and pictures cannot be is refused in one sentence."""

import dataclasses

import pytest

from vargrl.models import unified
from vargrl.models.nets.unified import Settings
from vargrl.rollout.kinds import bits, text
from vargrl.rollout.plan import Segment

CONFIG = unified.SIZES['smoke']
START, END, PAD = CONFIG.image_tokens
SAID = text.Config(4, temperature=1.0, top_k=0, top_p=0.0, stop=(2,), next_token=START)
DRAWN = bits.Config(2.0, 1.0, 0.0, 'cond', CONFIG.scales, CONFIG.bits)
GOOD = Settings(uncond_prompt=(1, START), reference_impl=False)
RELEASED = Settings(uncond_prompt=(), reference_impl=True)


def plan(stop=(2,), **image):
  said, drawn = dataclasses.replace(SAID, stop=stop), dataclasses.replace(DRAWN, **image)
  return Segment('text', text, said), Segment('image', bits, drawn)


@pytest.mark.parametrize(
  'settings, plan, words',
  [
    (GOOD, plan(stop=(999,)), 'rollout.text.stop: token 999, expected 0 .. 255'),
    (GOOD, plan(stop=(END,)), 'rollout.text.stop: .*expected others than the tokens of a picture'),
    (
      dataclasses.replace(GOOD, uncond_prompt=(1, 3)),
      plan(),
      f'rollout.uncond_prompt: ends with token 3, expected {START}',
    ),
    (
      dataclasses.replace(GOOD, uncond_prompt=(-1, START)),
      plan(),
      'rollout.uncond_prompt: token -1',
    ),
    (
      dataclasses.replace(GOOD, uncond_prompt=()),
      plan(),
      'guidance without rollout.uncond_prompt, .* asks for nothing',
    ),
    (GOOD, plan()[1:] * 2, "picture 'image' after picture 'image', expected a text in between"),
    (GOOD, plan(logp_of='guided'), "rollout.image.logp_of: 'guided', expected 'cond'"),
    (RELEASED, plan(), 'rollout.reference_impl: text features of 16 numbers .* width 32'),
  ],
)
def test_settings_that_fit_no_model_or_plan_are_refused(settings, plan, words):
  with pytest.raises(ValueError, match=words):
    settings.check(CONFIG, plan, None)


def test_those_that_fit_are_not():
  GOOD.check(CONFIG, plan(), 99)
  text_alone, unguided = plan()[:1], plan(guidance=1.0)
  for settings in (dataclasses.replace(GOOD, uncond_prompt=()), RELEASED):
    settings.check(CONFIG, text_alone, 99)
    settings.check(CONFIG, unguided, 99)


def test_the_released_unconditional_branch_has_room_for_so_much():
  """Its learned features stand in for all tokens before a picture."""
  decoder = dataclasses.replace(CONFIG.image_decoder, text=32)
  c = dataclasses.replace(CONFIG, image_decoder=decoder)
  twice = (*plan(), *(segment._replace(name=f'{segment.name}_1') for segment in plan()))
  RELEASED.check(c, plan(), 4)  # 4 tokens of a prompt and 4 of text
  for found, segments, length in ((9, plan(), 5), (9, plan()[1:], 9), (13, twice, 4)):
    with pytest.raises(ValueError, match=f'rollout: {found} tokens of a prompt .*at most 8'):
      RELEASED.check(c, segments, length)
  GOOD.check(c, twice, 99)
