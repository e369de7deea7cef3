"""The one rollout: rows of any plan, for one prompt and one key, vmapped to P x R.

`net.prefill` runs once per prompt; vmap over the R keys of a group leaves its result unbatched, so
it is computed and stored once; vmap over P makes the rest. `branch` follows the same law once more:
what K continuations have in common is computed once for each rollout.
"""

import jax
import jax.numpy as jnp

from vargrl.contracts import offers
from vargrl.rollout import plan as plans
from vargrl.rollout import vmaps
from vargrl.types import Rollout


def segment_keys(net, plan, key):
  """One key per segment of a row. Texts have even numbers and pictures odd ones, so that a picture
  has the same key whether its text is sampled or part of the prompt; a net of a single segment
  (`one_segment`) takes the row's key as it is."""
  if offers(net, 'one_segment'):
    return [key for _ in plan]
  keys, number = [], 0
  for segment in plan:
    number += (number % 2 == 0) != segment.kind.TEXT
    keys.append(jax.random.fold_in(key, number))
    number += 1
  return keys


def rollout_row(net, plan, context, prompt, key):
  """One row of one prompt -> Rollout, logp [A]. What a dead row would have said is 0."""
  alive, data, made = jnp.array(True), {}, []
  for i, (segment, key_i) in enumerate(zip(plan, segment_keys(net, plan, key))):
    name, kind, c, given = segment
    followed = i + 1 < len(plan)
    if given:
      data[name], logp_A = prompt[name], jnp.zeros(kind.length(c))
      sampler_A = logp_A
      if followed:
        context = kind.commit(net, c, context, data[name])
    else:
      data[name], logp_A, sampler_A, context = kind.sample(net, c, context, key_i, alive, followed)
    mask_A, goes_on = kind.mask(c, data[name])
    mask_A = mask_A & alive & (not given)
    alive &= goes_on | given
    made.append((logp_A, sampler_A, mask_A))
  logp_A, sampler_A, mask_A = (jnp.concatenate(x) for x in zip(*made))
  if not plans.rows_end(plan):
    return Rollout(data, logp_A, sampler_A, None)
  zero = lambda x: jnp.where(mask_A, x, 0)
  return Rollout(data, zero(logp_A), zero(sampler_A), mask_A.astype(jnp.float32))


def generate(net, plan, prompt_P, group_key_P, keys_PR):
  """Rollout of P prompts x R keys, each field [P, R, ..]. Equal rows whatever the mesh.
  group_key_P: of what all rows of a prompt share at random."""
  return vmaps.over_rows(
    lambda context, part, key: rollout_row(net, plan, context, part[0], key),
    lambda part: net.prefill(*part),
    (prompt_P, group_key_P),
    keys_PR,
  )


def branch(net, plan, prompt_P, keys_PG, split, copies):
  """Rollout [P, G, K, ..] of a plan of one picture: for each key the first `split` scales once, and
  K = `copies` continuations of them. Continuation 0 is the row that `generate` draws with this key;
  the others have keys of their own. ValueError for another plan or split."""
  (name, kind, c, _), *rest = plan
  if rest or not hasattr(kind, 'branches'):
    raise ValueError(f'branch: a plan of {[s.name for s in plan]}, expected one picture by scales')
  if not 0 < split < len(c.scales) or not copies >= 1:
    raise ValueError(
      f'branch: split={split}, {copies} copies with {len(c.scales)} scales; expected '
      f'1 <= split <= {len(c.scales) - 1} and at least one copy'
    )
  p, g, k = vmaps.spmd_axes(*keys_PG.shape, copies)

  def group(prompt, keys_G):
    context = net.prefill(prompt)
    segment_key = lambda key: segment_keys(net, plan, key)[0]
    one = lambda key: kind.branches(net, c, context, segment_key(key), split, copies, k)
    return jax.vmap(one, axis_name=vmaps.AXES[1], **g)(keys_G)

  data, logp, sampler_logp = jax.vmap(group, axis_name=vmaps.AXES[0], **p)(prompt_P, keys_PG)
  return Rollout({name: data}, logp, sampler_logp, None)
