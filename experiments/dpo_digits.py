r"""DPO on pairs of real digits: chosen shows the class, rejected another one.

  python -m vargrl.main train --config experiments/quickstart.py --workdir runs/quickstart
  python -m vargrl.main train --config experiments/dpo_digits.py --workdir runs/dpo_digits \
    --config.init.policy=runs/quickstart/pretrain/checkpoints \
    --config.init.tokenizer=runs/quickstart/tokenizer/checkpoints

  --config experiments/dpo_digits.py:smoke     tiny sizes and random weights, two steps
"""

from ml_collections import ConfigDict


def get_config(arg=''):
  c = ConfigDict()
  c.title = 'vargrl: DPO on digits'
  c.description = 'DPO: real digits of the class against real digits of another class.'
  c.summary = (('judge/wrong', 'lower'), ('judge/variance', ''))
  c.seed, c.steps, c.save_every, c.show_every, c.keep = 0, 100, 50, 1_000_000, 2
  c.profile = ()  # or (first step, last step): a trace for TensorBoard or Perfetto in DIR/profile
  c.pod, c.mesh = 'v5e:1x1', (('data', -1), ('fsdp', 1), ('tensor', 1))
  c.max_replicated_share = 0.02

  c.policy = dict(name='models.var', size='digits')
  c.tokenizer = dict(name='tokenizers.vq', size='digits')
  c.rollout = dict(
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
  c.reference, c.init = True, dict(policy='', tokenizer='')
  c.objective = dict(name='objectives.dpo', collect=dict(flip=0.0, flip_scales=0, same_flips=True))
  # Sums over the tokens of an image saturate the sigmoid early; a small beta keeps the gradient
  # alive.
  c.objective.loss = dict(
    kind='sigmoid', beta=0.1, smoothing=0.0, scale_weight_power=0.0, segments=(('.*', {}),)
  )
  c.minibatches, c.accum, c.epochs = 1, 1, 1

  c.data = dict(
    name='data.source',
    dataset='digit_pairs',
    split='train',
    batch=32,
    size=8,
    crop='none',
    flip=False,
    shuffle=True,
    max_unreadable=0.01,
    dir='',
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
    peak=2e-5,
    warmup=5,
    schedule='constant',
    end=1.0,
  )
  c.optim.scale, c.optim.decay = (('.*', 1.0),), (('.*', 0.0),)
  c.evals = dict(
    judge=dict(
      name='eval.judge', every_steps=0, dataset='digits', size=8, dir='', per_class=100, seed=1
    )
  )

  if arg == 'smoke':
    c.steps, c.save_every = 2, 1
    c.policy.size = c.tokenizer.size = 'smoke'
    c.data.batch, c.evals.judge.per_class, c.optim.warmup = 16, 4, 1
  elif arg:
    raise ValueError(f'dpo_digits: no variant {arg!r}, expected smoke')
  return c
