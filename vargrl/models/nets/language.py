"""The net of a policy that says text: a causal language model (qwen2) bound to its weights.

A prompt is {'tokens': int32 [S], padded at the end; 'length': so many count; 'position' [3, S] for
M-RoPE, None for 0, 1, 2 ..}. The hidden state of the place before a text predicts its first token:
`Context.last` while sampling, and what `forward` shifts by one place when it scores.
"""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp

from vargrl.models import qwen2
from vargrl.models.layers import cache as caches
from vargrl.parallel.rules import shard

PROMPT = ('tokens', 'length')  # features of a batch that a prompt is made of
PACKED = ('tokens', 'position', 'segment')  # those of a packed row
PACKED_KINDS = ('text',)  # its segments


@flax.struct.dataclass
class Context:
  """What a row has so far.

  cache: keys and values of all places. position: int32, of the next place. last_11D: the hidden
  state that predicts the next token. count: int32, tokens so far, padding excluded. memory: what a
  decoder of pictures attends to, a tuple of Memory; () where the policy draws nothing.
  prompt_shift: count - position after the prompt.
  """

  cache: Any
  position: Any
  last_11D: Any
  count: Any
  group_key: Any
  memory: tuple = ()
  prompt_shift: Any = 0


@flax.struct.dataclass
class Memory:
  """Hidden states of consecutive places. h_1SD; valid_1S: which of them exist; begins_1S: where the
  token lies that begins the next picture, which that picture's memory excludes, or None."""

  h_1SD: jax.Array
  valid_1S: jax.Array
  begins_1S: Any = None


def last_valid(valid_1S):
  """[1, S] bool: the last place that exists."""
  return valid_1S & (jnp.cumsum(valid_1S, 1) == valid_1S.sum(1, keepdims=True))


def last_hidden(h_1LD, valid_L):
  """[1, 1, D]: the hidden state of the last place that exists; of the first one if none does."""
  last = jnp.maximum(valid_L.sum() - 1, 0)
  return jax.lax.dynamic_slice_in_dim(h_1LD, last, 1, 1)


@flax.struct.dataclass
class PackedContext:
  """A row of several dialogues, a dictionary. position and group_key: as any Context has them."""

  row: dict
  position: Any
  group_key: Any = None


@dataclasses.dataclass(frozen=True)
class Net:
  """model: the linen module. params: its weights. tokenizer, vq_params: None."""

  model: Any
  tokenizer: Any
  params: Any
  vq_params: Any
  settings: Any = None

  CAST = ('w', 'lora_a', 'lora_b', 'tokens')
  remembers = False  # whether the hidden states of a text are needed after it

  def lm(self, method, *args):
    return self.model.apply({'params': self.params}, *args, method=method)

  def embed_prompt(self, prompt):
    """x_1SD."""
    return self.lm('embed', shard(prompt['tokens'], 'L')[None])

  def prefill(self, prompt, group_key=None):
    """The Context after a prompt; a packed row is its own context."""
    if 'segment' in prompt:
      return PackedContext(prompt, jnp.int32(0), group_key)
    return self.read(prompt, shard(self.embed_prompt(prompt), 'BLD'), group_key)[0]

  def read(self, prompt, x_1SD, group_key=None):
    """(the Context after embeddings x_1SD of a prompt, their hidden states h_1SD)."""
    position_3S = prompt.get('position')
    length, S = prompt['length'], len(prompt['tokens'])
    valid_S = jnp.arange(S) < length
    position_S = jnp.arange(S) if position_3S is None else position_3S.max(0)
    position = None if position_3S is None else position_3S[:, None]
    h_1SD, cache = self.lm('prefill', x_1SD, position, valid_S[None])
    last_11D = jax.lax.dynamic_slice_in_dim(h_1SD, length - 1, 1, 1)
    after = jnp.where(valid_S, position_S, -1).max() + 1
    return Context(cache, after, last_11D, length, group_key, prompt_shift=length - after), h_1SD

  # What kinds/text.py calls.

  def allocate(self, context, length):
    """The cache with room for `length` tokens."""
    return caches.allocate(context.cache, length)

  def next_token(self, t_1, position, cache):
    """(h_11D of one more token t_1 at `position`, the cache with it)."""
    x_11D = self.lm('embed', t_1[None])
    return self.lm('extend', x_11D, position[None, None], cache)

  def text_logits(self, h_1LD):
    """float32 logits_LV of the tokens that h_1LD predict."""
    return self.lm('logits', h_1LD)[0]

  def end_text(self, context, cache, last_11D, valid_L, hidden_1LD):
    """The context after a text of which the tokens valid_L exist. hidden_1LD: None unless the net
    remembers."""
    count = valid_L.sum().astype(jnp.int32)
    memory = context.memory
    if hidden_1LD is not None:
      memory = (*memory, Memory(hidden_1LD, valid_L[None], last_valid(valid_L[None])))
    return context.replace(
      cache=caches.freeze(cache, valid_L[None]),
      last_11D=last_11D,
      position=context.position + count,
      count=context.count + count,
      memory=memory,
    )

  def read_text(self, context, tokens_L, valid_L):
    """The context after a text that is given: tokens_L of which valid_L exist, padding last."""
    place_L = jnp.cumsum(valid_L) - valid_L
    x_1LD = self.lm('embed', tokens_L[None])
    position_1L = (context.position + place_L)[None]
    h_1LD, cache = self.lm('prefill', x_1LD, position_1L, valid_L[None], context.cache)
    hidden = h_1LD if self.remembers else None
    return self.end_text(context, cache, last_hidden(h_1LD, valid_L), valid_L, hidden)

  def forward(self, context, blocks):
    """One h per block of expert 'text', shifted: h_1LD[:, i] predicts the block's token i."""
    if isinstance(context, PackedContext):
      return self.forward_packed(context.row, blocks)
    h_1SD = self.hidden(context, blocks, [self.lm('embed', b.x[None]) for b in blocks])
    out, at, before = [], 0, context.last_11D
    for b in blocks:
      L = len(b.x)
      h_1LD, at = h_1SD[:, at : at + L], at + L
      out.append(jnp.concatenate([before, h_1LD], 1))
      before = last_hidden(h_1LD, b.valid_L) if L else before
    return out

  def forward_packed(self, row, blocks):
    """The same of a packed row, whose one block is all of its text. A token is predicted from what
    is before it in its own sequence; the first of each has scores that mean nothing."""
    x_1SD = self.lm('embed', row['tokens'][None])
    position = row['position'] if row['position'].ndim == 1 else row['position'][:, None]
    position = position[None] if position.ndim == 1 else position
    h_1SD = self.lm('forward', x_1SD, position, row['segment'][None])
    return [jnp.roll(h_1SD, 1, 1)]

  def hidden(self, context, blocks, x):
    """h_1SD of embeddings x, a list of x_1LD, one after the other in one causal pass: real sizes
    want few large products. Places that do not exist are seen by no other."""
    if not sum(part.shape[1] for part in x):
      return jnp.zeros_like(context.last_11D)[:, :0]
    position_S = jnp.concatenate([b.position_L for b in blocks])
    valid_S = jnp.concatenate([b.valid_L for b in blocks])
    x_1SD = jnp.concatenate(x, 1)
    segment_1S = valid_S.astype(jnp.int32)[None]
    return self.lm('forward', x_1SD, position_S[None], segment_1S, context.cache)

  @staticmethod
  def gather_head(model, params):
    """params whose head and table are gathered over the mesh once, for several calls."""
    return qwen2.gather_head(model.c, params)
