"""A policy that draws class and noise: an image of its class's colour, with noise."""

import fake_run
import jax
import jax.numpy as jnp

CLASSES, SIDE = 4, 8


def generate(policy, frozen, label_P, key_P, keys_PR):
  noise = lambda key: jax.random.randint(key, (), 0, 1 << 16)
  noise_PR = jax.vmap(jax.vmap(noise))(keys_PR)
  label_PR = jnp.repeat(label_P[:, None], keys_PR.shape[1], 1)
  return fake_run.rollout(jnp.stack([label_PR, noise_PR], -1))


def decode(frozen, t_BL, prompts, keys_B):
  """Stripes whose direction, width and colour are the class's, moved by the noise."""

  def one(t_L):
    label, noise = t_L
    y, x = jnp.mgrid[:SIDE, :SIDE]
    wave = jnp.sin((y * (label + 1) + x * (label - 2)) * 0.7 + noise * 1e-3)
    colour = jnp.cos(label * jnp.arange(1, 4))
    return jnp.clip(
      wave[..., None] * colour[None, None] + 0.3 * jnp.sin(noise * jnp.arange(3.0))[None, None],
      -1,
      1,
    )

  return jax.vmap(one)(t_BL)


def dull(policy, frozen, label_P, key_P, keys_PR):
  """One class alone, which guidance gone wrong looks like."""
  return generate(policy, frozen, jnp.zeros_like(label_P), key_P, keys_PR)


POLICY = fake_run.policy(dict(classes=CLASSES), generate=generate, presets={'dull': dull})
BUILT = fake_run.built(POLICY, decode=decode)
