r"""Tuning Infinity-2B on pictures with text features, with bitwise self-correction, at 512x512.

  python -m vargrl.main train --config experiments/sft_infinity_2b.py --workdir runs/sft_infinity_2b

v5p:4x4x4. Needs in weights/ below the current folder infinity_2b_reg.pth and
infinity_vae_d32reg.pth (the two belong together), and in data/ a file text_images.npz: text [n,
512, 2048], the last hidden states of the Flan-T5-XL encoder, length [n], image [n, y, x, 3] uint8;
or a TFDS data set of the same, see vargrl/data/features.py. Expect, as the authors say of
fine-tuning, a loss of about 0.43 nats a bit and 80 % of the bits right.

  --config experiments/sft_infinity_2b.py:smoke     tiny sizes and random weights on noise, two
  steps
"""

from ml_collections import ConfigDict


def get_config(arg=''):
  c = ConfigDict()
  c.description = 'Infinity-2B learns the bits of pictures, conditioned on text features, 512x512.'
  c.seed, c.steps, c.save_every, c.show_every, c.keep = 0, 10_000, 500, 1_000_000, 2
  c.profile = ()  # or (first step, last step): a trace for TensorBoard or Perfetto in DIR/profile
  c.pod, c.mesh = 'v5p:4x4x4', (('data', 1), ('fsdp', -1), ('tensor', 1))
  c.max_replicated_share = 0.02

  c.policy = dict(
    name='models.infinity',
    size='2b',
    scales='0.25M',
    dtype='bfloat16',
    remat='blocks',
    attention='splash',
  )
  c.tokenizer = dict(name='tokenizers.bsq', size='d32', scales='0.25M')
  c.rollout = dict(
    plan=('image',),
    weights='gathered',
    image=dict(kind='bits', guidance=4.0, temperature=1.0, top_p=0.97, logp_of='cond'),
  )
  c.reference = False
  c.init = dict(policy='weights/infinity_2b_reg.pth', tokenizer='weights/infinity_vae_d32reg.pth')
  # flip: the share of bits that the 2B and 8B models were trained with.
  c.objective = dict(
    name='objectives.sft',
    collect=dict(prompt_drop=0.1, condition_drop=0.0, drop_path=0.1, flip=0.3, flip_scales=13),
    loss=dict(scale_weight_power=0.5, segments=(('.*', {}),)),
  )
  c.minibatches, c.accum, c.epochs = 1, 1, 1

  c.data = dict(
    name='data.features',
    dataset='data/text_images.npz',
    split='',
    dir='',
    prompts=256,
    tokens=512,
    width=2048,
    images=('image',),
    size=(512, 512),
    shuffle=True,
  )
  # 6e-5 is the authors' for pretraining, at batch 4096.
  c.optim = dict(
    name='adamw',
    b1=0.9,
    b2=0.97,
    eps=1e-8,
    clip=5.0,
    ema=0.0,
    peak=1.5e-5,
    warmup=100,
    schedule='constant',
    end=1.0,
  )
  c.optim.scale = (('.*', 1.0),)
  c.optim.decay = (
    ('/(b|bias|scale|temperature|start|levels|ada|uncond|text_norm|pool_q)$', 0.0),
    ('.*', 0.005),
  )
  c.evals = dict(
    prompts=dict(
      name='eval.prompts',
      every_steps=500,
      path='data/text_images.npz',
      prompts=8,
      per_prompt=4,
      seed=0,
      preset='infinity',
    )
  )

  if arg == 'smoke':
    c.steps, c.save_every, c.mesh = 2, 1, (('data', -1), ('fsdp', 1), ('tensor', 1))
    c.policy.update(size='smoke', scales='1x1 2x2 4x2', attention='dense')
    c.tokenizer.update(size='smoke', scales='1x1 2x2 4x2')
    c.init, c.optim.warmup = dict(policy='', tokenizer=''), 1
    c.data.update(dataset='random', prompts=8, tokens=8, width=16, size=(8, 4))
    c.evals.prompts.update(path='random', prompts=2, per_prompt=2)
  elif arg:
    raise ValueError(f'sft_infinity_2b: no variant {arg!r}, expected smoke')
  return c
