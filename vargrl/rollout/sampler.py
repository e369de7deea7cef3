"""Rows for evaluators and commands: one jitted program that samples and decodes."""

import jax
import jax.numpy as jnp


def make_sampler(policy, tokenizer, preset=''):
  """sample(params, frozen, prompt_B, keys_B) -> (Rollout [B, 1, ..], uint8 image_Byxc on the
  devices, the pictures of a row adjacent, or None): one call of rows.batches, so that any number
  fits in memory. preset: '' samples as the policy's rollouts do; a name, such as 'var', with
  published settings. ValueError for a policy that samples nothing, or an unknown preset."""
  if policy.generate is None:
    raise ValueError('samples: the run has no policy to sample from')
  if preset and preset not in policy.presets:
    raise ValueError(
      f"preset: {preset!r} found, one of {sorted(policy.presets)} expected, or '' for the run's "
      'own '
      'rollout'
    )
  generate = policy.presets[preset] if preset else policy.generate

  @jax.jit
  def sample(weights, frozen, prompt_B, keys_B):
    fold = jax.vmap(jax.random.fold_in, (0, None))  # a stream of its own for each use of a key
    out = generate(weights, frozen, prompt_B, fold(keys_B, 2**30), keys_B[:, None])
    tokens = policy.latents(out.data, 2)
    if tokens is None:
      return out, None
    each = len(tokens) // len(keys_B)
    prompts = jax.tree.map(lambda x: jnp.repeat(x, each, 0), prompt_B)
    keys = jax.vmap(lambda key: jax.random.split(key, each))(fold(keys_B, 2**30 + 1)).reshape(-1)
    image_Byxc = tokenizer.decode(frozen, tokens, prompts, keys)
    return out, jnp.rint((image_Byxc + 1) * 127.5).astype(jnp.uint8)

  return lambda params, frozen, prompt_B, keys_B: sample(
    params['policy'], frozen, jax.tree.map(jnp.asarray, prompt_B), keys_B
  )
