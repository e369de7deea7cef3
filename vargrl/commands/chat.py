"""Checkpoint + dialogues -> answers of text, and of images by a unified policy (models/unified.py).

That says what an image shows, generates images, edits those that it is shown, and all of these in
turn. The steps:

1. dialogues.py parses and encodes the prompts; `prepare` checks everything before compilation.
2. `generate` runs the rollout batch by batch and cuts each row into its answer (`split_answer`).
3. `resume_folder` writes images, answers.jsonl and index.html, and continues where it was cut.
"""

from collections.abc import Sequence
import hashlib
import json
import os
import pathlib
from typing import Callable, NamedTuple

import jax
import numpy as np

from vargrl import contracts
from vargrl.checkpoint import digest
from vargrl.commands import dialogues as prompts_of
from vargrl.commands import experiment as experiments
from vargrl.commands import folder as folders
from vargrl.commands import inference
from vargrl.data import text
from vargrl.data.dialogue import encode
from vargrl.data.dialogue.messages import IMAGE, IMAGE_GEN, IMAGE_PATTERN, Dialogue, unmark
from vargrl.eval.samples import row_keys
from vargrl.io import paths
from vargrl.io import text as io_text
from vargrl.parallel import multihost, rows
from vargrl.reporting import pages
from vargrl.rollout.sampler import make_sampler
from vargrl.training import assemble, chain
from vargrl.training.run import Run, check_token_ids
from vargrl.types import Policy

MAX_TEXT_TOKENS, BATCH = 64, 16
CONTEXT = 32768  # tokens of a sequence, as Qwen2 knows them (https://arxiv.org/abs/2407.10671)


class ChatSession(NamedTuple):
  """Encoded dialogues and the policy that answers them.

  Attributes:
    run, folder: the Run for inference, and the folder of its checkpoints.
    format: how dialogues become arrays.
    policy: the Policy whose plan is that of the answers.
    settings: {segment: its settings}.
    prompts: {feature: array [n, ...]}.
    prefixes: [text that each answer begins with].
    sample: of rollout/sampler.py, compiled at its first call.
  """

  run: Run
  folder: pathlib.Path
  format: encode.DialogueFormat
  policy: Policy
  settings: dict
  prompts: dict
  prefixes: list
  sample: Callable


def draw(
  experiment,
  workdir,
  dialogues,
  *,
  seed=0,
  run='',
  max_text_tokens=(),
  begin=None,
  length=0,
  patches=0,
  batch=BATCH,
):
  """[answer] of the last good checkpoint: each a list of texts (str) and images (uint8 [y, x, 3])
  in their order, [] for an empty answer.

  experiment: 'experiments/NAME.py[:variant]', trained in `workdir`, or its config. run: of a chain;
  its last if empty. dialogues: each a text, or messages [{'role', 'content'}] in turns, or
  {'messages', 'images'} with an image for every <image>. A content may also be a list of texts,
  images and {'type': 'text', 'text'}, whose text may say the word <image>. An image is uint8
  [y, x, 3], the bytes of a file or its path. An answer that a dialogue ends with is left out.
  max_text_tokens: at most so many text tokens before each image of an answer, and after the last,
  so that (64, 0) ends with an image and (64,) has none; (): (64, 64), or (64,) of a policy that
  draws none; whether there is an image is the model's choice. begin: the text after which an image
  begins without its choice, '' for none; or that of the answer that a dialogue ends with, if that
  has an <image_gen>. length, patches: size of a padded prompt, 0: of the longest. batch: dialogues
  on a device at once. An answer is a function of its dialogue, the seed and its place in the list.

  Raises ValueError or OSError for what is wrong with a dialogue, an image or the checkpoint, before
  anything is compiled."""
  config = (
    experiments.load(experiment) if isinstance(experiment, (str, os.PathLike)) else experiment
  )
  if not dialogues or isinstance(dialogues, (str, dict)):
    raise ValueError(f'dialogues: {dialogues!r} found, a list of at least 1 expected')
  names = [f'dialogue {i}' for i in range(len(dialogues))]
  parsed = [prompts_of.parse(dialogue, name) for dialogue, name in zip(dialogues, names)]
  session = prepare(
    config,
    workdir,
    parsed,
    names,
    run=run,
    max_text_tokens=max_text_tokens,
    begin=begin,
    length=length,
    patches=patches,
  )
  return answer_all(session, seed=seed, batch=batch)


def answer_all(session: ChatSession, *, seed, batch):
  """[answer] of all dialogues, by the last good checkpoint."""
  with jax.set_mesh(session.run.mesh):
    params, frozen, _ = inference.restore(session.run, session.folder)
    batches = generate(session, params, frozen, seed=seed, batch=batch)
    return [answer for _, answers in batches for answer in answers]


def answers_in_text(config):
  """True for a run whose policy reads and says text."""
  if 'rollout' not in config:
    return False
  net = contracts.module(contracts.module(config.policy.name, 'policy').NET, 'net')
  return 'tokens' in (contracts.offers(net, 'PROMPT') or ())


def prepare(
  config,
  workdir,
  dialogues: Sequence[Dialogue],
  names,
  *,
  run,
  max_text_tokens,
  begin,
  length,
  patches,
) -> ChatSession:
  """The ChatSession of these dialogues; for the options see `draw`. names: of the dialogues, for
  errors. Raises ValueError or OSError for all that may be wrong, before anything is compiled."""
  trained_length = max(one.data.get('length', 0) for _, one in chain.runs(config))
  name, config = chain.select_run(config, run)
  root = paths.path(workdir)
  if not answers_in_text(config):
    raise ValueError(
      f'--run: {name or root.name} trains {config.policy.name}, a policy that answers in text '
      'expected'
    )
  format = encode.make_format(
    **{key: config.data[key] for key in ('tokenizer', 'vision', 'size', 'crop')}
  )
  model = assemble.module(config.policy, 'policy')[1].c
  check_token_ids(config.data, model)
  lengths = text_lengths(max_text_tokens or default_lengths(config), begin)
  if begin is not None:
    dialogues = [prompts_of.begin_image(x, begin) for x in dialogues]
  prompts = prompts_of.encode_prompts(
    format,
    dialogues,
    names,
    generate=begin is not None,
    length=length,
    patches=patches,
    trained_length=trained_length,
  )
  answers = [unmark(x.messages[-1][1].split(IMAGE_GEN)[0]).strip() for x in dialogues]
  run = inference.build(config, root)
  names, settings = answer_plan(lengths)
  policy = run.policy.with_plan(names, **settings)
  policy.check_prompt(prompts['tokens'].shape[-1])
  sections = {
    name: config.rollout[name].to_dict() for name in ('text', 'image') if name in config.rollout
  }
  return ChatSession(
    run=run,
    folder=root / name,
    format=format,
    policy=policy,
    settings=sections | settings,
    prompts=prompts,
    prefixes=answers if begin is not None else [''] * len(dialogues),
    sample=make_sampler(policy, run.tokenizer),
  )


def answer_plan(lengths):
  """(names of the segments of an answer, {name: its settings}) for the most tokens of each text,
  between which pictures lie."""
  names, settings = [], {}
  numbered = lambda base, i: base if not i else f'{base}_{i}'
  for i, length in enumerate(lengths):
    if length:
      names.append(numbered('text', i))
      settings[names[-1]] = {'max_tokens': length}
    if i + 1 < len(lengths):
      names.append(numbered('image', i))
  return tuple(names), settings


def default_lengths(config):
  """The most text tokens of each text of an answer where nobody says it: of one that may have an
  image between two, or, where the policy draws none, of text alone."""
  draws = any(contracts.offers(x, 'kind') not in (None, 'text') for x in config.rollout.values())
  return (MAX_TEXT_TOKENS, MAX_TEXT_TOKENS) if draws else (MAX_TEXT_TOKENS,)


def text_lengths(max_text_tokens, begin) -> tuple:
  """The most text tokens of each text of an answer, of which the first is 0 where `begin` says it.
  Raises ValueError for lengths, and for a `begin`, that make no sense."""
  lengths = tuple(max_text_tokens)
  if begin is not None:
    if len(lengths) < 2:
      raise ValueError(
        f'max_text_tokens: {lengths} found, two numbers at least expected where an image begins'
      )
    if IMAGE_PATTERN.search(begin):
      raise ValueError(f'begin: {begin!r} found, text without {IMAGE_GEN} and {IMAGE} expected')
    lengths = (0, *lengths[1:])
  if not lengths or min(lengths) < 0 or not 0 < sum(lengths) <= CONTEXT:
    raise ValueError(f'max_text_tokens: {lengths} found, 1 to {CONTEXT} of them in all expected')
  return lengths


def generate(session: ChatSession, params, frozen, *, seed, batch, skip=0):
  """Yields (index of the first, [answer]) of every batch but those of the first `skip`
  dialogues."""
  count = len(session.prefixes)
  if not batch >= 1:
    raise ValueError(f'batch: {batch} found, at least 1 expected')
  keys_B = row_keys(session.policy, seed, count, 1)
  for row_B, counts_B in rows.batches(count, batch):
    if row_B[counts_B][-1] < skip:
      continue
    out, image_Byxc = session.sample(
      params, frozen, {key: x[row_B] for key, x in session.prompts.items()}, keys_B[row_B]
    )
    data = jax.tree.map(lambda x: multihost.to_numpy(x)[:, 0], out.data)
    mask_BA = (
      np.ones(out.logp.shape)[:, 0] if out.mask is None else multihost.to_numpy(out.mask)[:, 0]
    )
    if image_Byxc is not None:
      image_Byxc = multihost.to_numpy(image_Byxc)
      image_Byxc = image_Byxc.reshape(len(row_B), -1, *image_Byxc.shape[1:])
    answers = [
      split_answer(
        session,
        session.prefixes[row],
        jax.tree.map(lambda x, i=i: x[i], data),
        mask_BA[i],
        () if image_Byxc is None else image_Byxc[i],
      )
      for i, row in enumerate(row_B[counts_B])
    ]
    yield int(row_B[0]), answers


def split_answer(session, prefix, data, mask_A, images):
  """[text or image] of a row by the segments of its plan, cut where the row ended."""
  parts, images = [prefix], iter(images)
  for span in session.policy.spans:
    valid_L = mask_A[span.start : span.stop] > 0
    if span.name in session.policy.texts:
      tokens = data[span.name]['tokens'][valid_L]
      parts.append(text.decode(session.format.tokenizer, tokens).strip())
      continue
    image = next(images)
    if valid_L.all():
      parts.append(image)
  return [part for part in parts if not isinstance(part, str) or part]


def main(flags):
  """Answers every dialogue of --prompts: PNG files, answers.jsonl and index.html in --out."""
  config = chain.select_run(flags.config, flags.run)[1]
  if not flags.prompts:
    raise ValueError(f'--prompts is missing: {config.policy.name} answers dialogues')
  if not all(x.isdigit() for x in flags.max_text_tokens):
    found = ','.join(flags.max_text_tokens)
    raise ValueError(f'--max_text_tokens: {found!r} found, numbers such as 64,64 expected')
  dialogues, names = prompts_of.read(flags.prompts)
  session = prepare(
    flags.config,
    flags.workdir,
    dialogues,
    names,
    run=flags.run,
    max_text_tokens=[*map(int, flags.max_text_tokens)],
    begin=flags.begin,
    length=0,
    patches=0,
  )
  folder = io_text.check_writable(flags.out or paths.path(flags.workdir) / 'answers', '--out')
  with jax.set_mesh(session.run.mesh):
    params, frozen, step = inference.restore(session.run, session.folder)
    settings = {
      'step': step,
      'policy': digest.digest(params['policy']),
      'sampler': session.settings,
      'prompts': hashlib.sha256(
        b''.join(np.ascontiguousarray(x) for x in session.prompts.values())
      ).hexdigest(),
    }
    records, new = resume_folder(
      session, folder, dialogues, params, frozen, seed=flags.seed, settings=settings
    )
  empty = sum(not record['messages'][-1]['content'] for record in records)
  print(
    f'step {step}: {len(records)} answers in {folder / "index.html"}, {new} of them given now'
    + (f'; {empty} are empty' if empty else '')
  )


def resume_folder(session, folder, dialogues, params, frozen, *, seed, settings, batch=BATCH):
  """([record of a dialogue with its answer], how many were answered now); see
  dialogues.save_record.

  What answers.jsonl has is kept: the same call continues where it was cut, and ends with the same
  files, as batches are cut alike. settings: what else the answers depend on. Raises ValueError for
  a folder of another seed or other settings."""
  folders.check_folder(folder, settings | {'seed': seed}, flag='--out')
  path, new = folder / 'answers.jsonl', 0
  records = prompts_of.read_records(path)
  batches = generate(session, params, frozen, seed=seed, batch=batch, skip=len(records))
  for first, answers in batches:
    records[first:] = [
      prompts_of.save_record(folder, i, dialogues[i], answer)
      for i, answer in enumerate(answers, first)
    ]
    new += len(answers)
    lines = ''.join(json.dumps(x, ensure_ascii=False) + '\n' for x in records)
    io_text.write_text(path, lines)
  page = pages.dialogues_page([prompts_of.contents(folder, record) for record in records])
  io_text.write_text(folder / 'index.html', page)
  return records, new
