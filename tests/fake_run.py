"""Records of a run that have what a test says of them, and None of all else."""

import dataclasses
import types

import jax
import jax.numpy as jnp

from vargrl.rollout import vmaps
from vargrl.training.assemble import Built
from vargrl.types import Judges, Policy, Rollout, Tokenizer


def record(Record, **fields):
  return Record(**{f.name: None for f in dataclasses.fields(Record)} | fields)


def row_and_group_keys(rng, P, R):
  return vmaps.group_keys(rng, P), vmaps.row_keys(rng, P, R)


def latents(data, n_leading):
  """The tokens of the segment `image`, on one axis B."""
  tokens = data['image']
  return tokens.reshape(-1, *tokens.shape[n_leading:])


def policy(config=None, **fields):
  """A Policy; config: its fields, as a dictionary."""
  known = dict(
    spans=(), features={}, presets={}, texts=(), keys=row_and_group_keys, latents=latents
  )
  return record(Policy, config=types.SimpleNamespace(**config or {}), **known | fields)


def built(policy, bound=None, classify=None, **tokenizer):
  """A Built of this policy, judge and tokenizer; bound: see Built."""
  return record(
    Built,
    policy=policy,
    tokenizer=record(Tokenizer, **tokenizer),
    judges=record(Judges, classify=classify),
    bound=bound or {},
  )


def rollout(tokens_PR, mask=None):
  """A Rollout of pictures alone."""
  return Rollout({'image': tokens_PR}, None, None, mask)


def numbered_keys(P, R):
  """keys_PR that tell the number of their row, see number_of."""
  return jax.vmap(jax.vmap(jax.random.key))(jnp.arange(P * R).reshape(P, R))


def number_of(keys):
  """int32: the number that a key was made of."""
  return jax.random.key_data(keys)[..., -1].astype(jnp.int32)
