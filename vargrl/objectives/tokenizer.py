"""Training a tokenizer: reconstruction, commitment, and two switches, perceptual and adversarial.

The critic is trained in the same update: its part of the loss sees the images without gradient, the
tokenizer's part sees the critic's weights without gradient, so one optimizer moves both.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vargrl.io import numbers
from vargrl.metrics import average
from vargrl.parallel import multihost
from vargrl.types import Collect, Collection, Experience


def passes(policy, collect):
  """{}: what trains no policy is counted from its program, see training/flops.py."""
  return {}


def features(policy):
  """What a batch of data must have."""
  return ('image',)


def check(policy, tokenizer, *, updates, reference):
  if policy.spans or tokenizer is None:
    raise ValueError('policy: not a tokenizer of tokenizers/, as objectives.tokenizer trains')


def check_loss(judges, *, l1, l2, quantizer, perceptual, adversarial, reference):
  weights = dict(l1=l1, l2=l2, quantizer=quantizer, perceptual=perceptual, adversarial=adversarial)
  for name, weight in weights.items():
    numbers.check_number(f'objective.loss.{name}', weight, least=0)
  for name, function, section in (
    ('perceptual', judges.perceptual, 'perceptual'),
    ('adversarial', judges.critic, 'critic'),
  ):
    if weights[name] and function is None:
      raise ValueError(
        f'objective.loss.{name}: {weights[name]} without a section {section!r} in the config'
      )


def collect(tokenizer):
  """images -> Experience."""
  reconstruct = jax.jit(
    lambda params, image: tokenizer.reconstruct(params['policy'], image, None)[0]
  )
  scale_dropout = jax.jit(tokenizer.scale_dropout, static_argnums=1)

  def run(stage, params, frozen, batch, rng):
    def images():
      image = multihost.to_numpy(batch['image'][:8])
      out = multihost.to_numpy(reconstruct(params, image))
      captions = ['image'] * len(image) + ['decoded'] * len(image)
      return {'reconstruction': (np.concatenate([image, out]), captions)}

    B = len(batch['image'])
    dropout = (
      stage.call('', jax.jit(lambda rng: tokenizer.scale_dropout(rng, B)), rng)
      if stage.abstract
      else scale_dropout(rng, B)
    )
    experience = Experience(image=batch['image'], scale_dropout=dropout)
    return Collection(experience, {}, images)

  return Collect(run, {'': 0})


def loss(tokenizer, judges, params, frozen, batch, *, l1, l2, quantizer, perceptual, adversarial):
  """Weights of the terms; 0 switches a term off. adversarial: hinge loss against the critic."""
  image, stop = batch.image, jax.lax.stop_gradient
  out, quantizer_B, _ = tokenizer.reconstruct(params['policy'], image, batch.scale_dropout)
  mean = lambda x: x.mean(tuple(range(1, x.ndim)))
  terms = {
    'l1': l1 * mean(abs(out - image)),
    'l2': l2 * mean((out - image) ** 2),
    'quantizer': quantizer * quantizer_B,
  }
  if perceptual:
    terms['perceptual'] = perceptual * judges.perceptual(frozen, out, image)
  if adversarial:
    critic = lambda weights, x: judges.critic(weights, x)
    terms['adversarial'] = -adversarial * mean(critic(stop(params['critic']), out))
    real, fake = critic(params['critic'], image), critic(params['critic'], stop(out))
    terms['critic'] = mean(jax.nn.relu(1 - real)) + mean(jax.nn.relu(1 + fake))
  value = average(sum(terms.values()))
  mse = average(stop((jnp.clip(out, -1, 1) - image) ** 2))
  # No usage of the codes here: that of a batch is not the average of its parts' (see
  # eval/held_out.py).
  metrics = {'loss': value, 'mse': mse}
  return value, metrics | {f'loss/{k}': average(stop(v)) for k, v in terms.items()}
