r"""GRPO on Infinity-2B with HPSv2.1 as the reward, text features as prompts, at 512x512.

  python -m vargrl.main train --config experiments/grpo_infinity_2b.py --workdir
  runs/grpo_infinity_2b

v5p:4x4x4. Needs in weights/ below the current folder infinity_2b_reg.pth, infinity_vae_d32reg.pth,
HPS_v2.1_compressed.pt and its tokenizer, bpe_simple_vocab_16e6.txt.gz; in data/ prompts.txt, one
prompt a line, and prompts.npz: text [n, 512, 2048], the last hidden states of the Flan-T5-XL
encoder for the same lines, length [n], and if these are to be compared, the lines themselves,
prompts [n]. Expect the reward to rise while kl stays small.

  --config experiments/grpo_infinity_2b.py:smoke     tiny sizes and random weights on noise, two
  steps
"""

from ml_collections import ConfigDict


def get_config(arg=''):
  c = ConfigDict()
  c.description = (
    'GRPO on Infinity-2B: the HPSv2.1 score of the picture and its prompt is the reward.'
  )
  c.seed, c.steps, c.save_every, c.show_every, c.keep = 0, 400, 50, 50, 2
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
  # Guided rollouts, log-probabilities of the same guided policy, the unconditional branch held
  # still.
  c.rollout = dict(
    plan=('image',),
    weights='gathered',
    image=dict(kind='bits', guidance=4.0, temperature=1.0, top_p=0.0, logp_of='guided_stopgrad'),
  )
  c.reference = True
  c.init = dict(policy='weights/infinity_2b_reg.pth', tokenizer='weights/infinity_vae_d32reg.pth')

  c.objective = dict(name='objectives.grpo')
  c.objective.collect = collect = ConfigDict(
    dict(
      rollouts=16,
      old_logp='trainer',
      std='group',
      eps=1e-4,
      kl_reward=0.0,
      reward_mix='sum',
      resample=0,
      mask=dict(),
      rewards=dict(),
    )
  )
  collect.rewards.hps = dict(
    name='rewards.hps',
    weight=1.0,
    size='h14',
    dtype='bfloat16',
    file='weights/HPS_v2.1_compressed.pt',
    tokenizer='weights/bpe_simple_vocab_16e6.txt.gz',
    names='data/prompts.txt',
    template='{class}',
  )
  collect.pool = dict(max_failed=0.1, workers=1, timeout=60.0, retries=1, chunk=16)
  c.objective.loss = dict(
    level='token',
    clip=0.2,
    clip_high=0.28,
    penalty=0.01,
    estimator='exact',
    scale_weight_power=0.7,
    first_scale=0,
    last_scale=-1,
    segments=(('.*', {}),),
  )
  c.minibatches, c.accum, c.epochs = 1, 4, 1

  c.data = dict(
    name='data.features',
    dataset='data/prompts.npz',
    split='',
    dir='',
    prompts=16,
    tokens=512,
    width=2048,
    images=(),
    size=(512, 512),
    shuffle=True,
  )
  c.optim = dict(
    name='adamw',
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    clip=1.0,
    ema=0.0,
    peak=1e-6,
    warmup=10,
    schedule='constant',
    end=1.0,
  )
  c.optim.scale, c.optim.decay = (('.*', 1.0),), (('.*', 0.0),)
  c.evals = dict(
    prompts=dict(
      name='eval.prompts',
      every_steps=50,
      path='data/prompts.npz',
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
    c.init, c.accum, c.optim.warmup = dict(policy='', tokenizer=''), 1, 1
    c.data.update(dataset='random', prompts=8, tokens=8, width=16, size=(8, 4))
    collect.rollouts = 4
    collect.rewards.hps.update(size='smoke', file='', tokenizer='', names='digits')
    c.evals.prompts.update(path='random', prompts=2, per_prompt=2)
  elif arg:
    raise ValueError(f'grpo_infinity_2b: no variant {arg!r}, expected smoke')
  return c
