"""The rollout section of a config as a plan of segments, and what it cannot be."""

from ml_collections import ConfigDict
import numpy as np
import pytest

from vargrl.models import unified
from vargrl.rollout import plan as plans
from vargrl.training import policy

C = unified.SIZES['smoke']
ROLLOUT = ConfigDict(
  dict(
    plan=('text', 'image', 'text_1'),
    weights='sharded',
    text=dict(kind='text', max_tokens=4, temperature=1.0, top_k=0, top_p=0.0, stop=(2,)),
    question=dict(kind='text', max_tokens=3, temperature=1.0, top_k=0, top_p=0.0, stop=(2,)),
    image=dict(kind='bits', guidance=2.0, temperature=1.0, top_p=0.0, logp_of='cond'),
  )
)


def test_segments_have_the_settings_of_their_section_and_the_sizes_of_the_policy():
  plan = policy.segments(ROLLOUT, ROLLOUT.plan, C)
  assert [s.name for s in plan] == ['text', 'image', 'text_1']
  assert not any(s.given for s in plan)
  text, image, again = (s.c for s in plan)
  assert text == again and text.max_tokens == 4 and text.stop == (2,)
  assert text.next_token == C.image_tokens[0]
  assert (image.scales, image.bits, image.guidance) == (C.scales, C.bits, 2.0)


def test_spans_are_one_after_the_other():
  spans = plans.spans(policy.segments(ROLLOUT, ('question:given', 'text', 'image'), C))
  L = C.decoder.length
  assert [(s.name, s.start, s.stop) for s in spans] == [
    ('question', 0, 3),
    ('text', 3, 7),
    ('image', 7, 7 + L),
  ]
  assert [s.given for s in spans] == [True, False, False]
  assert [s.choices for s in spans] == [1, 1, C.bits]
  assert spans[2].parts == ('scale_0', 'scale_1', 'scale_2')
  np.testing.assert_array_equal(spans[2].part_A, np.repeat([0, 1, 2], [1, 4, 16]))


def test_settings_change_by_segment_or_by_section():
  change = lambda **changes: [
    s.c.max_tokens for s in policy.segments(ROLLOUT, ('text', 'text_1'), C, **changes)
  ]
  assert change(text={'max_tokens': 9}) == [9, 9]
  assert change(text_1={'max_tokens': 9}) == [4, 9]


@pytest.mark.parametrize(
  'names, changes, words',
  [
    (('txt',), {}, "rollout.plan: 'txt' has no section with a kind, did you mean 'text'"),
    (('weights',), {}, "rollout.plan: 'weights' has no section with a kind"),
    (('text:told',), {}, "rollout.plan: 'text:told' has no section"),
    (('text', 'text'), {}, 'expected different names, at least one'),
    ((), {}, 'expected different names, at least one'),
    (('image:given', 'text'), {}, "rollout.plan: 'image:given' of a kind that is only sampled"),
    (('text',), {'text': {'top_k': -1}}, 'rollout.text.top_k: -1 found'),
    (('image',), {'image': {'guidance': (1.0, 2.0)}}, 'rollout.image: guidance=.* or 3'),
  ],
)
def test_a_plan_that_cannot_be_is_refused(names, changes, words):
  with pytest.raises(ValueError, match=words):
    policy.segments(ROLLOUT, names, C, **changes)


def test_a_kind_that_needs_what_the_policy_has_not_is_refused():
  scales = dict(
    kind='scales',
    guidance=1.0,
    guidance_ramp=False,
    temperature=1.0,
    top_k=0,
    top_p=0.0,
    logp_of='cond',
  )
  rollout = ConfigDict({'image': scales, 'bits': ROLLOUT.image.to_dict()})
  assert policy.segments(rollout, ('image',), C)[0].c.scales == C.scales
  with pytest.raises(ValueError, match="kind 'bits' needs 'scales' of the policy"):
    policy.segments(rollout, ('bits',), C.lm)
  with pytest.raises(ValueError, match='rollout.image: key'):
    policy.segments(ConfigDict({'image': scales | {'images': 2}}), ('image',), C)
