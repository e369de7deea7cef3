"""What a unified policy understands, draws and edits of the world `scenes`, by the world's own
checker (vargrl/scenes): answers after normalisation, pictures as GenEval counts them
(https://arxiv.org/abs/2310.11513)."""

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.data import text
from vargrl.data.dialogue import encode
from vargrl.data.dialogue import prompts as dialogue_prompts
from vargrl.parallel import multihost, rows
from vargrl.reporting import images
from vargrl.scenes import score
from vargrl.scenes import world as worlds

TASKS = ('question', 'generation', 'editing')


def make(
  models,
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
  if models.packed is None:
    raise ValueError('scenes: a policy of words and pictures expected')
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
  likeliest = dict(top_k=1, bit_top_p=1e-6) if greedy else {}
  some = sampler(models, (words, 0) if draws else (words,), likeliest | dict(guidance=guidance))

  def evaluate(params, frozen, poll=None):
    keys_B, told, drawn = models.keys(jax.random.key(seed), max_records, 1)[:, 0], [], []
    for row_B, counts_B in rows.batches(max_records, batch, poll):
      out, image_Byxc = some(
        params, frozen, {k: x[row_B] for k, x in prompts.items() if k != 'label'}, keys_B[row_B]
      )
      if draws:
        there_B = multihost.to_numpy(out.mask)[counts_B, 0, words] > 0  # where the picture begins
        drawn += [
          x if there else None
          for x, there in zip(multihost.to_numpy(image_Byxc)[counts_B], there_B)
        ]
      else:
        told += answers(
          form.tokenizer,
          multihost.to_numpy(out.tokens['words'])[counts_B, 0],
          multihost.to_numpy(out.mask)[counts_B, 0],
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


def sampler(models, words, changes):
  """some(params, frozen, prompt_B, keys_B) -> (Rollout [B, 1, L], uint8 pictures)."""
  generate = models.otherwise(words=words, **changes)

  @jax.jit
  def some(policy, frozen, prompt_B, keys_B):
    out = generate(policy, frozen, prompt_B, keys_B[:, None])
    if len(words) == 1:
      return out, jnp.zeros((0, 1, 1, 3), jnp.uint8)
    image_Byxc = models.decode(frozen, models.drawn(out.tokens, 2))
    return out, jnp.rint((image_Byxc + 1) * 127.5).astype(jnp.uint8)

  return lambda params, frozen, prompt_B, keys_B: some(
    params['policy'], frozen, jax.tree.map(jnp.asarray, prompt_B), keys_B
  )


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
