r"""From nothing to a tuned next-scale model on real handwritten digits, in minutes on a laptop.

  python -m vargrl.main train --config experiments/quickstart.py --workdir runs/quickstart

A chain of four runs: a multi-scale tokenizer, a digit classifier (the reward), pretraining of a
class-conditional VAR, and GRPO. The report ends with what a judge that never was a reward (a
support vector machine on raw pixels) says before and after.

  --config experiments/quickstart.py:jpeg     JPEG compressibility as the reward instead
  --config experiments/quickstart.py:smoke    every run for two steps
"""

from ml_collections import ConfigDict


def get_config(arg=''):
  c = ConfigDict()
  c.title = 'vargrl quickstart: digits'
  c.chain = ('tokenizer', 'classifier', 'pretrain', 'grpo')
  c.summary = (('judge/wrong', 'lower'), ('judge/variance', ''), ('reward', 'higher'), ('kl', ''))
  for name in c.chain:
    c[name] = common()
  digits = dict(
    dataset='digits',
    split='train',
    size=8,
    crop='none',
    flip=False,
    shuffle=True,
    max_unreadable=0.01,
    dir='',
    threads=2,
    workers=0,
  )
  tokenizer = dict(name='tokenizers.vq', size='digits')
  held_out = dict(
    name='eval.held_out',
    every_steps=0,
    dataset='digits',
    split='test',
    size=8,
    crop='none',
    dir='',
    limit=0,
  )

  r = c.tokenizer
  r.description = 'A multi-scale residual VQ autoencoder learns to draw 8x8 digits from 30 tokens.'
  r.steps, r.save_every, r.show_every = 400, 200, 200
  r.policy = dict(tokenizer)
  r.objective = dict(name='objectives.tokenizer', collect={})
  r.objective.loss = dict(l1=0.2, l2=1.0, quantizer=1.0, perceptual=0.0, adversarial=0.0)
  r.data = dict(name='data.source', batch=64, **digits)
  r.optim.update(peak=2e-3, warmup=20, schedule='cosine', end=0.05)
  r.evals = dict(test=dict(kind='tokenizer', **held_out))

  r = c.classifier
  r.description = 'A small convolutional classifier of real digits: the reward of the last run.'
  r.steps, r.save_every = 400, 200
  r.policy = dict(name='models.judges.classifier', size='digits')
  r.objective = dict(name='objectives.classify', collect=dict(noise=0.1), loss=dict(smoothing=0.05))
  r.data = dict(name='data.source', batch=64, **digits)
  r.optim.update(peak=2e-3, warmup=20, schedule='cosine', end=0.05)
  r.evals = dict(test=dict(kind='classify', **held_out))

  rollout = dict(
    plan=('image',),
    weights='gathered',
    image=dict(
      kind='scales',
      guidance=1.0,
      guidance_ramp=True,
      temperature=1.0,
      top_k=0,
      top_p=0.0,
      logp_of='cond',
    ),
  )
  # Recomputing a block costs a CPU less than writing down and reading back all that is in it.
  policy = dict(name='models.var', size='digits', remat='blocks')
  judge = dict(
    name='eval.judge', every_steps=0, dataset='digits', size=8, dir='', per_class=100, seed=1
  )

  r = c.pretrain
  r.description = 'A class-conditional next-scale decoder learns the tokens of the training digits.'
  r.steps, r.save_every = 400, 200
  r.policy, r.tokenizer, r.rollout = dict(policy), dict(tokenizer), dict(rollout)
  r.init = dict(tokenizer='tokenizer')
  r.objective = dict(
    name='objectives.sft',
    collect=dict(prompt_drop=0.1, condition_drop=0.0, drop_path=0.0, flip=0.0, flip_scales=0),
    loss=dict(scale_weight_power=0.0, segments=(('.*', {}),)),
  )
  r.data = dict(name='data.source', batch=64, **digits)
  r.optim.update(peak=1e-3, warmup=50, schedule='cosine', end=0.1)
  r.evals = dict(test=dict(kind='next_scale', **held_out), judge=dict(judge))

  r = c.grpo
  r.description = (
    "GRPO: the classifier's log-probability of the class is the reward, the KL to the "
    'pretrained model the leash.'
  )
  r.steps, r.save_every, r.show_every = 60, 20, 20
  r.policy, r.tokenizer, r.rollout = dict(policy), dict(tokenizer), dict(rollout)
  r.classifier = dict(name='models.judges.classifier', size='digits')
  r.reference = True
  r.init = dict(policy='pretrain', tokenizer='tokenizer', classifier='classifier')
  r.objective = dict(name='objectives.grpo')
  # Not divided by a group's deviation: a class that is drawn well already would be driven on by
  # noise.
  r.objective.collect = dict(
    rollouts=16,
    old_logp='trainer',
    std='none',
    eps=1e-4,
    kl_reward=0.0,
    reward_mix='sum',
    resample=0,
    mask={},
  )
  r.objective.collect.rewards = dict(classifier=dict(name='rewards.classifier', weight=1.0))
  r.objective.collect.pool = dict(max_failed=0.1, workers=1, timeout=60.0, retries=1, chunk=256)
  r.objective.loss = dict(
    level='token',
    clip=0.2,
    clip_high=0.28,
    penalty=0.2,
    estimator='exact',
    scale_weight_power=0.7,
    first_scale=0,
    last_scale=-1,
    segments=(('.*', {}),),
  )
  r.data = dict(name='data.prompts', classes=10, prompts=16)
  r.optim.update(peak=1e-4, warmup=5, schedule='constant')
  r.optim.decay = (('.*', 0.0),)
  r.evals = dict(judge=dict(judge))

  if arg == 'jpeg':
    c.title = 'vargrl quickstart: digits that compress well'
    c.grpo.description = 'GRPO: minus the kilobytes of a real JPEG are the reward.'
    # The files of 8x8 images differ by a few bytes: their spread is made the unit.
    c.grpo.objective.collect.std, c.grpo.optim.peak = 'group', 2e-4
    c.grpo.objective.loss.penalty = 0.1
    c.summary = (
      ('reward', 'higher'),
      ('rewards/classifier', ''),
      ('judge/variance', ''),
      ('kl', ''),
    )
    c.grpo.objective.collect.rewards = dict(
      jpeg=dict(name='rewards.jpeg', weight=1.0, quality=100, sign=1),
      classifier=dict(name='rewards.classifier', weight=0.0),
    )
  elif arg == 'smoke':
    for name in c.chain:
      c[name].steps, c[name].save_every = 2, 1
      c[name].policy.size = 'smoke'
      if 'tokenizer' in c[name]:
        c[name].tokenizer.size = 'smoke'
      if 'judge' in c[name].evals:
        c[name].evals.judge.per_class = 4
      c[name].optim.warmup = 1
    c.grpo.classifier.size = 'smoke'
    c.grpo.data.prompts, c.grpo.objective.collect.rollouts = 8, 4
    c.grpo.objective.collect.rewards.jpeg = dict(
      name='rewards.jpeg', weight=0.1, quality=90, sign=1
    )
  elif arg:
    raise ValueError(f'quickstart: no variant {arg!r}, expected jpeg or smoke')
  return c


def common():
  """What every run of the chain says alike."""
  r = ConfigDict()
  r.description, r.seed, r.keep = '', 0, 2
  r.steps, r.save_every, r.show_every = 0, 1, 1000000
  # or (first step, last step): a trace for TensorBoard or Perfetto in DIR/RUN/profile
  r.profile = ()
  r.pod, r.mesh = 'v5e:1x1', (('data', -1), ('fsdp', 1), ('tensor', 1))
  r.max_replicated_share = 0.02
  r.reference, r.init, r.evals = False, {}, {}
  r.minibatches, r.accum, r.epochs = 1, 1, 1
  r.optim = dict(
    name='adamw',
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    clip=1.0,
    ema=0.0,
    peak=1e-3,
    warmup=10,
    schedule='constant',
    end=1.0,
  )
  r.optim.scale = (('.*', 1.0),)
  r.optim.decay = (('/(b|bias|scale|temperature)$', 0.0), ('.*', 0.05))
  return r
