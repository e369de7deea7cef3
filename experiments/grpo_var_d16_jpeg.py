r"""GRPO on VAR-d16 with JPEG compressibility as the reward, ImageNet classes as prompts.

  python -m vargrl.main train --config experiments/grpo_var_d16_jpeg.py --workdir
  runs/grpo_var_d16_jpeg

The published architecture and schedule (256x256, 680 tokens in ten scales) and files, in weights/
below the current folder: var_d16.pth, vae_ch160v4096z32.pth. Expect images to grow smooth: reward,
minus kilobytes, rises.

  --config experiments/grpo_var_d16_jpeg.py:smoke     tiny sizes and random weights, two steps
  python -m vargrl.main bench --config experiments/grpo_var_d16_jpeg.py --config.data.prompts=1 \
    --config.objective.collect.rollouts=4             images/s and utilisation at full size
"""

from ml_collections import ConfigDict


def get_config(arg=''):
  c = ConfigDict()
  c.description = 'GRPO on VAR-d16: minus the kilobytes of a real JPEG are the reward.'
  c.seed, c.steps, c.save_every, c.show_every, c.keep = 0, 400, 50, 50, 2
  c.profile = ()  # or (first step, last step): a trace for TensorBoard or Perfetto in DIR/profile
  c.pod, c.mesh = 'v5e:4x4', (('data', 1), ('fsdp', -1), ('tensor', 1))
  c.max_replicated_share = 0.02

  c.policy = dict(name='models.var', size='d16', dtype='bfloat16', remat='blocks')
  c.tokenizer = dict(name='tokenizers.vq', size='var')
  # Guided rollouts, log-probabilities of the same guided policy, the unconditional branch held
  # still.
  c.rollout = dict(
    plan=('image',),
    weights='gathered',
    image=dict(
      kind='scales',
      guidance=2.5,
      guidance_ramp=True,
      temperature=1.0,
      top_k=0,
      top_p=0.0,
      logp_of='guided_stopgrad',
    ),
  )
  c.reference = True
  c.init = dict(policy='weights/var_d16.pth', tokenizer='weights/vae_ch160v4096z32.pth')

  c.objective = dict(name='objectives.grpo')
  c.objective.collect = dict(
    rollouts=16,
    old_logp='trainer',
    std='group',
    eps=1e-4,
    kl_reward=0.0,
    reward_mix='sum',
    resample=0,
    mask={},
  )
  c.objective.collect.rewards = dict(jpeg=dict(name='rewards.jpeg', weight=1.0, quality=90, sign=1))
  c.objective.collect.pool = dict(max_failed=0.1, workers=4, timeout=60.0, retries=1, chunk=16)
  # scale_weight_power 0.7: without it the two finest scales own 62 % of the gradient.
  c.objective.loss = dict(
    level='token',
    clip=0.2,
    clip_high=0.28,
    penalty=0.02,
    estimator='exact',
    scale_weight_power=0.7,
    first_scale=0,
    last_scale=-1,
    segments=(('.*', {}),),
  )
  c.minibatches, c.accum, c.epochs = 1, 4, 1

  c.data = dict(name='data.prompts', classes=1000, prompts=16)
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
    samples=dict(name='eval.samples', every_steps=50, classes=8, per_class=8, seed=0, preset='')
  )

  if arg == 'smoke':
    c.steps, c.save_every, c.mesh = 2, 1, (('data', -1), ('fsdp', 1), ('tensor', 1))
    c.policy.size = c.tokenizer.size = 'smoke'
    c.init, c.accum = dict(policy='', tokenizer=''), 1
    c.data.classes, c.data.prompts, c.objective.collect.rollouts = 10, 8, 4
    c.optim.warmup = 1
    c.objective.collect.pool.workers = 1
    c.evals.samples.classes, c.evals.samples.per_class = 2, 2
  elif arg:
    raise ValueError(f'grpo_var_d16_jpeg: no variant {arg!r}, expected smoke')
  return c
