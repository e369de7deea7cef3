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
  max_text_tokens,
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
  """The evaluator that yields for every kind of question, caption or edit the share that is right,
  their mean `overall`, and for pictures the share that was `drawn` at all, the others being wrong,
  and a `grid` of the first `show`.

  task: one of TASKS, on the first max_records of a split of scenes/WORLD/PIXELS. max_text_tokens:
  of an answer, or of the text before a picture; 0: that text is part of the prompt. greedy: the
  most likely text and bits instead of sampled ones. guidance: of pictures, in the place of the
  rollouts'. length, max_patches, size, tokenizer, vision: as in data.dialogue.prompts. batch: rows
  on a device at once. strict: a picture that shows more than its caption says is wrong."""
  check(built, task, max_text_tokens)
  sees = dict(size=size, crop='cover', tokenizer=tokenizer, vision=vision)
  dataset, prefill = f'scenes/{world}/{pixels}/{task}', task != 'question' and not max_text_tokens
  fits = dict(length=length, max_patches=max_patches, prefill_image=prefill)
  prompts, dialogues = dialogue_prompts.load_prompts(
    dataset=dataset, split=split, dir='', max_records=max_records, **fits, **sees
  )
  text_tokenizer, world = encode.make_format(**sees).tokenizer, worlds.find(world)
  policy = with_settings(built.policy, task, max_text_tokens, greedy, guidance)
  sample = make_sampler(policy, built.tokenizer)

  def evaluate(params, frozen, poll=None):
    keys_B, outputs = row_keys(policy, seed, max_records, 1), []
    for row_B, counts_B in rows.batches(max_records, batch, poll):
      prompt_B = {k: x[row_B] for k, x in prompts.items() if k != 'label'}
      out, image_Byxc = sample(params, frozen, prompt_B, keys_B[row_B])
      if task == 'question':
        outputs += answers(text_tokenizer, out, counts_B)
      else:
        outputs += drawn_images(policy, out, image_Byxc, counts_B)
    yield from scores(outputs, dialogues, task, world, strict).items()
    if task != 'question' and show:
      yield 'grid', grid(outputs[:show], dialogues[:show], task)

  return evaluate


def check(built, task, max_text_tokens):
  """Raises ValueError for a task that the policy cannot do."""
  if task not in TASKS:
    raise ValueError(f'task: {task!r} found, one of {TASKS} expected')
  if built.policy.generate is None or 'tokens' not in built.policy.features:
    raise ValueError('scenes: a policy of text and pictures expected')
  if task == 'question' and not max_text_tokens >= 1:
    raise ValueError(f'max_text_tokens: {max_text_tokens} found, at least 1 expected of an answer')


def with_settings(policy, task, max_text_tokens, greedy, guidance):
  """The Policy whose rows are a text, if it may have tokens, and a picture, if the task draws."""
  text_settings = dict(max_tokens=max_text_tokens) | (dict(top_k=1) if greedy else {})
  image_settings = dict(guidance=guidance) | (dict(top_p=1e-6) if greedy else {})
  names = ('text',) * bool(max_text_tokens) + ('image',) * (task != 'question')
  return policy.with_plan(
    names, text=text_settings if max_text_tokens else {}, image=image_settings
  )


def answers(tokenizer, out, counts_B):
  """[string] of the texts of the rows that count of a Rollout [B, 1, A]."""
  tokens_BL = multihost.to_numpy(out.data['text']['tokens'])[counts_B, 0]
  mask_BL = row_mask(out)[counts_B]
  return [text.decode(tokenizer, t_L[m_L > 0]) for t_L, m_L in zip(tokens_BL, mask_BL, strict=True)]


def drawn_images(policy, out, image_Byxc, counts_B):
  """[uint8 image_yxc, None where a row ended before its picture] of the rows that count."""
  span = next(span for span in policy.spans if span.picture)
  drawn_B = np.ones(len(counts_B), bool)
  if out.mask is not None:
    drawn_B = row_mask(out)[:, span.start : span.stop].max(1) > 0
  pairs = zip(multihost.to_numpy(image_Byxc)[counts_B], drawn_B[counts_B], strict=True)
  return [image_yxc if drawn else None for image_yxc, drawn in pairs]


def row_mask(out):
  """mask_BA of a Rollout [B, 1, A]."""
  return multihost.to_numpy(out.mask)[:, 0]


def scores(outputs, dialogues, task, world, strict):
  """{name: value} of the outputs, strings or pictures, that answer the dialogues."""
  metadata = [dialogue.metadata for dialogue in dialogues]
  if task == 'question':
    first = [questions[0] for questions in metadata]
    return score.understanding([q.kind for q in first], [q.answer for q in first], outputs)
  if task == 'editing':
    found = score.editing(outputs, metadata, world)
  else:
    found = score.generation(outputs, [x.json() for x in metadata], world, strict=strict)
  return found | {'drawn': np.mean([x is not None for x in outputs])}


def grid(outputs, dialogues, task):
  """Pictures, white where None, with what was asked; of edits beside what was to be edited."""
  shape = next((x.shape for x in outputs if x is not None), (1, 1, 3))
  image_Byxc = np.stack([np.full(shape, 255, np.uint8) if x is None else x for x in outputs])
  if task == 'generation':
    return images.grid(image_Byxc, [dialogue.text for dialogue in dialogues], columns=8, cell=96)
  before = np.stack([encode.load_image(dialogue.images[0]) for dialogue in dialogues])
  if before.shape != image_Byxc.shape:
    return images.grid(image_Byxc, [x.text for x in dialogues], columns=8, cell=96)
  both = np.stack([before, image_Byxc], 1).reshape(-1, *image_Byxc.shape[1:])
  captions = [x for dialogue in dialogues for x in (dialogue.text, '')]
  return images.grid(both, captions, columns=8, cell=96)
