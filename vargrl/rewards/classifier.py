"""How sure a frozen classifier is that the image shows its class."""

import jax
import jax.numpy as jnp

HOST = False


def reward(frozen, samples, *, classifier):
  """r_B = log p(label | image), where classifier(frozen['classifier'], image_Byxc) -> logits_BV.

  A label outside V (an unconditional row) is NaN: clamping would reward some other class.
  """
  label_B = samples.record['label']
  logits_BV = classifier(frozen['classifier'], samples.image_Byxc).astype(jnp.float32)
  logp_BV = jax.nn.log_softmax(logits_BV)
  label_B1 = jnp.where(label_B < 0, logp_BV.shape[-1], label_B)[:, None]  # -1 is not the last class
  return jnp.take_along_axis(logp_BV, label_B1, axis=1, mode='fill', fill_value=jnp.nan)[:, 0]
