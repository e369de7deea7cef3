"""The pytrees that cross a border, and the alphabet that names their axes.

  B batch rows   P prompts   R rollouts of each prompt   L query positions   S key positions X
  layers (the scan axis)   D model width   N query heads   K key/value heads   G query heads per kv
  head   H head dim   F mlp width   V vocabulary or codebook   C latent channels   h w latent grid y
  x c pixels and colour   t denoising steps   e bits of a code   d a second model width r rank of an
  adapter

Upper case may be sharded, lower case never is. Multi-scale tokens are concatenated coarse to fine:
L = sum of h*w over the scales, each a pair (h, w) or the side of a square. A token is the index of
a code, int32 [.., L], or its e bits, int32 0 or 1 [.., L, e]. Rows come as P x R everywhere, R rows
sharing one prompt: supervised data has R = 1, a preference pair R = 2 (chosen, rejected), a GRPO
group R = its size."""

import dataclasses
import itertools
from typing import Any, Callable, NamedTuple

import flax
import jax


@flax.struct.dataclass
class State:
  """What training changes and a checkpoint holds. The step is the loop's, and the checkpoint's
  name.

  params: {'policy': weights, 'critic': weights if any}. opt: of the optimizer. ema: {'policy': the
  moving average of its trained weights, float32, None for the others}; None without one."""

  params: Any
  opt: Any
  ema: Any = None


@flax.struct.dataclass
class Rollout:
  """Sampled rows; [A] within one row, [P, R, A] outside, A the actions of all segments in order.

  data: {segment: what its kind says of it}, such as {'image': {'tokens': int32 [P, R, L]}}. logp:
  log-probability of each action under the policy of record at the sampling temperature, before
  truncation. sampler_logp: under the distribution it was drawn from. float32, nats. mask: float32,
  0 after the end of a row, where logp is 0 too; None where rows have no end of their own."""

  data: Any
  logp: jax.Array
  sampler_logp: jax.Array
  mask: Any = None


@flax.struct.dataclass
class Samples:
  """What a reward sees of B sampled rows: their pictures, what they said, and their prompts.

  image_Byxc: float32 in [-1, 1], or None where rows are text alone. texts: {name of a segment, such
  as 'text' or 'text_1': what each row said in it}, as token ids int32 t_BL, -1 after the end, which
  host rewards see as strings, or as B strings, which device rewards do not see. record: the record
  of each row's prompt, as {'label': int32 label_B}, or as B dicts {'prompt': str, 'label': int,
  ...} with all its metadata. Device rewards get the labels alone; host rewards get the dicts, in a
  rewards.host_samples.HostSamples, where the pictures are uint8."""

  image_Byxc: Any
  texts: Any
  record: Any


@flax.struct.dataclass
class Scores:
  """What a teacher-forced pass says of actions; each [P, R, A], float32, nats.

  logp: of the action. entropy: of its distribution. accuracy: 1 where it is the most likely one;
  of bits, the share that is. penalty: what takes the place of an exact KL(policy || reference),
  over the whole distribution. ref_logp: the reference's logp. Both None without a reference. Of a
  token of bits, all but accuracy is summed over the bits."""

  logp: jax.Array
  entropy: jax.Array
  accuracy: jax.Array
  penalty: Any = None
  ref_logp: Any = None


class Span(NamedTuple):
  """Where the actions of a segment lie among the A actions of a row.

  start, stop: Python ints. parts: names of what metrics and weights tell apart within it, such as
  its scales; () for one part. part_A: numpy int32, the part of each of its actions. choices: how
  many draws an action is made of: the bits of a token, else 1. given: nothing of it is sampled.
  picture: whether it is one; else it is a text.
  """

  name: str
  start: int
  stop: int
  parts: tuple
  part_A: Any
  choices: int = 1
  given: bool = False
  picture: bool = False


@flax.struct.dataclass
class Experience:
  """What an update learns from; every array leads with P, R or both, so that it can be cut in
  parts.

  prompt: a pytree that leads with P: class labels int32 [P], or a dictionary. data: {segment:
  pytree [P, R, ..]}, as in Rollout; of pictures also 'input_tokens', what the model is shown in
  their place, and 'drop_path' factors [P, R, X, 2]. old_logp [P, R, A]: log-probabilities of the
  policy that sampled; None means "the present one". ref_logp: those of the reference. advantage,
  row_mask [P, R]: a row without a verdict has mask 0. loss_mask [P, R, A]: 1 for the actions that
  the advantage is given to, else 0, or weights of supervised ones; kl_mask: the same of the KL;
  None means all. image [P, y, x, c] and scale_dropout [P, scales]: of tokenizers and classifiers.

  Data may be of the first few scales alone; A of all fields is then their number.
  """

  prompt: Any = None
  data: Any = None
  old_logp: Any = None
  ref_logp: Any = None
  advantage: Any = None
  row_mask: Any = None
  loss_mask: Any = None
  kl_mask: Any = None
  image: Any = None
  scale_dropout: Any = None


@dataclasses.dataclass(frozen=True)
class Policy:
  """The functions of what is trained, pure in their weights; built in training/assemble.py.

  `params` is {'policy': weights, 'critic': weights if any}; `frozen` {name: weights}. A policy
  without a rollout section (a tokenizer or classifier under training) has spans () and None for
  prompt to latents.
  """

  config: Any  # of the model
  init: Callable  # key -> boxed params
  spans: tuple  # of Span: what a row's A actions are
  mask: Callable | None  # data_PR -> float32 mask_PRA of the actions that rows took, None: all
  corrupt: Callable | None  # (data_PR, key_P) -> data_PR with what is random of targets, if any is
  features: dict  # of a batch, that prompts are made of: {name: (shape of a row, dtype) or None}
  prompt: Callable | None  # batch -> prompts, a pytree that leads with P
  unconditional: Callable | None  # prompts -> those of the unconditional policy
  keys: Callable | None  # (rng, P, R) -> (key_P of groups, keys_PR)
  generate: Callable | None  # (policy, frozen, prompt_P, key_P, keys_PR) -> Rollout
  branch: Callable | None  # (policy, frozen, prompt_P, keys_PG, split, copies) -> Rollout [P, G, K]
  with_plan: Callable | None  # (names, **{segment: {setting: value}}) -> another Policy
  # (tokens of a prompt) -> ValueError where they leave too little room
  check_prompt: Callable | None
  presets: dict  # {name: a generate of published settings}
  score: Callable | None  # (policy, frozen, prompt_P, data_PR, reference=None) -> Scores
  # (data, n leading axes) -> what all pictures are decoded from, on one axis B; or None
  latents: Callable | None
  texts: tuple  # names of the segments that are text
  reference: Callable  # (params, frozen) -> the weights that the KL is against, or None


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """The functions of an image tokenizer; None for what it does not have.

  decode takes what a decoder may need besides tokens: `prompts`, a pytree that leads with B, and
  `keys_B` for its noise."""

  encode: Callable | None  # (frozen, image_Byxc) -> t_BL
  encode_with_flips: Callable | None  # (frozen, image_Byxc, flips_BLe) -> (t_BLe, what is shown)
  decode: Callable | None  # (frozen, t_BL, prompts, keys_B) -> image_Byxc in [-1, 1]
  reconstruct: Callable | None  # (tokenizer, image_Byxc, scale_dropout) -> (image, loss_B, t_BL)
  scale_dropout: Callable | None  # (rng, B) -> scale_dropout of a batch, or None


@dataclasses.dataclass(frozen=True)
class Rewards:
  """The rewards of a run, see vargrl/rewards/mix.py.

  score: (frozen, Samples, group_size) -> (r_B with NaN, {name: r_B}, counts). device: those on the
  device, jitted: (frozen, Samples) -> {name: r_B}, or None. weights: mesh -> frozen['rewards'], or
  None if no reward has any. mask: (image_Byxc, label_B) -> mask_Byx bool, the pixels that the
  reward is about, or None. captions: labels of rows -> what their prompts say. close: ends worker
  processes."""

  score: Callable
  device: Callable | None
  weights: Callable | None
  mask: Callable | None
  captions: Callable
  close: Callable


@dataclasses.dataclass(frozen=True)
class Judges:
  """Networks that look at images; None for those that the config does not have."""

  classify: Callable | None  # (classifier, image_Byxc) -> logits_BV
  critic: Callable | None  # (critic, image_Byxc) -> logits, higher is more real
  perceptual: Callable | None  # (frozen, image_Byxc, image_Byxc) -> distance_B


class RowShape(NamedTuple):
  """What a forward pass over one row computes, for FLOPs. length: places of a language model's
  sequence that are no shared prompt, pictures' included. text: tokens that it predicts. pictures:
  that are drawn, picture_tokens each of which the first `skip` are known. context: tokens before a
  picture that its decoder attends to. patches: of pictures that are read."""

  length: int
  text: int
  pictures: int
  picture_tokens: int
  skip: int
  context: int
  patches: int


class Pass(NamedTuple):
  """A forward pass of a program. weights: 'policy' or 'reference'. rows: per prompt. actions: the
  first so many of a row, None: all. skip: so many of these were computed before. sampled: what is
  drawn (of a guidance pair, both). learned: with its backward pass."""

  weights: str
  rows: int
  actions: int | None = None
  skip: int = 0
  sampled: bool = False
  learned: bool = False


class Collection(NamedTuple):
  """What a step has collected. images: None, or a call -> {name: (images [n, y, x, 3],
  captions)}.
  """

  experience: Experience
  metrics: dict
  images: Callable | None = None


class Collect(NamedTuple):
  """An objective's half of a step: run(stage, params, frozen, batch, rng) -> Collection.

  It does its work through `stage` (training/stage.py), which really runs it, or, without any
  device, lowers each program: stage.number is the step; stage.call(name, jitted, *args) gives the
  jitted function's result, arrays or what is known of them; stage.host(function, *like) gives what
  the host computes, or the abstract `like`; stage.phase(name, x) blocks on x, records the phase's
  time, and checks for preemption. variants: {name: a step number of that kind} and kind, step
  number -> name, for objectives whose steps differ."""

  run: Callable
  variants: dict
  kind: Callable = lambda step: ''


@dataclasses.dataclass(frozen=True)
class TorchLayout:
  """How the weights of a model are stored in a reference checkpoint (torch or safetensors).

  vargrl/checkpoint/torch_format.py reads and writes such checkpoints.

  Attributes:
    table: {our name: (their key, einops pattern theirs -> ours)} of all weights.
    constants: {their key: array} of buffers that are not learned. A file is checked against them
      when it is read; they are written when weights are exported.
    ignored: regular expressions; keys that match one in full do not belong to the model.
    nested_at: where in the file's dictionaries the state dict may be, such as 'trainer/model'. The
      file itself is always tried too.
    resized: keys whose first axis is cut to the model's size, or padded with zeros.
    last_row_of: {their key: number of rows} of arrays of which the model has the last row only. The
      other rows are written as zeros.
    config: what config.json of a checkpoint folder says about the model. It is compared when a
      folder that has one is read, and written when weights are exported.
  """

  table: dict
  constants: dict = dataclasses.field(default_factory=dict)
  ignored: tuple[str, ...] = ()
  nested_at: tuple[str, ...] = ()
  resized: tuple[str, ...] = ()
  last_row_of: dict = dataclasses.field(default_factory=dict)
  config: dict = dataclasses.field(default_factory=dict)


def sides(scale):
  """(h, w) of a scale, which is given so, or as the side of a square."""
  return (scale, scale) if isinstance(scale, int) else tuple(scale)


def sizes(scales):
  """How many tokens each scale has."""
  return [h * w for h, w in map(sides, scales)]


def offsets(scales):
  """Where each scale starts among the L tokens, and L itself: len(scales) + 1 Python ints."""
  return [0, *itertools.accumulate(sizes(scales))]


def bounds(scales):
  """(start, stop) of each scale among the L tokens."""
  return list(itertools.pairwise(offsets(scales)))


def leading(scales, length):
  """The first scales, those that have `length` tokens together."""
  ends = offsets(scales)[1:]
  if length not in ends:
    raise ValueError(
      f'tokens: {length} of the scales {tuple(scales)} found, whole scales expected: one of {ends}'
    )
  return tuple(scales[: ends.index(length) + 1])
