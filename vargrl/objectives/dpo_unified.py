"""DPO (https://arxiv.org/abs/2305.18290) on pairs of pictures that a unified policy draws in answer
to a prompt, as in VARGPT-v1.1 (https://arxiv.org/abs/2504.02949): the bits count, the words around
them are given."""

import jax
import jax.numpy as jnp

from vargrl.objectives import dpo, sft_bits
from vargrl.types import Collect, Collected, Experience

KINDS, ROWS, loss = dpo.KINDS, dpo.ROWS, dpo.loss
# What a batch of data must have, beside what a prompt is made of.
FEATURES = ('label', 'chosen', 'rejected', 'chosen_text', 'rejected_text')


def check(models, *, flip, flip_scales, shared, updates, reference):
  if tuple(kind for kind, _ in models.plan) != ('words', 'bits'):
    raise ValueError(
      'rollout.words: words (data.max_answer) and one picture expected by objectives.dpo_unified'
    )
  sft_bits.check_flips(models, flip=flip, flip_scales=flip_scales)


def check_loss(models, **options):
  dpo.check_loss(models, **options)


def collect(models, *, flip, flip_scales, shared):
  """Prompts with {'chosen', 'rejected'} [P, y, x, c] and their words {'chosen_text',
  'rejected_text'} [P, n] -> Experience with the reference's log-probabilities.

  flip, flip_scales: bitwise self-correction, see sft_bits.collect. shared: a pair has the same
  flips, and so have policy and reference: what is compared differs in nothing but pictures and
  weights. Without it each of the four has its own, and labels of its own, as in the released code.
  """
  scales, bits, plan = models.scales, models.config.bits, dict(models.plan)

  @jax.jit
  def prepare(params, frozen, batch, rng):
    P = len(batch['chosen'])

    def corrected(numbers):
      """(bits, bits that are shown) [P, 2, L, e], the flips of chosen and rejected those of these
      numbers.
      """
      flips = [
        sft_bits.flips(
          jax.random.fold_in(rng, n), P, scales, bits, flip=flip, flip_scales=flip_scales
        )
        for n in numbers
      ]
      found = [
        models.correct(frozen, batch[name], flips_PLe)
        for name, flips_PLe in zip(('chosen', 'rejected'), flips)
      ]
      return (jnp.stack(pair, 1) for pair in zip(*found))

    tokens, shown = corrected((0, 0) if shared else (0, 1))
    words, room = (
      jnp.stack([batch[f'{name}_text'] for name in ('chosen', 'rejected')], 1),
      plan.get('words', 0),
    )
    if words.shape[-1] > room:
      raise ValueError(f'data.max_answer: {words.shape[-1]} words found, at most {room} expected')
    words = jnp.pad(words, ((0, 0), (0, 0), (0, room - words.shape[-1])))
    zeros = lambda kind, x: jnp.full((P, 2, plan.get(kind, 0)), x, jnp.float32)
    mask = jnp.concatenate([zeros('words', 0.0), zeros('bits', 1.0)], -1)
    experience = Experience(
      label=models.prompt(batch), tokens={'words': words, 'bits': tokens}, shown=shown, mask=mask
    )
    theirs = experience
    if not shared:
      tokens, shown = corrected((2, 3))
      theirs = experience.replace(tokens={'words': words, 'bits': tokens}, shown=shown)
    scores = models.logprobs(models.reference(params, frozen), frozen, theirs)
    return experience.replace(reference=scores.logp)

  def run(params, frozen, batch, rng, step, phase):
    return Collected(prepare(params, frozen, batch, rng), {})

  def programs(call, params, frozen, batch, rng):
    return [('', call('prepare', prepare, params, frozen, batch, rng))]

  return Collect(run, programs)
