r"""Training VAR's multi-scale tokenizer (ch160, 4096 codes of 32) on ImageNet at 256x256.

  python -m vargrl.main train --config experiments/tokenizer_msvq_imagenet256.py --workdir runs/msvq

VAR ships no tokenizer training; the terms are the paper's, the numbers follow the same author's
single-scale trainer where it says them. The perceptual term is off: it needs a trained network, a
section c.perceptual = dict(name=..., size=...) of a module whose model has `features`
(models.judges.classifier is one) and its checkpoint in c.init.perceptual. The adversarial term is
best switched on for a second run that starts from the first: --config.init.policy=...
--config.objective.loss.adversarial=0.4 (and init.critic for a third).

  --config experiments/tokenizer_msvq_imagenet256.py:smoke     tiny sizes on digits, all terms, two
  steps
"""

from ml_collections import ConfigDict


def get_config(arg=''):
  c = ConfigDict()
  c.description = 'The multi-scale VQ autoencoder of VAR on ImageNet, 256x256.'
  c.seed, c.steps, c.save_every, c.show_every, c.keep = 0, 400_000, 5000, 5000, 2
  c.profile = ()  # or (first step, last step): a trace for TensorBoard or Perfetto in DIR/profile
  c.pod, c.mesh = 'v5e:4x4', (('data', 1), ('fsdp', -1), ('tensor', 1))
  c.max_replicated_share = 0.02

  c.policy = dict(name='tokenizers.vq', size='var')
  c.critic = dict(name='models.judges.critics', size='patch')
  c.reference, c.init = False, dict(policy='', critic='')
  c.objective = dict(name='objectives.tokenizer', collect={})
  c.objective.loss = dict(l1=0.2, l2=1.0, quantizer=1.0, perceptual=0.0, adversarial=0.0)
  c.minibatches, c.accum, c.epochs = 1, 1, 1

  c.data = dict(
    name='data.source',
    dataset='imagenet2012',
    split='train',
    batch=256,
    size=256,
    crop='random',
    flip=True,
    shuffle=True,
    max_unreadable=0.001,
    dir='',
    threads=16,
    workers=8,
  )
  c.optim = dict(
    name='adamw',
    b1=0.5,
    b2=0.9,
    eps=1e-8,
    clip=10.0,
    ema=0.0,
    peak=3e-4,
    warmup=4000,
    schedule='cosine',
    end=0.3,
  )
  c.optim.scale = (('.*', 1.0),)
  c.optim.decay = (('/(b|bias|scale|codebook)$', 0.0), ('critic', 0.0005), ('.*', 0.005))
  c.evals = dict(
    test=dict(
      name='eval.held_out',
      every_steps=5000,
      kind='tokenizer',
      dataset='imagenet2012',
      split='validation',
      size=256,
      crop='center',
      dir='',
      limit=5000,
    )
  )

  if arg == 'smoke':
    c.steps, c.save_every, c.mesh = 2, 1, (('data', -1), ('fsdp', 1), ('tensor', 1))
    c.policy.size = c.critic.size = 'smoke'
    c.perceptual = dict(name='models.judges.classifier', size='smoke')
    c.objective.loss.perceptual, c.objective.loss.adversarial = 1.0, 0.4
    c.data.update(dataset='digits', batch=16, size=8, threads=1, workers=0)
    c.evals.test.update(dataset='digits', split='test', size=8, limit=64)
    c.optim.warmup = 1
  elif arg:
    raise ValueError(f'tokenizer_msvq_imagenet256: no variant {arg!r}, expected smoke')
  return c
