r"""GRPO on VARGPT-v1.1 (7B + 2B) with HPSv2.1 as the reward: words and pictures of an answer learn
from one judgement.

  tpu/run.sh train --config experiments/grpo_vargpt_7b.py --workdir bucket/grpo_vargpt_7b

v5p:4x4x4. Needs in weights/ below the current folder VARGPT-v1.1 (the released folder),
HPS_v2.1_compressed.pt and its tokenizer, bpe_simple_vocab_16e6.txt.gz; in data/ prompts.txt, a
prompt in each line. Expect the reward to rise while kl stays small.

No guidance: what is drawn is what is learned from. The positions are the released ones, as its
weights expect.

  --config experiments/grpo_vargpt_7b.py:smoke     tiny sizes and random weights, on scenes, two
  steps
"""

from ml_collections import ConfigDict

VISION = dict(patch=14, merge=2, frames=2, min_pixels=56 * 56, max_pixels=512 * 512)


def get_config(arg=''):
  c = ConfigDict()
  c.description = (
    'GRPO on VARGPT-v1.1: the HPSv2.1 score of the picture and its prompt is the reward.'
  )
  c.seed, c.steps, c.save_every, c.show_every, c.keep = 0, 400, 50, 50, 2
  c.profile = ()  # or (first step, last step): a trace for TensorBoard or Perfetto in DIR/profile
  c.pod, c.mesh, c.max_replicated_share = (
    'v5p:4x4x4',
    (('data', 2), ('fsdp', -1), ('tensor', 1)),
    0.02,
  )

  c.policy = dict(
    name='models.unified',
    size='vargpt-v1.1',
    scales='0.25M',
    dtype='bfloat16',
    remat='blocks',
    attention='splash',
  )
  c.tokenizer = dict(name='tokenizers.bsq', size='d32', scales='0.25M', dtype='bfloat16')
  c.rollout = dict(
    plan=('text', 'image'),
    weights='gathered',
    text=dict(kind='text', max_tokens=64, temperature=1.0, top_k=0, top_p=0.0, stop=(151645,)),
    image=dict(kind='bits', guidance=1.0, temperature=1.0, top_p=0.0, logp_of='cond'),
    uncond_prompt=(),
    reference_impl=True,
  )
  c.reference = True
  c.init = dict(policy='weights/VARGPT-v1.1', tokenizer='weights/VARGPT-v1.1')

  c.objective = dict(name='objectives.grpo')
  c.objective.collect = collect = ConfigDict(
    dict(
      rollouts=32,
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
    segments=(('text', dict(weight=1.0)), ('image', dict(weight=1.0))),
  )
  c.minibatches, c.accum, c.epochs = 1, 8, 1

  c.data = dict(
    name='data.dialogue.prompts',
    dataset='data/prompts.txt',
    split='',
    dir='',
    max_records=0,
    prompts=16,
    length=128,
    max_patches=0,
    prefill_image=False,
    size=(512, 512),
    crop='cover',
    tokenizer='weights/VARGPT-v1.1',
    vision=dict(VISION),
    shuffle=True,
    max_unreadable=0.01,
    threads=8,
    workers=4,
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
  c.optim.scale, c.optim.decay = (('policy/vision', None), ('.*', 1.0)), (('.*', 0.0),)
  c.evals = {}

  if arg == 'smoke':
    c.steps, c.save_every, c.mesh = 2, 1, (('data', -1), ('fsdp', 1), ('tensor', 1))
    c.policy.update(size='smoke', scales='1x1 2x2 4x4', dtype='float32', attention='dense')
    c.tokenizer.update(
      size='smoke-square', mults=(1, 1, 1, 1), scales='1x1 2x2 4x4', dtype='float32'
    )
    c.rollout.text.update(max_tokens=4, stop=(2,))
    c.init, c.accum, c.optim.warmup = dict(policy='', tokenizer=''), 1, 1
    c.data.update(
      dataset='scenes/small/32/generation',
      split='train',
      max_records=64,
      prompts=8,
      length=48,
      size=(32, 32),
      tokenizer='scenes',
      vision=dict(patch=4, merge=2, frames=1, min_pixels=1024, max_pixels=1024),
      workers=0,
    )
    collect.rollouts = 4
    collect.rewards = dict(
      scenes=dict(name='rewards.scenes', weight=1.0, world='small', strict=True, partial=True)
    )
  elif arg:
    raise ValueError(f'grpo_vargpt_7b: no variant {arg!r}, expected smoke')
  return c
