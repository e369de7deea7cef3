"""Training a tokenizer: reconstruction, commitment, and two switches, perceptual and adversarial.

The critic is trained in the same update: its part of the loss sees the images without gradient, the
tokenizer's part sees the critic's weights without gradient, so one optimizer moves both.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.metrics import average
from vargrl.parallel import multihost
from vargrl.types import Collect, Collected, Experience

FEATURES = ('image',)  # what a batch of data must have


def check_loss(models, *, l1, l2, quantizer, perceptual, adversarial, reference):
  weights = dict(l1=l1, l2=l2, quantizer=quantizer, perceptual=perceptual, adversarial=adversarial)
  for name, weight in weights.items():
    if weight < 0:
      raise ValueError(f'objective.loss.{name}: {weight}, expected at least 0')
  for name, function, section in (
    ('perceptual', models.perceptual, 'perceptual'),
    ('adversarial', models.critic, 'critic'),
  ):
    if weights[name] and function is None:
      raise ValueError(
        f'objective.loss.{name}: {weights[name]} without a section {section!r} in the config'
      )


def collect(models):
  """images -> Experience."""
  reconstruct = jax.jit(lambda params, image: models.reconstruct(params['policy'], image)[0])
  kept = jax.jit(models.kept, static_argnums=1)

  def run(params, frozen, batch, rng, step, phase):
    def pictures():
      image = multihost.to_numpy(batch['image'][:8])
      out = multihost.to_numpy(reconstruct(params, image))
      captions = ['image'] * len(image) + ['decoded'] * len(image)
      return {'reconstruction': (np.concatenate([image, out]), captions)}

    return Collected(
      Experience(image=batch['image'], keep=kept(rng, len(batch['image']))), {}, pictures
    )

  def programs(call, params, frozen, batch, rng):
    keep = call('', jax.jit(lambda rng: models.kept(rng, len(batch['image']))), rng)
    return [('', Experience(image=batch['image'], keep=keep))]

  return Collect(run, programs)


def loss(models, params, frozen, batch, *, l1, l2, quantizer, perceptual, adversarial):
  """Weights of the terms; 0 switches a term off. adversarial: hinge loss against the critic."""
  image, stop = batch.image, jax.lax.stop_gradient
  out, quantizer_B, _ = models.reconstruct(
    params['policy'], image, *([] if batch.keep is None else [batch.keep])
  )
  mean = lambda x: x.mean(tuple(range(1, x.ndim)))
  terms = {
    'l1': l1 * mean(abs(out - image)),
    'l2': l2 * mean((out - image) ** 2),
    'quantizer': quantizer * quantizer_B,
  }
  if perceptual:
    terms['perceptual'] = perceptual * models.perceptual(frozen, out, image)
  if adversarial:
    critic = lambda weights, x: models.critic(weights, x)
    terms['adversarial'] = -adversarial * mean(critic(stop(params['critic']), out))
    real, fake = critic(params['critic'], image), critic(params['critic'], stop(out))
    terms['critic'] = mean(jax.nn.relu(1 - real)) + mean(jax.nn.relu(1 + fake))
  value = average(sum(terms.values()))
  mse = average(stop((jnp.clip(out, -1, 1) - image) ** 2))
  # No usage of the codes here: that of a batch is not the average of its parts' (see
  # eval/held_out.py).
  metrics = {'loss': value, 'mse': mse}
  return value, metrics | {f'loss/{k}': average(stop(v)) for k, v in terms.items()}
