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
import difflib
import importlib
import itertools
import pathlib
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
  """Sampled tokens; [L] inside the rollout, [P, R, L] outside.

  tokens: int32, bits have one axis more; a dictionary of both where words and pictures take turns.
  logp: log-probability of each token under the policy of record at the sampling temperature, before
  truncation. sampler: under the distribution it was drawn from. float32, nats. mask: float32, 0
  after the end of a row, where all else is 0 too; None where rows have no end of their own."""

  tokens: jax.Array
  logp: jax.Array
  sampler: jax.Array
  mask: Any = None


@flax.struct.dataclass
class Samples:
  """What a reward sees of B sampled rows: their pictures, what they said, and their prompts.

  image_Byxc: float32 in [-1, 1], or None where rows are text alone. texts: {name of a segment, such
  as 'text' or 'text_1': what each row said in it}, as B strings, which reach host rewards alone, or
  as token ids int32 t_BL, which reach device rewards alone. record: the record of each row's
  prompt, as {'label': int32 label_B}, or as B dicts {'prompt': str, 'label': int, ...} with all
  its metadata. Device rewards get the labels alone; host rewards get the dicts, in a
  rewards.host_samples.HostSamples, where the pictures are uint8."""

  image_Byxc: Any
  texts: Any
  record: Any


@flax.struct.dataclass
class Prompt:
  """What rows of text begin with; [...] of one prompt, [P, ...] outside.

  tokens: int32 [S], padded at the end to a length that all prompts have. length: of them are true,
  int32, at least 1. position: int32 [3, S] by time, row and column; None: 0, 1, 2 .... place: int32
  [S], the row of `image` [T, D] that stands for a token, -1 where it is the token itself; both None
  if there are no images."""

  tokens: jax.Array
  length: jax.Array
  position: Any = None
  place: Any = None
  image: Any = None


@flax.struct.dataclass
class Scores:
  """What a teacher-forced pass says of given tokens; each [P, R, L], float32, nats.

  logp: of the token. entropy: of the distribution. kl: KL(policy || reference), exact over the
  vocabulary. reference: the reference's log-probability of the token. Both None without a
  reference. hit: 1 where the token is the most likely one; of bits, the share that is. What is said
  of a token of bits is summed over them, but for `hit`."""

  logp: jax.Array
  entropy: jax.Array
  hit: jax.Array
  kl: Any = None
  reference: Any = None


@flax.struct.dataclass
class Experience:
  """What an update learns from; every array leads with P, R or both, so that it can be cut in
  parts.

  label [P] int32, or whatever else a prompt is, a pytree that leads with P. tokens [P, R, L], of
  bits [P, R, L, e], or a dictionary of both; shown: what the model is shown in the place of these,
  or of the bits, None: the tokens themselves. old: log-probabilities [P, R, L] of the policy that
  sampled; None means "the present one". reference: those of the reference. advantage, weight [P,
  R]: a row without a verdict has weight 0. mask [P, R, L]: 1 for the tokens that the advantage is
  given to, 0 for the others; held [P, R, L]: the same of the KL; None means all. keep: drop-path
  factors [P, R, X, 2], or those of a tokenizer's scales [P, scales]. image [P, y, x, c].

  tokens may be those of the first few scales alone; L of all fields is then their number.
  """

  label: Any = None
  tokens: Any = None
  old: Any = None
  reference: Any = None
  advantage: Any = None
  weight: Any = None
  mask: Any = None
  keep: Any = None
  image: Any = None
  held: Any = None
  shown: Any = None


@dataclasses.dataclass(frozen=True)
class Models:
  """The functions of a run, pure in their weights; an objective uses what it needs. See build.py.

  `params` is {'policy': weights, 'critic': weights if any}; `frozen` {name: weights}.
  """

  init: Callable  # key -> boxed params
  config: Any  # the policy's
  scales: tuple = ()
  classes: int = 0
  # A prompt is made of these features of a batch, {name: (shape of a row, dtype)}; of its label
  # where there are none.
  given: dict = dataclasses.field(default_factory=dict)
  asks: tuple = ()  # the same where only the data knows their shapes
  texts: Callable = (
    None  # labels of a batch -> what its prompts say, for rewards and captions; None: classes
  )
  prompt: Callable = lambda batch: batch['label']  # a batch's prompts, a pytree that leads with P
  unconditional: Callable = None  # prompts -> those of the unconditional policy
  generate: Callable = None  # (policy, frozen, prompt_P, keys_PR) -> Rollout
  otherwise: Callable = None  # (**other settings of the sampler) -> a `generate`
  branch: Callable = None  # (policy, frozen, prompt_P, keys_PG, split, K) -> Rollout [P, G, K, L]
  logprobs: Callable = None  # (policy, frozen, Experience, reference=None) -> Scores
  packed: Callable = (
    None  # the same of packed rows, see rollout/packed.py: (Scores of words, of bits)
  )
  plan: tuple = ()  # [('words' or 'bits', how many)] that a row's L are made of; (): one picture
  # (tokens of rows, by how many axes they lead) -> t_BL of their pictures, one after the other
  drawn: Callable = lambda tokens, lead: tokens.reshape(-1, *tokens.shape[lead:])
  # (params, frozen) -> the weights that the KL is against, or None
  reference: Callable = lambda params, frozen: frozen.get('reference')
  presets: dict = dataclasses.field(
    default_factory=dict
  )  # {name: a `generate` of published settings}
  bind: dict = dataclasses.field(
    default_factory=dict
  )  # {parameter of a reward: the function it gets}
  encode: Callable = None  # (frozen, image_Byxc) -> t_BL
  correct: Callable = (
    None  # (frozen, image_Byxc, flips_BLe) -> (t_BLe, what to show in their place)
  )
  decode: Callable = None  # (frozen, t_BL) -> image_Byxc
  keys: Callable = None  # (rng, P, R) -> keys_PR
  score: Callable = None  # (frozen, image_Byxc, label_B) -> (r_B with nan, {name: r_B}, counts)
  # the rewards of `score` on the device, jitted: (frozen, image_Byxc, label_B) -> {name: r_B}
  judge: Callable = None
  mask: Callable = (
    None  # (image_Byxc, label_B) -> mask_Byx bool: the pixels that the reward is about
  )
  reward_weights: Callable = (
    None  # mesh -> frozen['rewards'], which `judge` needs; None if it does not
  )
  reconstruct: Callable = None  # (tokenizer, image_Byxc, keep) -> (image_Byxc, loss_B, t_BL)
  kept: Callable = lambda rng, batch: (
    None
  )  # the `keep` of a tokenizer that leaves out scales while it is trained
  classify: Callable = None  # (classifier, image_Byxc) -> logits_BV
  critic: Callable = None  # (critic, image_Byxc) -> logits, higher is more real
  perceptual: Callable = None  # (frozen, image_Byxc, image_Byxc) -> distance_B
  close: Callable = lambda: None


class Collected(NamedTuple):
  """What `collect` gives the loop. pictures: None, or a call -> {name: (images [n, y, x, 3],
  captions)}.
  """

  batch: Experience
  metrics: dict
  pictures: Callable | None = None


class Collect(NamedTuple):
  """An objective's half of a step: `run`, and by which compiled programs it does it.

  programs: (call, params, frozen, batch, rng) -> [(name, Experience that an update takes)]. Each
  program goes through call(name, jitted function, *args), which gives its result, arrays or what is
  known of them; call.rows( shape, dtype) stands for what comes from the host. Programs of no name
  cost nothing worth telling. phase(name, x) says that a part of the step is over when x is there:
  it is timed, and what ends a run early is heard then."""

  run: Callable  # (params, frozen, batch, rng, step, phase) -> Collected
  programs: Callable

  def __call__(self, params, frozen, batch, rng, step, phase=lambda name, x=None: None):
    return self.run(params, frozen, batch, rng, step, phase)


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
    prefixes: dropped from all keys if all keys have them, such as 'module.'.
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
  prefixes: tuple[str, ...] = ()
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


def lookup(name, *needs):
  """'objectives.grpo' -> the module vargrl/objectives/grpo.py; a name in a config is a path. needs:
  what must be in it."""
  root = pathlib.Path(__file__).parent
  known = ['.'.join(p.relative_to(root).with_suffix('').parts) for p in sorted(root.rglob('*.py'))]
  known = [k for k in known if '.' in k and not k.endswith('__init__')]
  if name not in known:
    folder = [k for k in known if k.split('.')[0] == name.split('.')[0]] or known
    near = difflib.get_close_matches(name, known, 1, 0.4) or folder[:1]
    raise ValueError(
      f'name: there is no {name!r} (vargrl/{name.replace(".", "/")}.py); did you mean {near[0]!r}?'
    )
  module = importlib.import_module(f'vargrl.{name}')
  for need in needs:
    if not hasattr(module, need):
      raise ValueError(f'name: {name!r} found, which has no {need!r}')
  return module
