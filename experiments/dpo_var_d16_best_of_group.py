r"""DPO on VAR-d16 from pairs that it drew itself: the best of a group against the worst.

  python -m vargrl.main pairs --config experiments/grpo_var_aesthetic.py --out pairs/aesthetic
  --groups=20000 python -m vargrl.main train --config experiments/dpo_var_d16_best_of_group.py
  --workdir runs/dpo_var_d16

The first command draws, scores and keeps the pairs (any GRPO experiment says what to draw and how
to score it). v5e:4x4, about 40 min for the pairs and 10 min for training (from the FLOPs at 40 %
utilisation; not measured). Expect rewards/accuracies to rise from 0.5 and rewards/margins from 0;
logps/chosen may fall with logps/rejected: where it falls as fast, beta is too small or the training
too long.

Published files, in weights/ below the current folder (what is missing is told with the command that
downloads it): var_d16.pth, vae_ch160v4096z32.pth, clip-vit-large-patch14/,
sac+logos+ava1-l14-linearMSE.pth.

  --config experiments/dpo_var_d16_best_of_group.py:smoke     tiny sizes and random weights on pairs
  of digits, two steps
"""

from ml_collections import ConfigDict


def get_config(arg=''):
  c = ConfigDict()
  c.description = 'DPO on VAR-d16: the best of each group of its own images against the worst.'
  c.summary = (('monitor/aesthetic', 'higher'), ('monitor/clip', ''))
  c.seed, c.steps, c.save_every, c.show_every, c.keep = 0, 600, 100, 1_000_000, 2
  c.profile = ()  # or (first step, last step): a trace for TensorBoard or Perfetto in DIR/profile
  c.pod, c.mesh = 'v5e:4x4', (('data', 1), ('fsdp', -1), ('tensor', 1))
  c.max_replicated_share = 0.02

  c.policy = dict(name='models.var', size='d16', dtype='bfloat16', remat='blocks')
  c.tokenizer = dict(name='tokenizers.vq', size='var')
  # Guidance shapes what the evaluators draw; the log-probabilities are those of the conditional
  # branch.
  c.rollout = dict(
    plan=('image',),
    weights='gathered',
    image=dict(
      kind='scales',
      guidance=2.5,
      guidance_ramp=True,
      temperature=1.0,
      top_k=900,
      top_p=0.96,
      logp_of='cond',
    ),
  )
  c.reference = True
  c.init = dict(policy='weights/var_d16.pth', tokenizer='weights/vae_ch160v4096z32.pth')

  c.objective = dict(name='objectives.dpo', collect=dict(flip=0.0, flip_scales=0, same_flips=True))
  # Means over the tokens (weighted as scale_weight_power says): sums over 680 of them saturate the
  # sigmoid at once.
  c.objective.loss = dict(
    kind='sigmoid_norm', beta=10.0, smoothing=0.0, scale_weight_power=0.7, segments=(('.*', {}),)
  )
  c.minibatches, c.accum, c.epochs = 1, 1, 1

  c.data = dict(
    name='data.source',
    dataset='best_of_group',
    split='train',
    batch=32,
    size=256,
    crop='none',
    flip=False,
    shuffle=True,
    max_unreadable=0.0,
    dir='pairs/aesthetic',
    threads=2,
    workers=0,
  )
  c.optim = dict(
    name='adamw',
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    clip=1.0,
    ema=0.0,
    peak=1e-6,
    warmup=20,
    schedule='constant',
    end=1.0,
  )
  c.optim.scale, c.optim.decay = (('.*', 1.0),), (('.*', 0.0),)

  c.evals = dict(
    samples=dict(name='eval.samples', every_steps=100, classes=8, per_class=8, seed=0, preset='')
  )
  c.evals.monitor = dict(
    name='eval.rewards',
    every_steps=100,
    classes=50,
    per_class=4,
    seed=0,
    batch=16,
    preset='var',
    rewards=dict(),
    pool=dict(max_failed=0.1, workers=1, timeout=60.0, retries=1, chunk=16),
  )
  c.evals.monitor.rewards.aesthetic = dict(
    name='rewards.aesthetic',
    weight=1.0,
    size='l14',
    dtype='bfloat16',
    file='weights/clip-vit-large-patch14',
    head='weights/sac+logos+ava1-l14-linearMSE.pth',
  )
  c.evals.monitor.rewards.clip = dict(
    name='rewards.clip',
    weight=1.0,
    size='l14',
    dtype='bfloat16',
    file='weights/clip-vit-large-patch14',
    tokenizer='',
    names='imagenet',
    template='a photo of a {class}',
    scale=100.0,
  )

  if arg == 'smoke':
    c.steps, c.save_every, c.mesh = 2, 1, (('data', -1), ('fsdp', 1), ('tensor', 1))
    c.policy.size = c.tokenizer.size = 'smoke'
    c.init, c.optim.warmup = dict(policy='', tokenizer=''), 1
    c.data.update(dataset='digit_pairs', dir='', batch=16, size=8)
    tiny = dict(size='smoke', file='', head='', names='digits')
    for reward in c.evals.monitor.rewards.values():
      reward.update({k: v for k, v in tiny.items() if k in reward})
    c.evals.samples.update(classes=2, per_class=2)
    c.evals.monitor.update(classes=2, per_class=2, preset='')
  elif arg:
    raise ValueError(f'dpo_var_d16_best_of_group: no variant {arg!r}, expected smoke')
  return c
