"""What supervised objectives share: a batch made by one program, bit flips, drop path, prompts that
are dropped."""

import jax
import jax.numpy as jnp

from vargrl.io import numbers
from vargrl.types import Collect, Collection, sizes


def one_program(function, name='prepare'):
  """The Collect of a jitted function (params, frozen, batch, rng) -> Experience, called `name` in
  what is told of programs."""

  def run(stage, params, frozen, batch, rng):
    return Collection(stage.call(name, function, params, frozen, batch, rng), {})

  return Collect(run, {'': 0})


def has_images(policy):
  """Whether rows have a picture among their segments."""
  return any(span.picture for span in policy.spans)


def check_flips(tokenizer, *, flip, flip_scales):
  """Refuses bit flips that mean nothing, or that the tokenizer cannot make."""
  numbers.check_number('objective.collect.flip', flip, least=0, most=1)
  numbers.check_number('objective.collect.flip_scales', flip_scales, least=0)
  if flip and (tokenizer is None or tokenizer.encode_with_flips is None):
    raise ValueError(
      f'objective.collect.flip: {flip} with a tokenizer that is not of bits, expected 0.0'
    )


def bit_flips(key, B, scales, bits, *, flip, flip_scales):
  """int32 [B, L, e]: 1 for the bits to be flipped, for bitwise self-correction
  (https://arxiv.org/abs/2412.04431).

  A scale's bits are each flipped with a probability that is drawn for it, one of 0, 0.01 .. flip,
  of every image anew; the model is shown these, and predicts what the finer scales then have to
  correct. flip_scales: the first so many scales."""
  share_key, bit_key = jax.random.split(key)
  share_Bs = 0.01 * jax.random.randint(share_key, (B, len(scales)), 0, round(100 * flip) + 1)
  share_Bs *= (jnp.arange(len(scales)) < flip_scales)[None]
  share_BL = jnp.repeat(
    share_Bs, jnp.array(sizes(scales)), axis=1, total_repeat_length=sum(sizes(scales))
  )
  flips = jax.random.uniform(bit_key, (*share_BL.shape, bits)) < share_BL[..., None]
  return flips.astype(jnp.int32)


def encode(policy, tokenizer, frozen, image_Byxc, key, *, flip, flip_scales):
  """{'tokens', and 'input_tokens' with bit flips}, leading with B, of pictures."""
  if tokenizer.encode_with_flips is None:
    return {'tokens': tokenizer.encode(frozen, image_Byxc)}
  c = policy.config
  options = dict(flip=flip, flip_scales=flip_scales)
  flips_BLe = bit_flips(key, len(image_Byxc), c.scales, c.bits, **options)
  tokens, shown = tokenizer.encode_with_flips(frozen, image_Byxc, flips_BLe)
  return {'tokens': tokens, 'input_tokens': shown}


def sample_drop_path(key, drop_path, B, layers):
  """{'drop_path': factors [B, X, 2]} of stochastic depth, rising linearly from 0 at the first layer
  to `drop_path` at the last (https://arxiv.org/abs/1603.09382), both branches drawn apart; {} where
  nothing is dropped."""
  if not drop_path:
    return {}
  keep_1X1 = 1 - jnp.linspace(0, drop_path, layers)[None, :, None]
  return {'drop_path': (jax.random.uniform(key, (B, layers, 2)) < keep_1X1) / keep_1X1}


def target_rows(policy, data_PR, rng):
  """{'data', 'loss_mask'} of the Experience of supervised rows: what is random of their targets is
  drawn here, once for all rows of a prompt."""
  if policy.corrupt:
    P = len(jax.tree.leaves(data_PR)[0])
    data_PR = policy.corrupt(data_PR, jax.random.split(rng, P))
  return dict(data=data_PR, loss_mask=policy.mask and policy.mask(data_PR))


def drop_prompts(policy, key, prompt_P, share):
  """prompt_P of which about `share` are replaced by the unconditional one."""
  if not share:
    return prompt_P
  B = len(jax.tree.leaves(prompt_P)[0])
  dropped_B = jax.random.uniform(key, (B,)) < share
  either = lambda a, b: jnp.where(dropped_B.reshape(B, *[1] * (a.ndim - 1)), a, b)
  return jax.tree.map(either, policy.unconditional(prompt_P), prompt_P)
