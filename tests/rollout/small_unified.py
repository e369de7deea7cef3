"""A unified policy of few words, so that some of its rows draw pictures and some do not, its
prompts, and rows of the plan text, picture, text, picture, text.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import random_models

from vargrl.models import infinity, qwen2, unified, vit
from vargrl.models.nets import unified as nets
from vargrl.rollout import generate, score, vmaps
from vargrl.rollout.kinds import bits, text
from vargrl.rollout.plan import Segment
from vargrl.tokenizers import bsq

SCALES, START, END, PAD, STOP = (1, 2), 6, 7, 8, 2
CONFIG = unified.Config(
  qwen2.Config(2, 32, 4, 2, 48, 12, theta=1e4, sections=(2, 1, 1)),
  vit.Config(1, 32, 2, 32, patch=2, frames=1),
  dataclasses.replace(infinity.SIZES['smoke'], scales=SCALES),
  image_tokens=(START, END, PAD),
)
SMOKE = random_models.build(CONFIG, dataclasses.replace(bsq.SIZES['smoke-square'], scales=SCALES))
SETTINGS = nets.Settings(uncond_prompt=(1, 3, START), reference_impl=False)
SAID = text.Config(4, temperature=0.9, top_k=0, top_p=0.97, stop=(STOP,), next_token=START)
DRAWN = bits.Config(
  guidance=2.0, temperature=(0.8, 1.1), top_p=0.9, logp_of='cond', scales=SCALES, bits=4
)
LENGTH = 5  # tokens of a picture
SEED = 35  # with this one some rows draw one picture, some two, most none


def plan(*lengths, said=SAID, drawn=DRAWN):
  """So many tokens of text at most, a picture, so many tokens of text, and so on; 0: no text."""
  out = []
  for i, length in enumerate(lengths):
    if length:
      out.append(Segment(f'text_{i}', text, dataclasses.replace(said, max_tokens=length)))
    if i + 1 < len(lengths):
      out.append(Segment(f'image_{i}', bits, drawn))
  return tuple(out)


PLAN = plan(4, 3, 3)
TEXTS, IMAGES = ('text_0', 'text_1', 'text_2'), ('image_0', 'image_1')


def prompts(S=9, T=12):
  """Two of 7 and 4 words; the first shows a picture of 2 x 4 patches, two embeddings."""
  tokens, image_index = np.zeros((2, S), int), np.full((2, S), -1)
  tokens[0, :7], tokens[1, :4] = [1, 3, 5, 5, 4, 9, 1], [1, 10, 11, 1]
  image_index[0, 2:4] = [0, 1]
  position = np.zeros((2, 3, S), int)
  position[0, :, :7] = [[0, 1, 2, 2, 4, 5, 6], [0, 1, 2, 2, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]]
  position[1, :, :4] = np.arange(4)
  at, segment = np.zeros((2, 2, T), int), np.zeros((2, T), int)
  at[0, :, :8], segment[0, :8] = [[0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 0, 1, 2, 3, 2, 3]], 1
  found = dict(
    tokens=tokens,
    length=[7, 4],
    position=position,
    image_index=image_index,
    patch_position=at,
    patch_segment=segment,
  )
  return {k: jnp.asarray(x, jnp.int32) for k, x in found.items()} | {
    'patches': jax.random.normal(jax.random.key(3), (2, T, 12))
  }


def net(params=SMOKE.params, settings=SETTINGS, model=SMOKE.model):
  return nets.Net(model, SMOKE.vae, params, SMOKE.vq_params, settings)


def keys(P=2, R=6):
  """(key_P, keys_PR)."""
  rng = jax.random.key(SEED)
  return vmaps.group_keys(rng, P), vmaps.row_keys(rng, P, R)


def sample(plan=PLAN, prompt_P=None, keys_PR=None, params=SMOKE.params, settings=SETTINGS):
  """The Rollout of a plan, in a program of its own."""
  prompt_P = prompts() if prompt_P is None else prompt_P
  keys_PR = keys()[1] if keys_PR is None else keys_PR

  def run(params, prompt_P, keys_PR):
    return generate.generate(net(params, settings), plan, prompt_P, keys_PR[:, 0], keys_PR)

  return jax.jit(run)(params, prompt_P, keys_PR)


def scores(params, prompt_P, data_PR, reference=None, plan=PLAN, model=SMOKE.model):
  """Scores of rows."""
  nets = [net(p, model=model) for p in (params, reference) if p is not None]
  return score.score(nets, plan, prompt_P, data_PR)[0]


def packed_plan(S, I):
  """Of rows of S places with I pictures, at the temperatures of PLAN."""
  said = dataclasses.replace(SAID, max_tokens=S)
  drawn = dataclasses.replace(DRAWN, guidance=1.0, images=I)
  return Segment('text', text, said), Segment('image', bits, drawn)


def packed_data(row_P, t_PILe):
  """The data [P, 1, ..] of packed rows, whose pictures are t_PILe."""
  P, e = len(t_PILe), t_PILe.shape[-1]
  pictures = jnp.asarray(t_PILe).reshape(P, 1, -1, e)
  return {'text': {'tokens': row_P['tokens'][:, None]}, 'image': {'tokens': pictures}}


def wide():
  """The same with text features as wide as the decoder, as the released unconditional branch
  needs."""
  decoder = dataclasses.replace(CONFIG.image_decoder, text=CONFIG.image_decoder.width)
  return random_models.build(dataclasses.replace(CONFIG, image_decoder=decoder), SMOKE.vae.c)
