"""Checkpoint + dialogues -> answers of words and pictures, by a unified policy (models/unified.py):
it says what a picture shows, draws, changes a picture that it is shown, and all of these in
turn."""

from collections.abc import Sequence
import dataclasses
import hashlib
import html
import json
import logging
import os
import pathlib
from typing import Any, Callable, NamedTuple

import jax
import numpy as np

from vargrl.checkpoint import digest
from vargrl.commands import experiment as experiments
from vargrl.commands import folder as folders
from vargrl.commands import inference
from vargrl.data import text
from vargrl.data.dialogue import encode, pack
from vargrl.data.dialogue import files as sharegpt
from vargrl.data.dialogue import train as mixing
from vargrl.data.dialogue.encode import IMAGE_GEN, IMAGE, Dialogue
from vargrl.eval import scenes
from vargrl.parallel import multihost, rows
from vargrl.reporting import images as pictures
from vargrl.training import assemble, chain
from vargrl.training.run import Run, check_words
from vargrl.types import lookup

WORDS, BATCH = (64, 64), 16
CONTEXT = 32768  # tokens of a sequence, as Qwen2 knows them (https://arxiv.org/abs/2407.10671)
# prompts are as long as the longest of them, up to a multiple of so many tokens, and embeddings
ROOM = 16
SHOWN, BYTES = 100, 4_000_000  # dialogues on the page, and their pictures before base64
STYLE = """
body{margin:0 auto;max-width:760px;padding:2rem 1rem;color:#18181b;
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.3rem} section{border-top:1px solid #e4e4e7;padding:1rem 0}
p{margin:.3rem 0;white-space:pre-wrap} .user,.system{color:#52525b} .assistant{padding-left:2rem}
b{font-weight:600;font-size:.8rem;color:#71717a}
img{display:inline-block;vertical-align:top;margin:.2rem;min-width:128px;max-width:100%;height:auto;
border:1px solid #e4e4e7;image-rendering:pixelated}
"""


class Talk(NamedTuple):
  """Dialogues put together with who answers. plan: see rollout/interleaved.py. begun: what each
  answer begins with. some: eval/scenes.py's sampler, compiled at its first call."""

  run: Run
  folder: pathlib.Path
  form: encode.DialogueFormat
  sampler: Any
  plan: list
  prompts: dict
  begun: list
  some: Callable


def draw(
  experiment,
  workdir,
  dialogues,
  *,
  seed=0,
  run='',
  words=WORDS,
  begin=None,
  length=0,
  patches=0,
  batch=BATCH,
):
  """[answer] of the last good checkpoint: each the texts (str) and pictures (uint8 [y, x, 3]) in
  the order in which they were said, [] where nothing was.

  experiment: 'experiments/NAME.py[:variant]', trained in `workdir`, or its config. run: of a chain;
  its last if empty. dialogues: each a text, or messages [{'role', 'content'}] in turns, or
  {'messages', 'images'} with a picture for every <image>. A content may also be a list of texts and
  pictures. A picture is uint8 [y, x, 3], the bytes of a file or its path. An answer that a dialogue
  ends with is left out. words: at most so many words before each picture of an answer, and after
  the last, so that (64, 0) ends with a picture and (64,) has none; which pictures there are is the
  model's choice. begin: the words after which a picture begins without its choice, '' for none; or
  those of the answer that a dialogue ends with, if that has an <image_gen>. length, patches: room
  of a prompt, 0: for the longest. batch: dialogues on a device at once. An answer is a function of
  its dialogue, the seed and its place in the list.

  ValueError and OSError say what is wrong with a dialogue, a picture or the checkpoint, before
  anything is compiled."""
  config = (
    experiments.load(experiment) if isinstance(experiment, (str, os.PathLike)) else experiment
  )
  if not dialogues or isinstance(dialogues, (str, dict)):
    raise ValueError(f'dialogues: {dialogues!r} found, a list of at least 1 expected')
  names = [f'dialogue {i}' for i in range(len(dialogues))]
  said = [dialogue(given, name) for given, name in zip(dialogues, names)]
  return answered(
    prepared(
      config,
      workdir,
      said,
      names,
      run=run,
      words=words,
      begin=begin,
      length=length,
      patches=patches,
    ),
    seed=seed,
    batch=batch,
  )


def answered(talk: Talk, *, seed, batch):
  """[answer] of a Talk by the last good checkpoint."""
  with jax.set_mesh(talk.run.mesh):
    params, frozen, _ = inference.restore(talk.run, talk.folder)
    return [
      answer for _, some in answers(talk, params, frozen, seed=seed, batch=batch) for answer in some
    ]


def dialogue(given, where) -> Dialogue:
  """What `draw` is given as a Dialogue; ValueError that begins with `where`."""
  if isinstance(given, str):
    given = [{'role': 'user', 'content': given}]
  record = dict(given) if isinstance(given, dict) else {'messages': given}
  given, rest = sharegpt.messages_and_images(record, where)
  messages, images = [], []
  for message in given:
    content = message.get('content') if isinstance(message, dict) else None
    for part in content if isinstance(content, (list, tuple)) else [content or '']:
      count = len(encode.IMAGE_PATTERN.findall(part)) if isinstance(part, str) else 0
      images += rest[:count] if isinstance(part, str) else [part]
      rest = rest[count:]
    if isinstance(content, (list, tuple)):
      message = message | {
        'content': ''.join(part if isinstance(part, str) else IMAGE for part in content)
      }
    messages.append(message)
  images += rest
  parts, images = sharegpt.check_record({'messages': messages, 'images': images}, where, 'prompt')
  return asking(sharegpt.to_dialogue(parts, [picture(x, where) for x in images]), where)


def picture(given, where):
  """A picture as a Dialogue has it."""
  if isinstance(given, (str, bytes)):
    return given
  if isinstance(given, os.PathLike):
    return os.fspath(given)
  given = np.asarray(given)
  if given.dtype != np.uint8 or given.ndim != 3 or given.shape[-1] not in (1, 3):
    raise ValueError(
      f'{where}: picture {given.dtype} {list(given.shape)} found, uint8 [y, x, 3], bytes or a path '
      'expected'
    )
  return given


def asking(said: Dialogue, where) -> Dialogue:
  """The same, if there is something to answer."""
  *before, (_, last), _ = said.messages
  if not last.strip():
    raise ValueError(f'{where}: an empty message to answer found, words or {IMAGE} expected')
  if IMAGE_GEN in ''.join(content for _, content in before):
    raise ValueError(
      f'{where}: {IMAGE_GEN} before the last answer found, which no prompt can hold; show that '
      'picture as '
      f"{IMAGE} in the user's message"
    )
  return said


def listed(path):
  """([Dialogue], [name]) of a file, see data/dialogue/files.py."""
  path = str(path)
  if not path.endswith(sharegpt.FILES):
    raise ValueError(
      f'--prompts: {path} found, a file that ends with {" or ".join(sharegpt.FILES)} expected'
    )
  read, count = sharegpt.open_source(path, '', '', ends='prompt')
  names = [f'{path}: record {i}' for i in range(count)]
  return [asking(read(i), name) for i, name in enumerate(names)], names


def is_unified(config):
  """True of a run whose policy answers in words and pictures."""
  return 'rollout' in config and hasattr(lookup(config.rollout.name), 'PROMPT')


def prepared(
  config, workdir, said: Sequence[Dialogue], names, *, run, words, begin, length, patches
) -> Talk:
  """The Talk of these dialogues; all that may be wrong with them is told here. names: of them, for
  errors.
  """
  trained = max(one.data.get('length', 0) for _, one in chain.runs(config))
  name, config = chain.select_run(config, run)
  root = pathlib.Path(workdir)
  if not is_unified(config):
    raise ValueError(
      f'--run: {name or root.name} trains {config.policy.name}, a policy that answers in words and '
      'pictures expected'
    )
  form = encode.make_format(
    **{key: config.data[key] for key in ('tokenizer', 'look', 'size', 'crop')}
  )
  model = assemble.module(config.policy, 'policy')[1].c
  check_words(config.data, model)
  if begin is not None:
    if len(words) < 2:
      raise ValueError(
        f'words: {tuple(words)} found, two numbers at least expected where a picture begins'
      )
    if encode.IMAGE_PATTERN.search(begin):
      raise ValueError(f'begin: {begin!r} found, words without {IMAGE_GEN} and {IMAGE} expected')
    words = (0, *words[1:])
    said = [opened(x, begin) for x in said]
  if not words or min(words) < 0 or not 0 < sum(words) <= CONTEXT:
    raise ValueError(f'words: {tuple(words)} found, 1 to {CONTEXT} of them in all expected')
  sampler = dataclasses.replace(assemble.sampler(config), words=tuple(words))
  prompts = asked(
    form, said, names, draw=begin is not None, length=length, patches=patches, most=trained
  )
  lookup(config.rollout.name).check_room(sampler, model, prompts['tokens'].shape[-1])
  begun = [x.messages[-1][1].split(IMAGE_GEN)[0].strip() if begin is not None else '' for x in said]
  plan = lookup(config.rollout.name, 'plan').plan(sampler, model.decoder.length)
  run = inference.build(config, root)
  return Talk(
    run,
    root / name,
    form,
    sampler,
    plan,
    prompts,
    begun,
    scenes.sampler(run.models, sampler.words, {}),
  )


def opened(said: Dialogue, begin) -> Dialogue:
  """With an answer that a picture is in."""
  *before, (role, answer) = said.messages
  return (
    said if IMAGE_GEN in answer else said._replace(messages=(*before, (role, begin + IMAGE_GEN)))
  )


def asked(form, said, names, *, draw, length, patches, most):
  """{feature: array [n, ...]} of prompts, all with the same room, without `length` for at most
  `most` tokens.
  """

  def each(call, some):
    found = [
      mixing.try_encode(name, lambda x=x: call(x)) for name, x in zip(names, some, strict=True)
    ]
    if wrong := [why for _, why in found if why]:
      raise ValueError(wrong[0])
    return [x for x, _ in found]

  told = each(lambda x: encode.encode_prompt(form, x, draw=draw), said)
  longest = lambda sizes, unit: -(-max(sizes) // unit) * unit
  for name, x in zip(names, told):
    if not length and len(x.tokens) > most:
      raise ValueError(
        f'{name}: {len(x.tokens)} tokens found, at most {most} (data.length, what was trained) '
        'expected'
      )
  warn_of_unknown(form, told, names)
  length = length or longest([len(x.tokens) for x in told], ROOM)
  patches = patches or longest([len(x.seen.patches) for x in told], ROOM * form.merge**2)
  pack.check_budget(pack.RowBudget(length, patches, 0, 1), form)
  rows = each(lambda x: pack.prompt_row(x, form, length=length, patches=patches), told)
  return {key: np.stack([row[key] for row in rows]) for key in pack.PROMPT_FEATURES}


def warn_of_unknown(form, told, names):
  """Says which prompts have words that a tokenizer with a token for what it does not know has made
  that of.
  """
  tokenizer = form.words.tokenizer
  unknown = tokenizer.token_to_id(getattr(tokenizer.model, 'unk_token', None) or '')
  for name, x in zip(names, told):
    if unknown in x.tokens:
      logging.warning('%s: it has words that the tokenizer does not know', name)


def answers(talk: Talk, params, frozen, *, seed, batch, done=0):
  """Yields (place of the first, [answer]) of every batch but those of the first `done`
  dialogues.
  """
  count = len(talk.begun)
  if batch < 1:
    raise ValueError(f'batch: {batch} found, at least 1 expected')
  keys_B = talk.run.models.keys(jax.random.key(seed), count, 1)[:, 0]
  for row_B, counts_B in rows.batches(count, batch):
    if row_B[counts_B][-1] < done:
      continue
    out, image_Byxc = talk.some(
      params, frozen, {key: x[row_B] for key, x in talk.prompts.items()}, keys_B[row_B]
    )
    words_BL, mask_BL = (multihost.to_numpy(x)[:, 0] for x in (out.tokens['words'], out.mask))
    image_BIyxc = multihost.to_numpy(image_Byxc)
    image_BIyxc = image_BIyxc.reshape(len(row_B), talk.sampler.pictures, *image_BIyxc.shape[1:])
    first = int(row_B[0])
    yield (
      first,
      [
        parted(talk, talk.begun[row], words_BL[i], mask_BL[i], image_BIyxc[i])
        for i, row in enumerate(row_B[counts_B])
      ],
    )


def parted(talk, begun, words_L, mask_L, image_Iyxc):
  """The answer of a row, cut where it ended."""
  found, said, drawn, at = [begun], 0, 0, 0
  for kind, count in talk.plan:
    there_L, at = mask_L[at : at + count] > 0, at + count
    if kind == 'words':
      found.append(text.decode(talk.form.words, words_L[said : said + count][there_L]).strip())
      said += count
      continue
    if there_L.all():
      found.append(image_Iyxc[drawn])
    drawn += 1
  return [part for part in found if not isinstance(part, str) or part]


def main(flags):
  """Answers every dialogue of --prompts: PNG files, answers.jsonl and index.html in --out."""
  config = chain.select_run(flags.config, flags.run)[1]
  if not flags.prompts:
    raise ValueError(f'--prompts is missing: {config.policy.name} answers dialogues')
  if not all(x.isdigit() for x in flags.max_text_tokens):
    raise ValueError(
      f'--max_text_tokens: {",".join(flags.max_text_tokens)!r} found, numbers such as 64,64 expected'
    )
  said, names = listed(flags.prompts)
  talk = prepared(
    flags.config,
    flags.workdir,
    said,
    names,
    run=flags.run,
    words=[*map(int, flags.max_text_tokens)],
    begin=flags.begin,
    length=0,
    patches=0,
  )
  with jax.set_mesh(talk.run.mesh):
    params, frozen, step = inference.restore(talk.run, talk.folder)
    folder = pathlib.Path(flags.out or pathlib.Path(flags.workdir) / 'answers')
    about = {
      'step': step,
      'policy': digest.digest(params['policy']),
      'sampler': dataclasses.asdict(talk.sampler),
      'prompts': hashlib.sha256(
        b''.join(np.ascontiguousarray(x) for x in talk.prompts.values())
      ).hexdigest(),
    }
    records, new = fill(talk, folder, said, params, frozen, seed=flags.seed, about=about)
  empty = sum(not record['messages'][-1]['content'] for record in records)
  print(
    f'step {step}: {len(records)} answers in {folder / "index.html"}, {new} of them given now'
    + (f'; {empty} are empty' if empty else '')
  )


def fill(talk, folder, said, params, frozen, *, seed, about, batch=BATCH):
  """(a record of every dialogue with its answer, how many were answered now); see `record`.

  What answers.jsonl has is kept: the same call goes on where it was cut, and ends with the same
  files, as batches are cut alike. about: what else the answers depend on; a folder of another seed
  or `about` is refused."""
  folders.check_folder(folder, about | {'seed': seed}, flag='--out')
  path, records, new = folder / 'answers.jsonl', [], 0
  if path.exists():
    records = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
  for first, some in answers(talk, params, frozen, seed=seed, batch=batch, done=len(records)):
    records[first:] = [record(folder, i, said[i], answer) for i, answer in enumerate(some, first)]
    new += len(some)
    pictures.save_bytes(
      path, ''.join(json.dumps(x, ensure_ascii=False) + '\n' for x in records).encode()
    )
  pictures.save_bytes(folder / 'index.html', page(folder, records).encode())
  return records, new


def record(folder, i, said: Dialogue, answer):
  """A dialogue with its answer as data/dialogue/files.py reads it, relative to `folder`, where its
  pictures are written.
  """
  *before, _ = said.messages
  content, names = '', []
  for part in answer:
    if isinstance(part, str):
      content += part
      continue
    names.append(f'{i:05d}_{len(names)}.png')
    pictures.save_png(folder / names[-1], part)
    content += IMAGE_GEN
  messages = [{'role': role, 'content': words} for role, words in (*before, ('assistant', content))]
  shown = [
    os.path.abspath(path) for path in said.pictures[: len(encode.image_placeholders(before))]
  ]
  return {'messages': messages, 'images': shown + names}


def page(folder, records):
  """The first SHOWN of them in HTML."""
  sections, budget = [], BYTES / max(1, sum(len(record['images']) for record in records[:SHOWN]))
  for record in records[:SHOWN]:
    images, lines = iter(record['images']), []
    for message in record['messages']:
      parts = [
        pictures.inline(folder / next(images), budget, part)[0]
        if part in (IMAGE, IMAGE_GEN)
        else html.escape(part)
        for part in encode.IMAGE_PATTERN.split(message['content'])
      ]
      lines.append(f'<p class="{message["role"]}"><b>{message["role"]}</b> {"".join(parts)}</p>')
    sections.append(f'<section>{"".join(lines)}</section>')
  title = f'{len(records)} answers' + (f', the first {SHOWN}' if len(records) > SHOWN else '')
  return pictures.page(title, STYLE, f'<h1>{title}</h1>{"".join(sections)}')
