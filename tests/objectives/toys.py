"""The smallest policy: a table of logits by class and position, behind the border of Models."""

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.types import Experience, Models, Rollout, Scores, offsets

CLASSES, SCALES, VOCAB = 3, (1, 2), 4
L = 5


def logprobs(policy, frozen, batch, reference=None):
  shape = (*batch.tokens.shape, VOCAB)
  some = lambda table: table[batch.label][:, None, : shape[2]]
  rows = lambda table: jnp.broadcast_to(some(jax.nn.log_softmax(table)), shape)
  chosen = lambda x: jnp.take_along_axis(x, batch.tokens[..., None], -1)[..., 0]
  logp = rows(policy['table'])
  p, hit = jnp.exp(logp), logp.argmax(-1) == batch.tokens
  out = Scores(chosen(logp), -(p * logp).sum(-1), hit.astype(jnp.float32))
  if reference is None:
    return out
  other = jax.lax.stop_gradient(rows(reference['table']))
  return out.replace(kl=(p * (logp - other)).sum(-1), reference=chosen(other))


def branch(policy, frozen, label_P, keys_PG, split, K):
  """Rollout [P, G, K, L]; the tokens of the first `split` scales are drawn once."""
  at = offsets(SCALES)[split]

  def one(label, key):
    logits_LV, keys = policy['table'][label], jax.random.split(key, K + 1)
    head = jax.random.categorical(keys[0], logits_LV[:at])
    tails = jax.vmap(lambda k: jax.random.categorical(k, logits_LV[at:]))(keys[1:])
    return jnp.concatenate([jnp.broadcast_to(head, (K, at)), tails], 1)

  t_PGKL = jax.vmap(lambda label, keys_G: jax.vmap(lambda key: one(label, key))(keys_G))(
    label_P, keys_PG
  )
  rows = Experience(label=label_P, tokens=t_PGKL.reshape(len(label_P), -1, L))
  logp = logprobs(policy, frozen, rows).logp.reshape(t_PGKL.shape)
  return Rollout(t_PGKL, logp, logp)


def keys(rng, P, R):
  return jax.random.split(rng, (P, R))


MODELS = Models(init=None, config=None, scales=SCALES, classes=CLASSES, logprobs=logprobs)


def params(seed=0):
  table = np.random.default_rng(seed).normal(size=(CLASSES + 1, L, VOCAB))
  return {'policy': {'table': jnp.asarray(table, jnp.float32)}}


def experience(P, R, seed=0, masked=0):
  """Random rows, an old policy near params(0), and `masked` rows of the first without a verdict."""
  rng = np.random.default_rng(seed)
  label, tokens = rng.integers(0, CLASSES, P), rng.integers(0, VOCAB, (P, R, L))
  batch = Experience(label=jnp.asarray(label), tokens=jnp.asarray(tokens))
  noise = jnp.asarray(rng.normal(size=(P, R, L)) * 0.2, jnp.float32)
  old = logprobs(params()['policy'], {}, batch).logp + noise
  weight = (np.arange(P * R) >= masked).reshape(P, R).astype(np.float32)
  advantage = jnp.asarray(rng.normal(size=(P, R)), jnp.float32) * weight
  return batch.replace(old=old, weight=jnp.asarray(weight), advantage=advantage)


def said(*numbers, **fields):
  """Models that say these log-probabilities, whatever they are asked: a value computed by hand."""
  logp = jnp.asarray(numbers, jnp.float32)[None]
  scores = Scores(logp, jnp.zeros_like(logp), jnp.zeros_like(logp), **fields)
  length = logp.shape[-1]
  return Models(init=None, config=None, scales=(1,) * length, logprobs=lambda *_: scores)


def mean(metric):
  return float(metric.total) / float(metric.count)
