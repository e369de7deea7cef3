"""The net of a policy that draws one picture scale by scale and nothing else: VAR, Infinity.

Its prompt is a class (int32 scalar) or text features; what rows share is the prompt itself, and all
that it alone decides is computed once for them, as vmap leaves it unbatched.
"""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp

from vargrl.models.layers import cache as caches
from vargrl.models.layers.einsum import gathered_once
from vargrl.parallel.rules import shard


@flax.struct.dataclass
class Context:
  """prompt: a pytree without a batch axis. position: int32, always 0."""

  prompt: Any
  position: Any
  group_key: Any


@flax.struct.dataclass
class ImageState:
  """A picture under way. logits_BLV: of the scale at hand, float32; B is 1, or 2 for the guidance
  pair (conditional, unconditional). cache: of the scales before it."""

  logits_BLV: Any
  cache: Any


@dataclasses.dataclass(frozen=True)
class Net:
  """model: the linen module. params, vq_params: weights of model and tokenizer."""

  model: Any
  tokenizer: Any
  params: Any
  vq_params: Any
  settings: Any = None

  one_segment = True  # a row is one picture
  CAST = ()  # weights that are cast once per rollout, whatever the mesh

  def call(self, method, *args, params=None):
    return self.model.apply(
      {'params': self.params if params is None else params}, *args, method=method
    )

  def tokenize(self, method, *args):
    """A method of the tokenizer, with its weights."""
    return self.tokenizer.apply({'params': self.vq_params}, *args, method=method)

  def prefill(self, prompt, group_key=None):
    return Context(jax.tree.map(lambda x: shard(x, ''), prompt), jnp.int32(0), group_key)

  def prompts(self, context, guided):
    """prompt_B: the prompt alone, or the guidance pair (prompt, unconditional)."""
    if not guided:
      return jax.tree.map(lambda x: x[None], context.prompt)
    other = self.model.unconditional(context.prompt)
    return jax.tree.map(lambda *pair: jnp.stack(pair), context.prompt, other)

  # What kinds/scales.py and bits.py call.

  def start_image(self, context, guided):
    """The ImageState before the first scale, whose logits only the prompt decides."""
    logits_BLV, cache = self.call('prefill', self.prompts(context, guided))
    return ImageState(logits_BLV, cache)

  def next_scale(self, state, inputs_1LC, i):
    """The ImageState before scale number i > 0, from the tokenizer's inputs of it."""
    inputs_BLC = inputs_1LC.repeat(len(state.logits_BLV), 0)
    return ImageState(*self.call('extend', inputs_BLC, state.cache, i))

  def fork(self, state):
    """The state for several continuations, which share all that it has."""
    return state.replace(cache=caches.freeze(state.cache))

  def end_image(self, context, state, alive, length):
    """The context after a picture; a policy of one segment goes nowhere from there."""
    return context

  def forward(self, context, blocks):
    """[y_BLD] of one block of expert 'image', normalised for the head; B as the block's options
    say: 'guided' (both rows of the pair) and 'detached' (the second without a gradient)."""
    (block,) = blocks
    guided, detached = block.options['guided'], block.options['detached']
    n = 2 if guided else 1
    drop_path = block.options.get('drop_path')
    drop_path = None if drop_path is None else drop_path[None].repeat(n, 0)
    x = block.x.repeat(n, 0)
    hidden = self.call('forward', self.prompts(context, guided), x, drop_path, int(detached))
    return [self.call('before_head', *hidden)]

  def image_logits(self, y_BLD, n_detached):
    """float32 logits; the last `n_detached` of the B rows give the head no gradient."""
    if not n_detached:
      return self.call('head_logits', y_BLD)
    n = len(y_BLD) - n_detached
    frozen = jax.lax.stop_gradient(self.params)
    rest = self.call('head_logits', y_BLD[n:], params=frozen)
    return jnp.concatenate([self.call('head_logits', y_BLD[:n]), rest])

  @staticmethod
  def gather_head(model, params):
    """params whose head is gathered over the mesh once, for several calls."""
    head = params['head']
    w = gathered_once(head['w'], 'DV', model.c.dtype)
    return params | {'head': head | {'w': w}}

  def tokens_embedded(self, tokens):
    """The tokenizer's inputs [B, L - 1, C] for tokens [B, L, ..] of pictures, without a
    gradient.
    """
    return jax.lax.stop_gradient(self.tokenize('embed', tokens))
