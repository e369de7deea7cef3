"""The net of a policy that reads and says text and draws pictures in between: models/unified.py.

Rows are dense (one dialogue: a prompt, then texts and pictures that are sampled) or packed (several
dialogues in one row, all of them given, see vargrl/data/dialogue/pack.py). A prompt is a
dictionary: 'tokens', 'length', 'position', 'image_index' and 'patches', 'patch_position',
'patch_segment' of the pictures that it shows; a packed row is one that has 'image_start'."""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp

from vargrl.models import infinity, qwen2
from vargrl.models.layers import cache as caches
from vargrl.models.nets import language
from vargrl.models.nets.language import Memory, PackedContext, last_hidden, last_valid
from vargrl.parallel.rules import shard

PROMPT = (
  'tokens',
  'length',
  'position',
  'image_index',
  'patches',
  'patch_position',
  'patch_segment',
)
PACKED = (
  'tokens',
  'position',
  'segment',
  'image_index',
  'patches',
  'patch_position',
  'patch_segment',
  'image_start',
  'context',
)
PACKED_KINDS = ('text', 'bits')


@dataclasses.dataclass(frozen=True)
class Settings:
  """What rollouts of this policy need beside the settings of their segments.

  uncond_prompt: token ids of the empty prompt up to begin-of-image, the unconditional branch of
  guidance. reference_impl: positions of drawn pictures and the unconditional branch as in the
  released code, whose language model then sees nothing but the scale at hand.
  """

  uncond_prompt: tuple[int, ...]
  reference_impl: bool

  def check(self, c, plan, length):
    """ValueError where they do not fit the model's Config `c`, the plan, or prompts of `length`
    tokens (None: not known yet)."""
    self.check_tokens(c, plan)
    check_order(plan)
    guided = any(getattr(s.c, 'guided', False) for s in plan)
    if guided and not (self.uncond_prompt or self.reference_impl):
      raise ValueError(
        'rollout: guidance without rollout.uncond_prompt, the tokens of a prompt that asks for '
        'nothing'
      )
    if guided and self.reference_impl:
      check_reference(c.image_decoder, plan, length)

  def check_tokens(self, c, plan):
    """ValueError for token ids that are none of the model's, or mean something else to it."""
    begin, end, pad = c.image_tokens
    ids = {'uncond_prompt': self.uncond_prompt}
    ids |= {f'{s.name}.stop': s.c.stop for s in plan if hasattr(s.c, 'stop')}
    for name, tokens in ids.items():
      if bad := [t for t in tokens if not 0 <= t < c.text.vocab]:
        raise ValueError(f'rollout.{name}: token {bad[0]}, expected 0 .. {c.text.vocab - 1}')
      if name != 'uncond_prompt' and {begin, end, pad} & {*tokens}:
        raise ValueError(
          f'rollout.{name}: {tokens}, expected others than the tokens of a picture {c.image_tokens}'
        )
    if self.uncond_prompt and self.uncond_prompt[-1] != begin:
      raise ValueError(
        f'rollout.uncond_prompt: ends with token {self.uncond_prompt[-1]}, expected {begin}, where '
        'a picture begins'
      )


def check_order(plan):
  """ValueError for segments that this net cannot sample or score one after the other."""
  for before, segment in zip(plan, plan[1:]):
    if not (before.kind.TEXT or segment.kind.TEXT):
      raise ValueError(
        f'rollout.plan: picture {segment.name!r} after picture {before.name!r}, expected a text in '
        'between, which ends where a picture begins'
      )
  for segment in plan:
    if getattr(segment.c, 'logp_guided', False):
      raise ValueError(
        f"rollout.{segment.name}.logp_of: {segment.c.logp_of!r}, expected 'cond', of a policy of "
        'text and pictures'
      )


def check_reference(decoder, plan, length):
  """ValueError where the released unconditional branch cannot be: its learned features, which stand
  for no text, take the place of all hidden states before a picture."""
  if decoder.text != decoder.width:
    raise ValueError(
      f'rollout.reference_impl: text features of {decoder.text} numbers for a decoder of width '
      f'{decoder.width}, expected as many'
    )
  if length is None:
    return
  images = [i for i, s in enumerate(plan) if hasattr(s.c, 'guided')]
  before = plan[: images[-1]]
  places = length + len(images) - 1 + sum(s.c.max_tokens for s in before if hasattr(s.c, 'stop'))
  if places > decoder.text_length:
    raise ValueError(
      f'rollout: {places} tokens of a prompt (data.length) and of text before a picture, expected '
      f'at most {decoder.text_length} by the released unconditional branch'
    )


@flax.struct.dataclass
class Branch:
  """What a picture is drawn from: the language model's cache (None: it has none, as the released
  unconditional branch) and the position of the next place; the decoder's condition, its memory
  with masks, and its own cache once there is one."""

  cache: Any
  position: Any
  cond_BD: jax.Array
  memory: tuple
  masks: tuple
  decoder_cache: Any = None


@flax.struct.dataclass
class ImageState:
  """A picture under way. logits_BLV: of the scale at hand, B is 1, or 2 with the unconditional
  branch. branches: the conditional Branch, then the unconditional one."""

  logits_BLV: jax.Array
  branches: tuple


@dataclasses.dataclass(frozen=True)
class Net(language.Net):
  """model: unified.Model. settings: Settings."""

  remembers = True

  @property
  def image_end_token(self):
    """The id of the token that follows a picture."""
    return self.model.c.image_tokens[1]

  def call(self, method, *args):
    return self.model.apply({'params': self.params}, *args, method=method)

  def lm(self, method, *args):
    part = qwen2.Model(self.model.c.lm)
    return part.apply({'params': self.params['lm']}, *args, method=method)

  def drawer(self, method, *args):
    part = infinity.Model(self.model.c.decoder)
    return part.apply({'params': self.params['drawer']}, *args, method=method)

  def tokenize(self, method, *args):
    return self.tokenizer.apply({'params': self.vq_params}, *args, method=method)

  def tokens_embedded(self, tokens):
    """The tokenizer's inputs [B, L - 1, C] for tokens [B, L, ..] of pictures, without a
    gradient.
    """
    return jax.lax.stop_gradient(self.tokenize('embed', tokens))

  @staticmethod
  def gather_head(model, params):
    return params | {'lm': qwen2.gather_head(model.c.lm, params['lm'])}

  def embed_prompt(self, prompt):
    return self.call('embed_prompt', jax.tree.map(lambda x: x[None], prompt))

  def prefill(self, prompt, group_key=None):
    """The Context after a prompt; a packed row is its own context."""
    if 'segment' in prompt:
      return PackedContext(prompt, jnp.int32(0), group_key)
    x_1SD = shard(self.embed_prompt(prompt), 'BLD')
    context, h_1SD = self.read(prompt, x_1SD, group_key)
    valid_1S = (jnp.arange(h_1SD.shape[1]) < prompt['length'])[None]
    return context.replace(memory=(Memory(h_1SD, valid_1S, last_valid(valid_1S)),))

  # What kinds/scales.py and bits.py call.

  def decoder_memory(self, memory):
    """(parts, masks) of what the decoder attends to: all but the token that begins its picture,
    which lies in the last part."""
    masks = [m.valid_1S for m in memory]
    if memory[-1].begins_1S is not None:
      masks[-1] &= ~memory[-1].begins_1S
    return tuple(self.call('to_decoder', m.h_1SD) for m in memory), tuple(masks)

  def start_image(self, context, guided):
    """The ImageState before the first scale."""
    position = context.count if self.settings.reference_impl else context.position
    cond_BD = self.call('condition', jnp.zeros(1, bool))
    memory, masks = self.decoder_memory(context.memory)
    branches = [Branch(context.cache, position, cond_BD, memory, masks)]
    if guided:
      branches.append(self.unconditional(masks))
    x = [self.call('image_start', branch.cond_BD) for branch in branches]
    return self.advance(branches, x, 0)

  def unconditional(self, masks):
    """The Branch that guidance leads away from. masks: of the conditional one's memory. Of no row
    and no prompt: vmap leaves it unbatched, so it is computed once for all."""
    if not self.settings.reference_impl:
      ids = jnp.array(self.settings.uncond_prompt, jnp.int32)
      prompt = {'tokens': ids, 'length': jnp.int32(len(ids))}
      context, h_1SD = self.read(prompt, self.embed_prompt(prompt))
      valid_1S = jnp.ones((1, len(ids)), bool)
      memory, masks = self.decoder_memory((Memory(h_1SD, valid_1S, last_valid(valid_1S)),))
      cond_BD = self.call('condition', jnp.zeros(1, bool))
      return Branch(context.cache, context.position, cond_BD, memory, masks)
    room, count = sum(mask.shape[1] for mask in masks), sum(mask.sum() for mask in masks)
    memory = (self.drawer('null_text', room),)
    masks = ((jnp.arange(room) < count)[None],)
    cond_BD = self.call('condition', jnp.ones(1, bool))
    return Branch(None, jnp.int32(0), cond_BD, memory, masks)

  def advance(self, branches, x, i):
    """The ImageState whose scale i has places x, one x_1LD for each branch."""
    logits, branches = zip(*(self.scale(branch, x_1LD, i) for branch, x_1LD in zip(branches, x)))
    return ImageState(jnp.concatenate(logits), tuple(branches))

  def scale(self, branch, x_1LD, i):
    """(logits_1Le2 of scale i, whose places hold x_1LD, the Branch after it)."""
    position_1L = (branch.position + jnp.arange(x_1LD.shape[1]))[None]
    if branch.cache is None:  # and begins anew at each scale
      h_1LD, position, cache = self.lm('forward', x_1LD, position_1L), branch.position, None
    else:
      h_1LD, cache = self.lm('extend', x_1LD, position_1L, branch.cache)
      position = branch.position + x_1LD.shape[1]
    z_1LD = self.call('to_decoder', h_1LD)
    if i:
      logits, decoder_cache = self.drawer('next_scale', z_1LD, branch.decoder_cache, i)
    else:
      logits, decoder_cache = self.drawer(
        'first_scale', z_1LD, branch.cond_BD, branch.memory, branch.masks
      )
    return logits, branch.replace(cache=cache, position=position, decoder_cache=decoder_cache)

  def next_scale(self, state, inputs_1LC, i):
    """The ImageState before scale number i > 0, from the tokenizer's inputs of it."""
    x_1LD = self.call('image_inputs', inputs_1LC)
    return self.advance(state.branches, [x_1LD] * len(state.branches), i)

  def fork(self, state):
    """The state for several continuations, which share all that it has."""
    freeze = lambda cache: None if cache is None else caches.freeze(cache)
    branches = [
      b.replace(cache=freeze(b.cache), decoder_cache=freeze(b.decoder_cache))
      for b in state.branches
    ]
    return state.replace(branches=tuple(branches))

  def end_image(self, context, state, alive, length):
    """The context after a picture of `length` places and the token that ends it."""
    branch = state.branches[0]
    x_11D = self.lm('embed', jnp.array([[self.image_end_token]]))
    last_11D, cache = self.lm('extend', x_11D, branch.position[None, None], branch.cache)
    memory = (*context.memory, Memory(last_11D, jnp.asarray(alive)[None, None]))
    return context.replace(
      cache=caches.freeze(cache),
      last_11D=last_11D,
      position=branch.position + 1,
      count=context.count + length + 1,
      memory=memory,
    )

  def image_logits(self, y_BLD, n_detached):
    """float32 logits [B, L, e, 2]."""
    assert not n_detached
    return self.drawer('head_logits', y_BLD)

  # Teacher forcing.

  def forward(self, context, blocks):
    """One hidden state per block. Of expert 'text': h_1LD, shifted, as language.Net.forward. Of
    'image': y_1LD, what the head of bits reads."""
    if isinstance(context, PackedContext):
      return self.forward_packed(context.row, blocks)
    cond_BD = self.call('condition', jnp.zeros(1, bool))
    x, places, shift = [], [], 0
    for b in blocks:
      if b.expert == 'image':
        x += [self.call('image_start', cond_BD), self.call('image_inputs', b.x)]
        # The released code counts padding in: all places from its first picture on are later.
        shift = context.prompt_shift if self.settings.reference_impl else 0
      else:
        x.append(self.lm('embed', b.x[None]))
      places.append(b.replace(position_L=b.position_L + shift))
    h_1SD = self.hidden(context, places, x)
    out, at, before, memory = [], 0, context.last_11D, context.memory
    for b in blocks:
      L = len(b.position_L)
      h_1LD, valid_1L, at = h_1SD[:, at : at + L], b.valid_L[None], at + L
      if b.expert == 'image':
        out.append(self.decode(b, h_1LD, cond_BD, memory))
        continue
      text = b.expert == 'text'
      out.append(jnp.concatenate([before, h_1LD], 1) if text else h_1LD)
      memory = (*memory, Memory(h_1LD, valid_1L, last_valid(valid_1L) if text else None))
      before = last_hidden(h_1LD, b.valid_L) if L else before
    return out

  def decode(self, block, h_1LD, cond_BD, memory):
    """y_1LD of a picture's places h_1LD, by the decoder that attends to `memory`."""
    z_1LD, (parts, masks) = self.call('to_decoder', h_1LD), self.decoder_memory(memory)
    drop_path = block.options.get('drop_path')
    drop_path = None if drop_path is None else drop_path[None]
    return self.drawer(
      'before_head', *self.drawer('decode', z_1LD, cond_BD, parts, masks, drop_path)
    )

  def forward_packed(self, row, blocks):
    """The same of a packed row: one block of text, all of its tokens, and maybe one of images, all
    of its pictures, whose y is [1, I L, D]."""
    row = jax.tree.map(lambda x: x[None], row)
    text, image = blocks if len(blocks) > 1 else (*blocks, None)
    dropped, drop_path, inputs_1ILC = None, None, jnp.zeros((1, 0, 0, self.model.c.bits))
    if image is not None:
      inputs_1ILC = image.x[None]
      dropped = image.options.get('drop_condition')
      dropped = None if dropped is None else dropped[None]
      drop_path = image.options.get('drop_path')
    h_1SD = self.call('forward', row, inputs_1ILC, dropped)
    out = [jnp.roll(h_1SD, 1, 1)]
    if image is not None:
      hidden = self.call('decode', row, h_1SD, dropped, drop_path)
      y_ILD = self.drawer('before_head', *hidden)
      out.append(y_ILD.reshape(1, -1, y_ILD.shape[-1]))
    return out
