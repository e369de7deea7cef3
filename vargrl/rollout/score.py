"""The one teacher-forced scorer: log-probabilities of rows of any plan, sampled or supervised,
dense or packed, under a policy and maybe a reference, from one pass over all segments.

Logits are made, used and (in the backward pass) made again for a chunk of each row's actions at a
time: all of them, of policy and reference, never exist at once.
"""

import jax
import jax.numpy as jnp

from vargrl.parallel.rules import shard
from vargrl.rollout import vmaps
from vargrl.types import Scores

stop = jax.lax.stop_gradient


def features(net, plan, context, data):
  """{segment: what the head reads for its actions}, from one pass of the net."""
  blocks, first, position = [], [], context.position
  for i, (name, kind, c, _) in enumerate(plan):
    new, position = kind.inputs(net, c, data[name], position, i + 1 < len(plan))
    first.append(len(blocks))
    blocks += new
  hidden = net.forward(context, blocks)
  return {
    name: kind.features(c, hidden[i], data[name]) for (name, kind, c, _), i in zip(plan, first)
  }


def score_segment(segment, nets, found, data):
  """Scores [A] of one segment. nets, found: of the policy, and of the reference if there is one."""
  name, kind, c, given = segment
  if given:
    zeros = jnp.zeros(kind.length(c))
    return Scores(zeros, zeros, zeros, *([zeros, zeros] if len(nets) > 1 else []))

  def chunk(features, actions):
    outputs = [kind.outputs(net, c, x) for net, x in zip(nets, features)]
    return kind.score(c, outputs[0], actions, *map(stop, outputs[1:]))

  trees = tuple(x[name] for x in found)
  return vmaps.in_chunks(chunk, trees, kind.actions(c, data[name]), chunk=kind.CHUNK * vmaps.CHUNK)


def without_dropout(data):
  """A segment's data as the reference sees it: what is dropped at random, the policy's pass alone
  drops."""
  return (
    {key: x for key, x in data.items() if key != 'drop_path'} if isinstance(data, dict) else data
  )


def score_row(nets, plan, contexts, data, soft=()):
  """One row of data {segment: pytree} -> (Scores [A], {segment: soft codes}). nets, contexts: of
  the policy, and of the reference if there is one. What a row's end leaves unused is scored too:
  its mask says so. soft: segments whose straight-through codes are wanted."""
  # Where the rows are computed: a part of a batch lies as the batch did, and the compiler would
  # move logits to it.
  data = jax.tree.map(lambda x: shard(x, ''), data)
  plain = {name: without_dropout(x) for name, x in data.items()}
  found = [
    features(net, plan, context, plain if i else data)
    for i, (net, context) in enumerate(zip(nets, contexts))
  ]
  found = [found[0], *map(stop, found[1:])]
  codes = {
    name: kind.soft(c, kind.outputs(nets[0], c, found[0][name]), data[name])
    for name, kind, c, _ in plan
    if name in soft
  }
  scores = [score_segment(segment, nets, found, data) for segment in plan]
  return jax.tree.map(lambda *x: jnp.concatenate(x), *scores), codes


def score(nets, plan, prompt_P, data_PR, soft=()):
  """(Scores, each field [P, R, A], {segment: soft codes [P, R, ..]}) of rows that were sampled or
  that are data. A prompt is computed once for its rows. nets: the policy, and the reference if
  there is one, whose weights have no gradient."""
  return vmaps.over_rows(
    lambda contexts, part, data: score_row(nets, plan, contexts, data, soft),
    lambda prompt: [net.prefill(prompt) for net in nets],
    prompt_P,
    data_PR,
  )
