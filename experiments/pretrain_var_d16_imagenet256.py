r"""Pretraining VAR-d16 on ImageNet at 256x256, after the published recipe.

  python -m vargrl.main train --config experiments/pretrain_var_d16_imagenet256.py --workdir
  runs/var_d16

v5p:4x4x4, about 10 h (200 epochs at batch 768; from the FLOPs of a step at 40 % utilisation, not
measured). Expect a loss of 8.318 = ln 4096 at the start; published: FID 3.55 with the sampler of
evals.fid.

Needs the TFDS data set imagenet2012 as ArrayRecord, and in weights/ below the current folder:
vae_ch160v4096z32.pth (or the checkpoints of a run of tokenizer_msvq_imagenet256.py in
`init.tokenizer`), pt_inception-2015-12-05-6726825d.pth and VIRTUAL_imagenet256_labeled.npz.

  --config experiments/pretrain_var_d16_imagenet256.py:smoke     tiny sizes on digits, two steps
"""

from ml_collections import ConfigDict


def get_config(arg=''):
  c = ConfigDict()
  c.description = 'VAR-d16 learns the tokens of ImageNet, class-conditional, 256x256.'
  c.seed, c.steps, c.save_every, c.show_every, c.keep = 0, 333_800, 5000, 1_000_000, 2
  c.profile = ()  # or (first step, last step): a trace for TensorBoard or Perfetto in DIR/profile
  c.pod, c.mesh = 'v5p:4x4x4', (('data', 1), ('fsdp', -1), ('tensor', 1))
  c.max_replicated_share = 0.02

  c.policy = dict(name='models.var', size='d16', dtype='bfloat16', remat='blocks')
  c.tokenizer = dict(name='tokenizers.vq', size='var')
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
  c.reference, c.init = False, dict(tokenizer='weights/vae_ch160v4096z32.pth')
  c.objective = dict(
    name='objectives.sft',
    collect=dict(
      prompt_drop=0.1, condition_drop=0.0, drop_path=0.1 * 16 / 24, flip=0.0, flip_scales=0
    ),
    loss=dict(scale_weight_power=0.0, segments=(('.*', {}),)),
  )
  c.minibatches, c.accum, c.epochs = 1, 1, 1

  c.data = dict(
    name='data.source',
    dataset='imagenet2012',
    split='train',
    batch=768,
    size=256,
    crop='random',
    flip=False,
    shuffle=True,
    max_unreadable=0.001,
    dir='',
    threads=16,
    workers=8,
  )
  # 1e-4 per 256 images; warm-up of 1/50 of the epochs, then linear to a tenth. (The official one
  # first stays at the peak for 5 % of what follows the warm-up.)
  c.optim = dict(
    name='adamw',
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    clip=2.0,
    ema=0.0,
    peak=3e-4,
    warmup=6676,
    schedule='linear',
    end=0.1,
  )
  c.optim.scale = (('.*', 1.0),)
  c.optim.decay = (('/(b|temperature|start|positions|levels)$', 0.0), ('.*', 0.05))
  c.evals = dict(
    samples=dict(name='eval.samples', every_steps=5000, classes=8, per_class=8, seed=0, preset='')
  )
  c.evals.validation = dict(
    name='eval.held_out',
    every_steps=5000,
    kind='next_scale',
    dataset='imagenet2012',
    split='validation',
    size=256,
    crop='center',
    dir='',
    limit=5000,
  )
  c.evals.fid = dict(
    name='eval.fid',
    every_steps=50_000,
    images=50_000,
    seed=0,
    batch=64,
    preset='var',
    size='fid',
    weights='weights/pt_inception-2015-12-05-6726825d.pth',
    npz='weights/VIRTUAL_imagenet256_labeled.npz',
    dataset='',
    split='',
    pixels=256,
    crop='center',
    dir='',
    limit=0,
  )

  if arg == 'smoke':
    c.steps, c.save_every, c.mesh = 2, 1, (('data', -1), ('fsdp', 1), ('tensor', 1))
    c.policy.size = c.tokenizer.size = 'smoke'
    c.data.update(dataset='digits', batch=16, size=8, threads=1, workers=0)
    c.init.tokenizer, c.optim.warmup = '', 1
    c.evals.validation.update(dataset='digits', split='test', size=8, crop='none', limit=16)
    del c.evals.fid  # Inception alone compiles longer than all the rest
    c.evals.samples.update(classes=2, per_class=2)
  elif arg:
    raise ValueError(f'pretrain_var_d16_imagenet256: no variant {arg!r}, expected smoke')
  return c
