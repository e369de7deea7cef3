"""What a unified policy understands, draws and edits of the world `scenes`, by the world's own
checker (vargrl/scenes): answers after normalisation, pictures as GenEval counts them
(https://arxiv.org/abs/2310.11513)."""

import numpy as np

from vargrl.data import text
from vargrl.data.dialogue import encode
from vargrl.data.dialogue import prompts as dialogue_prompts
from vargrl.eval.samples import row_keys
from vargrl.parallel import multihost, rows
from vargrl.reporting import images
from vargrl.rollout.sampler import make_sampler
from vargrl.scenes import score
from vargrl.scenes import world as worlds

TASKS = ('question', 'generation', 'editing')


def make(
  built,
  *,
  task,
  world,
  pixels,
  split,
  max_records,
  words,
  greedy,
  guidance,
  length,
  max_patches,
  size,
  tokenizer,
  vision,
  batch,
  seed,
  strict,
  show,
):
  """Yields for every kind of question, caption or edit the share that is right, their mean
  'overall', and for pictures the share that was 'drawn' at all, the others being wrong, and a
  'grid' of the first `show`.

  task: one of TASKS, on the first max_records of a split of scenes/WORLD/PIXELS. words: at most so
  many of an answer, or before a picture; 0: the words before a picture are given. greedy: the
  likeliest words and bits, not drawn ones. guidance: of pictures, whatever that of the run's
  rollouts is, which may learn without. length, max_patches, size, tokenizer, vision: as in
  data.dialogue.prompts. batch: rows on a device at once. strict: a picture that shows more than its
  caption says is wrong."""
  if task not in TASKS:
    raise ValueError(f'task: {task!r} found, one of {TASKS} expected')
  if built.policy.generate is None or 'tokens' not in built.policy.features:
    raise ValueError('scenes: a policy of text and pictures expected')
  if task == 'question' and words < 1:
    raise ValueError(f'words: {words} found, at least 1 expected of an answer')
  known, draws = worlds.find(world), task != 'question'
  prompts, said = dialogue_prompts.load_prompts(
    dataset=f'scenes/{world}/{pixels}/{task}',
    split=split,
    dir='',
    max_records=max_records,
    length=length,
    max_patches=max_patches,
    prefill_image=draws and not words,
    size=size,
    crop='cover',
    tokenizer=tokenizer,
    vision=vision,
  )
  form = encode.make_format(tokenizer=tokenizer, vision=vision, size=size, crop='cover')
  names = ('text',) * bool(words) + ('image',) * draws
  text_settings = dict(max_tokens=words) | (dict(top_k=1) if greedy else {})
  image_settings = dict(guidance=guidance) | (dict(top_p=1e-6) if greedy else {})
  policy = built.policy.with_plan(names, text=text_settings if words else {}, image=image_settings)
  some = make_sampler(policy, built.tokenizer)

  def evaluate(params, frozen, poll=None):
    keys_B, told, drawn = row_keys(policy, seed, max_records, 1), [], []
    for row_B, counts_B in rows.batches(max_records, batch, poll):
      out, image_Byxc = some(
        params, frozen, {k: x[row_B] for k, x in prompts.items() if k != 'label'}, keys_B[row_B]
      )
      if draws:
        there_B = mask_there(policy, out)[counts_B]  # where the picture begins
        drawn += [
          x if there else None
          for x, there in zip(multihost.to_numpy(image_Byxc)[counts_B], there_B)
        ]
      else:
        told += answers(
          form.tokenizer,
          multihost.to_numpy(out.data['text']['tokens'])[counts_B, 0],
          row_mask(out)[counts_B],
        )
    if not draws:
      asked = [dialogue.metadata[0] for dialogue in said]
      found = score.understanding([q.kind for q in asked], [q.answer for q in asked], told)
    else:
      about = [dialogue.metadata for dialogue in said]
      if task == 'editing':
        found = score.editing(drawn, about, known)
      else:
        found = score.generation(drawn, [x.json() for x in about], known, strict=strict)
      found['drawn'] = np.mean([x is not None for x in drawn])
    yield from found.items()
    if draws and show:
      yield 'grid', shown(drawn[:show], said[:show], task)

  return evaluate


def row_mask(out):
  """mask_BA of a Rollout [B, 1, A]."""
  return multihost.to_numpy(out.mask)[:, 0]


def mask_there(policy, out):
  """bool [B]: whether a row's picture was drawn at all, as its text did not end the row."""
  start = next(span.start for span in policy.spans if span.parts)
  if out.mask is None:
    return np.ones(len(out.logp), bool)
  return row_mask(out)[:, start] > 0


def answers(words, tokens_BL, mask_BL):
  """[text] of what was said."""
  return [text.decode(words, t_L[m_L > 0]) for t_L, m_L in zip(tokens_BL, mask_BL, strict=True)]


def shown(drawn, said, task):
  """Pictures, white where None, with what was asked, beside what was to be changed."""
  shape = next((x.shape for x in drawn if x is not None), (1, 1, 3))
  image_Byxc = np.stack([np.full(shape, 255, np.uint8) if x is None else x for x in drawn])
  if task == 'generation':
    return images.grid(image_Byxc, [dialogue.text for dialogue in said], columns=8, cell=96)
  before = np.stack([encode.load_image(dialogue.images[0]) for dialogue in said])
  if before.shape != image_Byxc.shape:
    return images.grid(image_Byxc, [x.text for x in said], columns=8, cell=96)
  both = np.stack([before, image_Byxc], 1).reshape(-1, *image_Byxc.shape[1:])
  return images.grid(
    both, [x for dialogue in said for x in (dialogue.text, '')], columns=8, cell=96
  )
