"""Plans of every kind with a net to follow them: those of the library on its own small models, and
the toys of toy_kinds/ alone and between texts."""

import dataclasses
from functools import partial
from typing import Any, Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import random_models
import small_unified
from toy_kinds import codes, flow, masked, words
import toy_model

from vargrl.models import infinity, qwen2, var
from vargrl.models.nets import language, next_scale
from vargrl.rollout import generate, score
from vargrl.rollout.kinds import bits, scales, text
from vargrl.rollout.plan import Segment
from vargrl.tokenizers import bsq, vq
from vargrl.training import policy as policies

P, R = 2, 8


@dataclasses.dataclass(frozen=True)
class Case:
  """bind: weights -> net. params: weights that sample. prompt_P: leads with P."""

  bind: Callable
  params: Any
  prompt_P: Any
  plan: tuple

  def sample(self, params, prompt_P, key_P, keys_PR):
    return generate.generate(self.bind(params), self.plan, prompt_P, key_P, keys_PR)

  def scores(self, params, prompt_P, data_PR, reference=None, soft=()):
    nets = [self.bind(p) for p in (params, reference) if p is not None]
    return score.score(nets, self.plan, prompt_P, data_PR, soft)


# The library's kinds.


def var_scales(**changes):
  m = random_models.build(var.SIZES['smoke'], vq.SIZES['smoke'])
  settings = dict(guidance=2.0, guidance_ramp=True, temperature=0.9, top_k=0, top_p=0.9)
  c = scales.Config(**settings | dict(logp_of='cond', scales=m.c.scales) | changes)
  bind = lambda params: next_scale.Net(m.model, m.vae, params, m.vq_params)
  return Case(bind, m.params, jnp.array([3, 8]), (Segment('image', scales, c),))


def infinity_bits(**changes):
  m = random_models.build(infinity.SIZES['smoke'], bsq.SIZES['smoke'])
  settings = dict(guidance=3.0, temperature=0.7, top_p=0.9, logp_of='cond')
  c = bits.Config(**settings | dict(scales=m.c.scales, bits=m.c.bits) | changes)
  features = jax.random.normal(jax.random.key(8), (P, 8, m.c.text))
  prompt_P = {'text': features, 'length': jnp.array([8, 3])}
  bind = lambda params: next_scale.Net(m.model, m.vae, params, m.vq_params)
  return Case(bind, m.params, prompt_P, (Segment('image', bits, c),))


def qwen2_text():
  c = dataclasses.replace(qwen2.SIZES['smoke'], vocab=16)
  model = qwen2.Model(c)
  shapes = jax.eval_shape(lambda key: qwen2.init(model, key), jax.random.key(0))
  params = random_models.random_weights(nn.unbox(shapes), 0)
  prompt_P = {
    'tokens': jax.random.randint(jax.random.key(1), (P, 7), 0, 16),
    'length': jnp.array([7, 4]),
  }
  c = text.Config(10, temperature=0.9, top_k=0, top_p=0.9, stop=(2, 5))
  bind = lambda params: language.Net(model, None, params, None)
  return Case(bind, params, prompt_P, (Segment('text', text, c),))


def unified_dialogue():
  """Text, bits, text."""
  u = small_unified
  return Case(u.net, u.SMOKE.params, u.prompts(), u.plan(4, 3))


# The toys.

MODEL = toy_model.Model(toy_model.Config())
PARAMS = toy_model.init(MODEL, jax.random.key(0))
BEGIN, STOP = 2, 1
WORDS = words.Config(max_tokens=5, begin=BEGIN, stop=STOP, temperature=0.9)
CODES = codes.Config(length=10, guidance=1.5, uncond=(BEGIN,))
MASKED = masked.Config(length=10, steps=3, noise=1.0, estimator='trajectory')
FLOW = flow.Config(length=4, steps=6, window=(0, 5, 3), noise=0.8, ratio='norm')
LONG_FLOW = dataclasses.replace(FLOW, steps=12, window=(0, 11, 9))  # more than a chunk of 8 actions
PICTURES = {
  'codes': (codes, CODES),
  'masked': (masked, MASKED),
  'remask': (masked, dataclasses.replace(MASKED, estimator='remask')),
  'flow': (flow, LONG_FLOW),
  'gaussian': (flow, dataclasses.replace(LONG_FLOW, ratio='gaussian')),
}


def bind(params):
  return toy_model.Net(MODEL, None, params)


def word_segment(name, given=False, **changes):
  return Segment(name, words, dataclasses.replace(WORDS, **changes), given)


def toy_prompts(count=P, length=5):
  tokens_PS = jax.random.randint(jax.random.key(5), (count, length), 3, MODEL.c.words)
  question_PL = jnp.tile(jnp.array([[5, 6, STOP, 0, 0]]), (count, 1))
  return {
    'tokens': tokens_PS,
    'length': length - jnp.arange(count) % 2,
    'question': {'tokens': question_PL},
  }


def toy(*plan):
  return Case(bind, PARAMS, toy_prompts(), plan)


def picture(name):
  return Segment('image', *PICTURES[name])


def between_texts(name):
  return toy(word_segment('text'), picture(name), word_segment('answer'))


def make_policy(*plan):
  """The Policy record of a plan, from a config that names its kinds as modules of the user's."""
  sections = {s.name: dict(kind=s.kind.__name__, **dataclasses.asdict(s.c)) for s in plan}
  names = tuple(s.name + ':given' * s.given for s in plan)
  rollout = dict(plan=names, weights='gathered', **sections)
  config = ConfigDict(dict(rollout=rollout, data=dict(name='data.prompts')))
  options = dict(
    init=partial(toy_model.init, MODEL), reference=lambda params, frozen: frozen['old']
  )
  return policies.make(config, toy_model, MODEL, None, **options)[0]


CASES = {
  'scales': var_scales,
  'scales-guided': lambda: var_scales(logp_of='guided'),
  'bits': infinity_bits,
  'bits-guided': lambda: infinity_bits(logp_of='guided_stopgrad'),
  'text': qwen2_text,
  'unified': unified_dialogue,
  'words': lambda: toy(word_segment('text', max_tokens=10)),
  **{name: lambda name=name: toy(picture(name)) for name in PICTURES},
  **{f'text-{name}-text': lambda name=name: between_texts(name) for name in PICTURES},
  'codes-given-text': lambda: toy(
    picture('codes'), word_segment('question', given=True), word_segment('answer')
  ),
}
